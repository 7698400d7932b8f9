"""Path patching against plain hook loops and ordinary patches, faithfulness against knock-outs, planted circuits."""

from types import SimpleNamespace

import numpy as np
import one_head
import pandas as pd
import pytest
import torch
import two_heads
from runners import through_hooks
from scipy import stats
from tolerances import COMPOUND, FORWARD, REORDERED

from mechrefusal import MechrefusalError, prompts
from mechrefusal.causal import add, patching
from mechrefusal.causal.attribution_patching.pairs import prepare_pairs
from mechrefusal.causal.circuits import circuit, paths
from mechrefusal.causal.circuits.discovery import EDGES
from mechrefusal.causal.circuits.effects import HELD_OUT, with_held_out
from mechrefusal.causal.circuits.faithfulness import FaithfulnessPasses
from mechrefusal.causal.circuits.paths import EMBEDDING, Node, PathPatching, edges_between, logits_of
from mechrefusal.causal.components import Component
from mechrefusal.causal.knockout.passes import KnockOutPasses
from mechrefusal.forward import ForcedOpenings, RefusalMetric
from mechrefusal.forward.patches import Patch

pytestmark = pytest.mark.slow

METRIC = RefusalMetric((7,), (419,), (296,))
"""One that differs enough between these prompts on all of these models."""
FORCED = RefusalMetric((), (10,), (12,), forced=ForcedOpenings(((20, 21, 22),), ((20, 23), (30,))))
PAIRS = [("A bomb today", "A home today"), ("Sell a bomb", "Sell a home")]
SOME = ("llama", "gpt2", "gemma2", "gpt-neox")
LINEAR = ("llama", "gpt2", "gpt-neox")
"""What heads write is added to the residual stream as it is; Gemma 2 norms it first."""
KEPT = [Node(0, "head", 1), Node(0, "mlp"), Node(1, "head", 2), Node(1, "mlp"), Node(2, "head", 0), Node(3, "mlp")]


def one_pair(model, metric=METRIC):
    return prepare_pairs(model, PAIRS[:1], metric, "denoising")


def every_node(model):
    cfg = model.cfg
    heads = [Node(layer, "head", head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    return [*heads, *(Node(layer, "mlp") for layer in range(cfg.n_layers))]


class Loop:
    """Path patching the slow way: the attention and the MLP of a block called anew, one path and one prompt at a time.

    Each receiver's output is that of a run whose residual stream before the receiver is changed; it is then put into
    a run in which nothing else is.
    """

    def __init__(self, model):
        self.model = model
        clean, corrupted = (
            torch.tensor([[*prompts.segments(model.tokenizer, text).prompt_ids, *METRIC.opening]]) for text in PAIRS[0]
        )
        self.tokens = corrupted
        self.source, self.target = (model.run_with_cache(tokens)[1] for tokens in (clean, corrupted))
        self.base = self.score([])

    def score(self, hooks):
        with torch.no_grad(), self.model.hooks(fwd_hooks=hooks):
            return METRIC.of(self.model(self.tokens)[0, -1]).item()

    def seen(self, name, hooks):
        kept = []
        self.score([*hooks, (name, lambda x, hook: kept.append(x.clone()))])
        return kept[0]

    def head(self, activation, head, values):
        changed = activation.clone()
        by_head = changed.view(*changed.shape[:2], self.model.cfg.n_heads, -1)
        by_head[:, :, head] = values.view(by_head.shape)[:, :, head]
        return changed

    def written(self, node):
        """Change of the residual stream by a sender."""
        if node == EMBEDDING:
            return self.source["blocks.0.hook_resid_pre"] - self.target["blocks.0.hook_resid_pre"]
        if node.component == "mlp":
            name = f"blocks.{node.layer}.hook_mlp_out"
            return self.source[name] - self.target[name]
        z, out = (f"blocks.{node.layer}.{hook}" for hook in ("attn.hook_z", "hook_attn_out"))
        if "gemma" not in type(self.model.original_model).__name__.lower():
            weights = self.model.blocks[node.layer].attn.W_O[node.head]
            change = (self.source[z] - self.target[z]).view(*self.tokens.shape, self.model.cfg.n_heads, -1)
            return change[:, :, node.head] @ weights
        hook = (z, lambda x, hook: self.head(x, node.head, self.source[z]))
        return self.seen(out, [hook]) - self.target[out]

    def effect(self, sender, receiver):
        change = self.written(sender)
        layer = receiver.layer
        if receiver.component == "logits":
            return self.score([(f"blocks.{layer - 1}.hook_resid_post", lambda x, hook: x + change)]) - self.base
        parallel = getattr(self.model.cfg, "parallel_attn_mlp", False)
        into = "hook_attn_out" if receiver.component == "mlp" and not parallel else "hook_resid_pre"
        name = f"blocks.{layer}." + ("attn.hook_z" if receiver.component == "head" else "hook_mlp_out")
        new = self.seen(name, [(f"blocks.{layer}.{into}", lambda x, hook: x + change)])
        if receiver.component == "head":
            return self.score([(name, lambda x, hook: self.head(x, receiver.head, new))]) - self.base
        return self.score([(name, lambda x, hook: new)]) - self.base


@pytest.mark.parametrize("architecture", SOME)
def test_paths_equal_a_plain_loop(family, architecture):
    model = family(architecture).hooked
    loop, paths = Loop(model), PathPatching(model, one_pair(model).runs[0])
    assert paths.runner.name == "token trees"
    edges = edges_between(model, KEPT)
    found = paths.effects(edges)
    expected = [loop.effect(*edge) for edge in edges]
    np.testing.assert_allclose(found, expected, atol=REORDERED)
    assert np.abs(expected).max() > 1e-3
    assert len(edges) == (26 if architecture == "gpt-neox" else 28)


@pytest.mark.parametrize("architecture", SOME)
@pytest.mark.parametrize("metric", [METRIC, FORCED], ids=["opening", "forced"])
def test_all_that_is_written_into_a_receiver_is_an_ordinary_patch(family, architecture, metric):
    model = family(architecture).hooked
    pairs = one_pair(model, metric)
    paths = PathPatching(model, pairs.runs[0])
    found = paths.from_everywhere([Node(2, "head", 1), Node(2, "mlp"), logits_of(model)])
    patched = [
        *pairs.exact(0, "z", [Patch(2, 1, None)]),
        *pairs.exact(0, "mlp_out", [Patch(2, None, None)]),
        float(pairs.clean[0] - pairs.corrupted[0]),
    ]
    np.testing.assert_allclose(found, patched, atol=REORDERED)


@pytest.mark.parametrize("architecture", LINEAR)
def test_changes_of_all_senders_sum_to_that_of_the_residual_stream(family, architecture):
    model = family(architecture).hooked
    paths = PathPatching(model, one_pair(model).runs[0])
    nodes = every_node(model)
    paths.effects([(sender, logits_of(model)) for sender in [EMBEDDING, *nodes]])
    summed = sum(paths._changes[sender] for sender in [EMBEDDING, *nodes])
    last = (model.cfg.n_layers - 1, "resid_post")
    expected = paths.source[last] - paths.target[last]
    torch.testing.assert_close(summed, expected, atol=FORWARD, rtol=FORWARD)


@pytest.mark.parametrize("architecture", ["llama", "gpt-neox"])
@pytest.mark.parametrize("metric", [METRIC, FORCED], ids=["opening", "forced"])
def test_hooks_give_the_numbers_of_trees(family, architecture, metric, monkeypatch):
    model = family(architecture).hooked
    run, edges = one_pair(model, metric).runs[0], edges_between(model, KEPT)
    expected = PathPatching(model, run).effects(edges)
    through_hooks(monkeypatch)
    monkeypatch.setattr(paths, "MEMORY", 1)  # one path a pass
    hooked = PathPatching(model, run)
    np.testing.assert_allclose(hooked.effects(edges), expected, atol=REORDERED)
    assert hooked.n_passes > len(edges)


def test_hooks_of_the_caller_act_on_paths(family):
    model = family("llama").hooked
    direction = torch.ones(model.cfg.d_model)
    edges = edges_between(model, KEPT)
    without = PathPatching(model, one_pair(model).runs[0]).effects(edges)
    with add(model, direction, layer=1):
        paths = PathPatching(model, one_pair(model).runs[0])
        assert paths.runner.name == "hooks"
        loop = Loop(model)
        found, expected = paths.effects(edges), [loop.effect(*edge) for edge in edges]
    np.testing.assert_allclose(found, expected, atol=REORDERED)
    assert (found - without).abs().max() > 1e-3


def test_edges_go_from_what_writes_to_what_reads(family):
    def named(model, nodes):
        return {(str(a), str(b)) for a, b in edges_between(model, nodes)}

    nodes = [Node(1, "mlp"), Node(1, "head", 0), Node(2, "head", 3)]
    ends = {("embedding", "logits"), *(("embedding", str(n)) for n in nodes), *((str(n), "logits") for n in nodes)}
    upward = {("mlp 1", "head 2.3"), ("head 1.0", "head 2.3")}
    assert named(family("llama").hooked, nodes) == ends | upward | {("head 1.0", "mlp 1")}
    assert named(family("gpt-neox").hooked, nodes) == ends | upward, "attention and MLP read the same"


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_nodes_are_exact_patches(family, mode):
    model = family("llama").hooked
    found = circuit(model, PAIRS, METRIC, n_nodes=6, n_edges=3, threshold=0, n_random=0, mode=mode)
    heads = patching.heads(model, PAIRS, METRIC, mode=mode).table
    own = found.components[found.components["component"] == "head"]
    sign, start = (1, 0) if mode == "denoising" else (-1, 1)
    np.testing.assert_allclose(own["raw"], heads["raw"], atol=REORDERED)
    np.testing.assert_allclose(own["effect"], sign * (heads["effect"] - start), atol=FORWARD)
    bounds = sorted((heads[name].iloc[0] - start) * sign for name in ("low", "high"))
    np.testing.assert_allclose(own[["low", "high"]].iloc[0], bounds, atol=FORWARD)
    assert len(found.nodes) == 6
    assert found.nodes["effect"].abs().is_monotonic_decreasing
    assert found.nodes["effect"].abs().min() >= found.components[~found.components["kept"]]["effect"].abs().max()
    assert found.measured_on == "the same pairs"
    assert found.edges["kept"].tolist() == [True] * 3 + [False] * (len(found.edges) - 3)
    assert found.edges["effect"].abs().is_monotonic_decreasing
    paths = [PathPatching(model, run) for run in prepare_pairs(model, PAIRS, METRIC, mode).runs]
    nodes = {str(node): node for node in [EMBEDDING, logits_of(model), *every_node(model)]}
    row = found.edges.iloc[0]
    by_pair = [one.effects([(nodes[row["sender"]], nodes[row["receiver"]])])[0] for one in paths]
    assert row["raw"] == pytest.approx(float(np.mean(by_pair)), abs=REORDERED)
    path = {"sender": row["sender"], "receiver": row["receiver"]}
    np.testing.assert_allclose(found.edge_observations.of(**path), by_pair, atol=REORDERED)
    assert found.interval(**path).value == pytest.approx(row["raw"])
    first = found.top(1).iloc[0]
    assert found.interval(node=first["node"]).value == pytest.approx(first["raw"])
    assert found.observations.units == tuple(f"pair {number}" for number in range(len(PAIRS)))


@pytest.mark.parametrize("architecture", SOME)
def test_shares_are_those_of_knock_outs(family, architecture):
    model = family(architecture).hooked
    harmful, harmless = zip(*PAIRS, strict=True)
    nodes = every_node(model)
    reference = ["Make a cake", "Sell a car"]
    made = FaithfulnessPasses(model, harmful, harmless, METRIC, nodes=nodes, reference=reference)
    chosen = [Node(1, "head", 2), Node(2, "mlp"), Node(3, "mlp")]
    parts = [Component("head", n.layer, n.head) if n.head >= 0 else Component("mlp", n.layer) for n in nodes]
    passes = KnockOutPasses(model, harmful, harmless, METRIC, how="mean", parts=parts, reference=reference)
    outside = [part for part, node in zip(parts, nodes, strict=True) if node not in chosen]
    inside = [part for part, node in zip(parts, nodes, strict=True) if node in chosen]
    alone, missing, nothing = (passes.under(each).harmful.double().numpy() for each in (outside, inside, parts))
    full = passes.base.harmful.double().numpy()
    total = (full - nothing).mean()
    found = made.measure([[], chosen, nodes], chosen)
    kept, lost = (found.interval(of="harmful", size=3, share=share) for share in ("kept", "lost"))
    share = (alone - nothing).mean() / total
    half = stats.t.ppf(0.975, 1) * np.std((alone - nothing) - share * (full - nothing), ddof=1) / total / np.sqrt(2)
    assert kept.value == pytest.approx((alone - nothing).mean() / total, abs=FORWARD)
    assert kept.high - kept.low == pytest.approx(2 * half, abs=COMPOUND)
    assert lost.value == pytest.approx((full - missing).mean() / total, abs=FORWARD)
    np.testing.assert_allclose(found.observations.of(of="harmful", size=3, share="kept"), alone - nothing, atol=FORWARD)
    rows = found.table.set_index(["of", "size"])
    assert rows["is_circuit"].tolist() == [False, False, True, True, False, False]
    assert rows.loc[("harmful", 3), ["kept", "kept_low", "lost"]].tolist() == [kept.value, kept.low, lost.value]
    for of in ("harmful", "difference"):
        assert rows.loc[(of, len(nodes)), ["kept", "lost"]].tolist() == [1, 1]
        assert rows.loc[(of, 0), ["kept", "lost"]].tolist() == [0, 0]


def test_random_sets_keep_their_values(family):
    model = family("llama").hooked
    passes = FaithfulnessPasses(model, *zip(*PAIRS, strict=True), METRIC, nodes=every_node(model), reference=["A cake"])
    chosen = [Node(1, "head", 2), Node(2, "mlp")]
    found = passes.measure([chosen], chosen, n_random=3)
    assert found.random.axes == ("draw", "of", "size", "share")
    whole = found.full["harmful"] - found.ablated["harmful"]
    shares = [found.random.of(draw=i, of="harmful", size=2, share="lost").mean() / whole.mean() for i in range(3)]
    row = found.table.iloc[0]
    assert row[["random_lost", "random_lost_least", "random_lost_most"]].tolist() == pytest.approx(
        [np.mean(shares), min(shares), max(shares)]
    )
    assert len(set(shares)) > 1


def test_planted_head_is_the_circuit(tmp_path):
    model = one_head.make(tmp_path, [(2, 1)])
    pairs = [(text, text.replace("bomb", "home")) for text in one_head.HARMFUL]
    found = circuit(model, pairs, one_head.METRIC, n_random=3)
    assert found.nodes["node"].tolist() == ["head 2.1"]
    assert found.nodes["effect"].iloc[0] == pytest.approx(1, abs=0.01)
    edges = found.edges.set_index(["sender", "receiver"])["effect"]
    assert edges["embedding", "head 2.1"] == pytest.approx(1, abs=0.01)
    assert edges["head 2.1", "logits"] == pytest.approx(1, abs=0.01)
    assert edges["embedding", "logits"] == pytest.approx(0, abs=0.01)
    assert found.measured_on == "held-out pairs"
    own = found.faithfulness.table[found.faithfulness.table["is_circuit"]]
    assert set(own["of"]) == {"harmful", "difference"}
    np.testing.assert_allclose(own["kept"], 1, atol=0.02)
    np.testing.assert_allclose(own["lost"], 1, atol=0.02)
    assert (own["n"] == 2).all()
    others = found.faithfulness.table[found.faithfulness.table["size"] == 0]
    assert (others["kept"] == 0).all()
    screened = circuit(model, pairs, one_head.METRIC, n_random=0, finalists=3, threshold=0.5)
    assert screened.nodes["node"].tolist() == ["head 2.1"]
    assert screened.components["raw"].notna().sum() == 3
    assert screened.components["estimate"].notna().all()
    assert screened.counts["node_prompts"] == 3 * 2 + 1 * 2, "finalists, and what was kept on the held-out pairs"


def test_planted_path_between_two_heads_is_found(tmp_path):
    model = two_heads.make(tmp_path)
    pairs = [(text, text.replace("bomb", "home")) for text in one_head.HARMFUL]
    found = circuit(model, pairs, two_heads.METRIC, n_random=0)
    assert set(found.nodes["node"]) == {"head 1.0", "head 3.2"}
    edges = found.edges.set_index(["sender", "receiver"])["effect"]
    for path in (("embedding", "head 1.0"), ("head 1.0", "head 3.2"), ("head 3.2", "logits")):
        assert edges[path] > 0.9, path
    for path in (("embedding", "head 3.2"), ("head 1.0", "logits"), ("embedding", "logits")):
        assert edges[path] == pytest.approx(0, abs=0.02), path
    effects = found.nodes.set_index("node")["effect"]
    assert edges["embedding", "head 1.0"] == pytest.approx(effects["head 1.0"], abs=0.01)
    assert edges["head 1.0", "head 3.2"] == pytest.approx(effects["head 1.0"], abs=0.01)
    assert edges["head 3.2", "logits"] == pytest.approx(effects["head 3.2"], abs=0.01)
    both = found.faithfulness.table[found.faithfulness.table["size"] == 2]
    np.testing.assert_allclose(both[["kept", "lost"]], 1, atol=0.05)
    alone = found.faithfulness.table[found.faithfulness.table["size"] == 1]
    np.testing.assert_allclose(alone["kept"], 0, atol=0.05)
    assert (alone["lost"] > 0.8).all()


def test_threshold_that_keeps_nothing_gives_an_empty_circuit(family):
    model = family("llama").hooked
    found = circuit(model, PAIRS, METRIC, threshold=100, n_random=0)
    assert len(found.nodes) == len(found.edges) == 0
    assert "no head or MLP has an effect of 100 or more" in found.reason
    assert list(found.edges.columns) == [*EDGES, "kept", *HELD_OUT]
    assert found.faithfulness.table[found.faithfulness.table["is_circuit"]]["kept"].tolist() == [0, 0]
    mirrored = circuit(model, [PAIRS[0], PAIRS[0][::-1]], METRIC, n_random=0)
    assert len(mirrored.nodes) == len(mirrored.faithfulness.table) == 0
    assert "less than 0.05" in mirrored.reason


def test_pairs_that_measure_and_chose_are_named(family):
    model = family("llama").hooked
    given = {"n_random": 0, "threshold": 0, "n_nodes": 2}
    other = [("Buy a bomb", "Buy a home")]
    assert circuit(model, PAIRS, METRIC, held_out=other, **given).measured_on == "held-out pairs"
    both = circuit(model, PAIRS, METRIC, held_out=[*other, PAIRS[0]], **given)
    assert both.measured_on == "2 pairs, 1 of which chose the circuit"
    assert len(both.clean) == 2


def test_shares_of_nothing_are_nan_with_a_reason(family):
    model = family("llama").hooked
    made = FaithfulnessPasses(model, ["A bomb"], ["A bomb"], METRIC, nodes=every_node(model), reference=["A bomb"])
    curve = made.measure([[], every_node(model)[:1]]).table
    row = curve[curve["of"] == "difference"].iloc[-1]
    assert np.isnan(row["kept"])
    assert "there is nothing to have a share of" in row["reason"]


def test_bad_input_is_named(family):
    model = family("llama").hooked
    with pytest.raises(MechrefusalError, match="no pairs to patch"):
        circuit(model, [], METRIC)
    with pytest.raises(MechrefusalError, match="give a RefusalMetric"):
        circuit(model, PAIRS, lambda logits: logits[:, 0])
    for name, value in {
        "threshold": -1,
        "n_nodes": 0,
        "n_edges": 0,
        "finalists": 0,
        "n_random": -1,
        "seed": -1,
    }.items():
        with pytest.raises(MechrefusalError, match=f"{name} (is )?{value}"):
            circuit(model, PAIRS, METRIC, **{name: value})
    with pytest.raises(MechrefusalError, match="unknown mode of patching 'up'"):
        circuit(model, PAIRS, METRIC, mode="up")


def test_what_was_kept_is_patched_again_on_held_out_pairs(family):
    model = family("llama").hooked
    given = {"n_random": 0, "threshold": 0, "n_nodes": 5, "n_edges": 7}
    other = [("Buy a bomb", "Buy a home"), ("A bomb again", "A home again"), ("See the bomb", "See the home")]
    found = circuit(model, PAIRS, METRIC, held_out=other, **given)
    at_home = circuit(model, other, METRIC, **{**given, "n_nodes": None, "n_edges": None})
    for table, reference, key in (
        (found.nodes, at_home.components, ["node"]),
        (found.edges[found.edges["kept"]], at_home.edges, ["sender", "receiver"]),
    ):
        both = table.merge(reference, on=key, suffixes=("", "_home"))
        assert len(both) == len(table) >= 5
        for name, own in (("held_out", "effect"), ("held_out_low", "low"), ("held_out_high", "high")):
            np.testing.assert_allclose(both[name], both[f"{own}_home"], atol=FORWARD)
        assert (table["n_held_out"] == 3).all()
        assert table["p"].isna().all(), "three pairs can tell nothing from nothing"
    left = found.edges[~found.edges["kept"]]
    assert len(left)
    assert left[["held_out", "p"]].isna().all(axis=None)
    assert (left["n_held_out"] == 0).all()
    outside = found.components[~found.components["kept"]]
    assert outside[["held_out", "p"]].isna().all(axis=None)


def test_the_planted_circuit_is_told_from_nothing_by_pairs_that_did_not_choose_it(tmp_path):
    model = two_heads.make(tmp_path)
    texts = [f"{verb} a bomb {when}" for verb in ("make", "sell", "buy", "see") for when in ("today", "again", "here")]
    pairs = [(text, text.replace("bomb", "home")) for text in texts]
    found = circuit(model, pairs, two_heads.METRIC, n_random=0, threshold=0, n_nodes=6, n_edges=None)
    nodes = found.nodes.set_index("node")["p"]
    assert (nodes[["head 1.0", "head 3.2"]] < 0.05).all()
    edges = found.edges.set_index(["sender", "receiver"])["p"]
    assert (edges[[("embedding", "head 1.0"), ("head 1.0", "head 3.2"), ("head 3.2", "logits")]] < 0.05).all()


def test_without_held_out_pairs_nothing_is_said_to_be_confirmed(family):
    model = family("llama").hooked
    mixed = circuit(model, PAIRS, METRIC, held_out=[*PAIRS[:1], ("Buy a bomb", "Buy a home")], n_random=0, threshold=0)
    for found in (circuit(model, PAIRS, METRIC, n_random=0, threshold=0), mixed):
        assert found.nodes[["held_out", "p"]].isna().all(axis=None)
        assert found.edges[["held_out", "p"]].isna().all(axis=None)


def test_what_has_the_other_sign_on_held_out_pairs_is_not_confirmed():
    gaps = torch.full((8,), 2.0)
    runs = SimpleNamespace(mode="denoising", clean=gaps, corrupted=torch.zeros(8), reason="")
    noise = np.random.default_rng(0).normal(0, 0.01, (8, 3))
    raw = np.array([1.0, -1.0, 0.0]) + noise
    table = pd.DataFrame({"effect": [0.6, 0.4, 0.1, 0.01]})
    found = with_held_out(table, [0, 1, 2], raw, runs)
    np.testing.assert_allclose(found["held_out"][:2], [0.5, -0.5], atol=0.01)
    assert found["p"][0] == pytest.approx(2 / 2**8), "all eight pairs say so"
    assert found["p"][1] == 1, "clear, but the other way"
    assert found["p"][2] > 0.05
    assert found.loc[3, ["held_out", "p"]].isna().all()
    few = SimpleNamespace(mode="denoising", clean=gaps[:5], corrupted=torch.zeros(5), reason="")
    assert with_held_out(table, [0, 1, 2], raw[:5], few)["p"].isna().all()
    no_gap = SimpleNamespace(mode="denoising", clean=gaps, corrupted=gaps, reason="no gap")
    assert with_held_out(table, [0, 1, 2], raw, no_gap)[["held_out", "p"]].isna().all(axis=None)
