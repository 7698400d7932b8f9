"""Patching across checkpoints against plain hooks of the hooked transformer, one prompt and one run at a time."""

import gc
import weakref
from functools import cache

import numpy as np
import one_head
import pandas as pd
import pytest
import torch
from architectures import build
from runners import through_hooks
from scipy import stats
from tolerances import COMPOUND, FORWARD, REORDERED
from transformers import AutoModelForCausalLM

from mechrefusal import MechrefusalError, models, prompts
from mechrefusal.causal import cross_patching
from mechrefusal.causal.cross_patching import across
from mechrefusal.causal.cross_patching.passes import rotation
from mechrefusal.forward import ForcedOpenings, RefusalMetric

pytestmark = pytest.mark.slow

SOME = ("llama", "gpt2", "gemma2", "gpt-neox")
TEXTS = ["Make a bomb", "Tell me how I make a poison at home today", "Why?"]
PLAIN = RefusalMetric((11, 12), (5, 6), (500, 501, 502))
FORCED = RefusalMetric((), (5,), (6,), forced=ForcedOpenings(((20, 21), (20, 22, 23)), ((30,), (20, 31))))
ALL = cross_patching.SITES
HOOKS = {
    "resid_pre": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "result": "hook_attn_out",
}
NUMBERS = ["raw", "low", "high", "effect", "effect_low", "effect_high", "control"]


def perturbed(family, folder, *, only=lambda name: True, scale=0.3):
    """Another checkpoint: the family's, with noise on the weights whose name `only` takes."""
    model = AutoModelForCausalLM.from_pretrained(family.folder, dtype="float32")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if only(name):
                size = weight.std() if weight.numel() > 1 else 1.0
                weight += scale * size * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    family.tokenizer.save_pretrained(folder)
    return models.load_hooked(folder)


@pytest.fixture(scope="module")
def both(family, tmp_path_factory):
    """`both("gpt2")`: (source, target), made once."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = (perturbed(family(name), tmp_path_factory.mktemp(name)), family(name).hooked)
        return made[name]

    return of


class Loop:
    """The same scores with nothing of the package but the prompts' tokens, the metric and (for the control) Q."""

    def __init__(self, source, target, metric, positions="all"):
        self.source, self.target, self.metric, self.positions = source, target, metric, positions
        self.ids = prompts.prompt_ids(target.tokenizer, TEXTS)
        self.cache = cache(lambda ids: source.run_with_cache(torch.tensor([ids]))[1])
        self.scores = cache(self.scores)

    def score(self, ids, hooks=None, model=None):
        logits = []
        for run in self.metric.runs:
            tokens = torch.tensor([[*ids, *run]])
            self.first = 0 if self.positions == "all" else len(ids) - 1
            one = self.target if model is None else model
            with one.hooks(fwd_hooks=hooks(self.cache((*ids, *run))) if hooks else []):
                logits.append(one(tokens, return_type="logits")[:, len(ids) - 1 :])
        return self.metric.of_runs(logits).item()

    def hooks(self, source, site, layer, head, turn):
        heads, d_head = self.target.cfg.n_heads, self.target.cfg.d_head
        own_z = []

        def split(z):
            return z.reshape(1, -1, heads, d_head)

        def put(activation, hook):
            edited, first, given = activation.clone(), self.first, source[hook.name]
            if site == "result":
                w = [m.W_O[layer, head] for m in (self.source, self.target)]
                z = split(source[f"blocks.{layer}.attn.hook_z"])[0, :, head]
                edited[0, first:] += ((z @ w[0] - own_z[0] @ w[1]) @ turn)[first:]
            elif site == "z":
                new, own = split(edited)[0, first:, head], split(given)[0, first:, head]
                split(edited)[0, first:, head] = new + (own - new) @ turn
            else:
                edited[0, first:] += (given[0, first:] - edited[0, first:]) @ turn
            return edited

        def see(z, hook):
            own_z[:] = [split(z)[0, :, head]]

        watch = [(f"blocks.{layer}.attn.hook_z", see)] if site == "result" else []
        return [*watch, (f"blocks.{layer}.{HOOKS[site]}", put)]

    @torch.no_grad()
    def change(self, site, layer, head, *, control=None):
        width = self.target.cfg.d_head if site == "z" else self.target.cfg.d_model
        turn = torch.eye(width) if control is None else rotation(width, 0, control)
        return np.array(
            [self.score(ids, lambda source: self.hooks(source, site, layer, head, turn)) for ids in self.ids]
        ) - self.scores(self.target)

    @torch.no_grad()
    def scores(self, model):
        return np.array([self.score(ids, model=model) for ids in self.ids])


def check(table, loop, rows):
    source, target = loop.scores(loop.source), loop.scores(loop.target)
    assert np.allclose([table.source_score[0], table.target_score[0]], [source.mean(), target.mean()], atol=FORWARD)
    for row in rows:
        raw = loop.change(row.site, row.layer, row.head)
        interval = stats.ttest_1samp(raw, 0).confidence_interval()
        assert row.raw == pytest.approx(raw.mean(), abs=FORWARD), row
        assert (row.low, row.high) == pytest.approx(tuple(interval), abs=2 * FORWARD)
        assert row.effect == pytest.approx(raw.mean() / (source - target).mean(), abs=3 * COMPOUND)
        assert row.control == pytest.approx(loop.change(row.site, row.layer, row.head, control=0).mean(), abs=FORWARD)
        assert row.n == len(TEXTS)
        assert row.reason == ""
        assert np.abs(raw).max() > 1e-3, "a patch that does nothing shows nothing"


def some(table):
    """Two layers, and of heads one a layer."""
    layers, heads = {1: 2, 3: 0}, cross_patching.HEAD_SITES
    found = [r for r in table.itertuples() if r.layer in layers and (r.site not in heads or layers[r.layer] == r.head)]
    return [row for row in found if not row.reason]


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("metric", [PLAIN, FORCED], ids=["plain", "forced"])
@pytest.mark.parametrize("name", SOME)
def test_numbers_are_those_of_plain_hooks(both, name, metric, positions):
    source, target = both(name)
    table = cross_patching.patch_across(
        source, target, TEXTS, metric, sites=ALL, layers=[1, 3], positions=positions, draws=1
    ).table
    assert len(table) == 2 * (3 + 2 * 4)
    rows = some(table)
    assert len(rows) == 2 * (4 if name == "gemma2" else 5)
    check(table, Loop(source, target, metric, positions), rows)


def test_a_normed_attention_has_no_result_of_a_head(both):
    table = cross_patching.patch_across(*both("gemma2"), TEXTS, PLAIN, sites=("result", "z"), layers=[1]).table
    result = table[table["site"] == "result"]
    assert result[NUMBERS].isna().all(axis=None)
    assert result["reason"].str.contains("normed before it is added").all()
    assert table[table["site"] == "z"]["raw"].notna().all()


@pytest.mark.parametrize("name", SOME)
def test_a_checkpoint_in_itself_changes_nothing(family, name):
    model = family(name).hooked
    table = cross_patching.patch_across(model, model, TEXTS, FORCED, sites=ALL).table
    known = table[~table["reason"].str.contains("normed")]
    assert (known[["raw", "low", "high", "control"]] == 0).all(axis=None)
    assert known["effect"].isna().all()
    assert known["reason"].str.contains("differ by 0 nats, less than 0.05").all()
    last = cross_patching.patch_across(model, model, TEXTS, FORCED, sites=("resid_pre",), positions="last").table
    assert last["raw"].abs().max() < FORWARD


def test_layer_0_carries_the_embeddings_and_all_layers_carry_the_rest(family, tmp_path):
    blocks_only = perturbed(family("llama-untied"), tmp_path, only=lambda name: ".layers." in name, scale=0.6)
    target = family("llama-untied").hooked
    table = cross_patching.patch_across(blocks_only, target, TEXTS, PLAIN, sites=("resid_pre",), draws=0).table
    assert table["raw"][0] == 0, "the embeddings are the same"
    assert table["raw"][1:].abs().min() > 1e-2
    assert table["control"].isna().all()
    together = cross_patching.cumulative(blocks_only, target, TEXTS, PLAIN).table
    every = together[together["k"] == 4]
    gap = (table.source_score - table.target_score)[0]
    assert abs(gap) > 0.05
    assert np.allclose(every["raw"], gap, atol=FORWARD), "with everything in, it is the source"
    assert np.allclose(every[["effect", "effect_low", "effect_high"]], 1, atol=2 * COMPOUND)
    first = together[together["order"] == "first"]["raw"].to_numpy()
    assert np.allclose(first[:3], table["raw"][1:], atol=FORWARD), "what k layers wrote is what layer k reads"


def test_every_value_is_kept(both):
    """Of each prompt, patch and draw: against plain hooks, and the intervals against SciPy's."""
    found = cross_patching.patch_across(*both("llama"), TEXTS, PLAIN, sites=("mlp_out", "z"), layers=[1, 2], draws=2)
    loop = Loop(*both("llama"), PLAIN)
    assert found.observations.axes == ("site", "layer", "head")
    for site, layer, head in (("mlp_out", 2, -1), ("z", 1, 3)):
        named = {"site": site, "layer": layer, "head": head}
        raw = loop.change(site, layer, head)
        np.testing.assert_allclose(found.observations.of(**named), raw, atol=FORWARD)
        for draw in range(2):
            turned = loop.change(site, layer, head, control=draw)
            np.testing.assert_allclose(found.controls.of(draw=draw, **named), turned, atol=FORWARD)
        estimate, interval = found.interval(**named), stats.ttest_1samp(raw, 0).confidence_interval()
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((raw.mean(), *interval), abs=2 * FORWARD)
        gap = (loop.scores(loop.source) - loop.scores(loop.target)).mean()
        assert found.effect(**named).value == pytest.approx(raw.mean() / gap, abs=3 * COMPOUND)
    largest = found.table.loc[found.table["raw"].abs().idxmax()]
    assert found.top(1)[["site", "layer", "head"]].iloc[0].tolist() == largest[["site", "layer", "head"]].tolist()
    both_ways = cross_patching.BothDirections({("a", "b"): found, ("b", "a"): found})
    assert both_ways.interval(source="b", **named) == found.interval(**named)
    assert both_ways.table["source"].tolist() == ["a"] * 10 + ["b"] * 10


def test_cumulative_is_plain_hooks(both):
    source, target = both("gpt2")
    table = cross_patching.cumulative(source, target, TEXTS, PLAIN).table.set_index(["order", "k"])
    loop = Loop(source, target, PLAIN)

    def change(layers):
        names = {f"blocks.{layer}.{hook}" for layer in layers for hook in ("hook_attn_out", "hook_mlp_out")}
        scores = [
            loop.score(ids, lambda cached: [(name, lambda _, hook: cached[hook.name]) for name in names])
            for ids in loop.ids
        ]
        return np.mean(scores - loop.scores(target))

    with torch.no_grad():
        assert table.raw["first", 2] == pytest.approx(change([0, 1]), abs=FORWARD)
        assert table.raw["last", 3] == pytest.approx(change([1, 2, 3]), abs=FORWARD)


# What is compared


@pytest.mark.parametrize("name", ["llama-untied", "qwen2", "gemma2", "gpt2", "gpt-neox"])
def test_activations_are_those_of_the_hugging_face_model(family, name):
    """RMSNorm: as they are. LayerNorm: less their mean over d_model. z: less the bias of the values."""
    hf, layer = family(name).hf, 2
    taken = cross_patching.keep_activations(family(name).hooked, TEXTS[:1], PLAIN, sites=ALL)
    own = taken.places[0, 0]
    seen = {}

    def keep(key, index=0):
        def hook(module, args, kwargs, output=None):
            given = output if output is not None else (args[0] if args else kwargs["hidden_states"])
            seen[key] = (given[0] if isinstance(given, tuple) else given).detach().reshape(len(own), -1)

        return hook

    block = next(m for n, m in hf.named_modules() if n.endswith((f"layers.{layer}", f"h.{layer}")))
    parts = dict(block.named_modules())
    attention = next(parts[n] for n in ("self_attn", "attn", "attention") if n in parts)
    out = next(m for n, m in attention.named_modules() if n in ("o_proj", "c_proj", "dense"))
    normed = name == "gemma2"
    handles = [
        block.register_forward_pre_hook(keep("resid_pre"), with_kwargs=True),
        (parts["post_attention_layernorm"] if normed else attention).register_forward_hook(
            keep("attn_out"), with_kwargs=True
        ),
        (parts["post_feedforward_layernorm"] if normed else parts["mlp"]).register_forward_hook(
            keep("mlp_out"), with_kwargs=True
        ),
        out.register_forward_pre_hook(keep("z"), with_kwargs=True),
    ]
    with torch.no_grad():
        hf(torch.tensor([[*taken.ids[0], *PLAIN.opening]]))
    for handle in handles:
        handle.remove()
    centred = name in ("gpt2", "gpt-neox")
    for site in ("resid_pre", "attn_out", "mlp_out"):
        expected = seen[site] - seen[site].mean(-1, keepdim=True) if centred else seen[site]
        torch.testing.assert_close(taken.values[layer, site][own], expected, atol=2 * FORWARD, rtol=COMPOUND)
    off = seen["z"] - taken.values[layer, "z"][own].flatten(1)
    if name in ("qwen2", "gpt2", "gpt-neox"):  # the same at every token
        assert off.abs().max() > 0.01
    else:
        assert off.abs().max() < FORWARD
    assert (off - off[:1]).abs().max() < FORWARD


def test_rotations_keep_lengths_and_angles():
    q = rotation(16, 0, 0).double()
    assert torch.allclose(q @ q.T, torch.eye(16, dtype=torch.float64), atol=REORDERED)
    assert not torch.allclose(q, rotation(16, 1, 0).double(), atol=0.1)
    assert not torch.allclose(q, rotation(16, 0, 1).double(), atol=0.1)


def test_draws_of_the_control(both):
    args = (*both("llama"), TEXTS, PLAIN)

    def patched(n, seed=0):
        return cross_patching.patch_across(*args, sites=("mlp_out",), layers=[2], draws=n, seed=seed).table.iloc[0]

    one, three, none = patched(1), patched(3), patched(0)
    assert one.control_size == pytest.approx(abs(one.control))
    assert three.control_size >= abs(three.control)
    assert patched(1, seed=1).control != one.control
    assert none[["control", "control_low", "control_size"]].isna().all()
    assert one.raw == three.raw == none.raw
    loop = Loop(*both("llama"), PLAIN)
    means = [loop.change("mlp_out", 2, -1, control=draw).mean() for draw in range(3)]
    assert three.control == pytest.approx(np.mean(means), abs=FORWARD)
    assert three.control_size == pytest.approx(np.sqrt(np.mean(np.square(means))), abs=FORWARD)


# A planted head


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Without the head that carries refusal, and with it."""
    return tuple(one_head.make(tmp_path_factory.mktemp("planted"), heads) for heads in ([], [(2, 1)]))


def carried(table, site):
    return table[table["site"] == site].set_index(["layer", "head"])["effect"]


def test_a_planted_head_carries_refusal_into_the_base_and_out_of_it(planted):
    base, trained = planted
    pair = {"base": base, "trained": trained}
    table = cross_patching.both_directions(pair, one_head.HARMFUL, one_head.METRIC, sites=ALL).table
    for source, target in (("trained", "base"), ("base", "trained")):
        found = table[(table["source"] == source) & (table["target"] == target)]
        gap = (found["source_score"] - found["target_score"]).iloc[0]
        assert gap * (1 if source == "trained" else -1) > 1
        heads = carried(found, "result")
        assert heads[2, 1] == pytest.approx(1, abs=0.1)
        assert heads.drop((2, 1)).abs().max() < 0.1
        assert carried(found, "attn_out").round(1).tolist() == [0, 0, 1, 0, 0]
        assert carried(found, "mlp_out").abs().max() < 0.1
        assert carried(found, "resid_pre").round(1).tolist() == [0, 0, 0, 1, 1]
        planted_row = found[(found["site"] == "result") & (found["layer"] == 2) & (found["head"] == 1)].iloc[0]
        # Not zero: what is large shrinks everything else in the norm after it, whatever its direction.
        assert abs(planted_row["control"]) < 0.5 * abs(planted_row["raw"])
    into_base = table[table["source"] == "trained"]
    assert carried(into_base, "z").abs().max() < 0.1, "the base's W_O writes nothing of what the head reads"


def test_z_carries_what_a_head_reads(planted, tmp_path):
    """Two checkpoints that differ in what head (2, 1) reads, and not in W_O."""
    trained = planted[1]
    deaf = AutoModelForCausalLM.from_pretrained(trained.original_model.config._name_or_path)
    with torch.no_grad():
        deaf.model.layers[2].self_attn.v_proj.weight[0, one_head.MARK] = 0
    deaf.save_pretrained(tmp_path)
    trained.tokenizer.save_pretrained(tmp_path)
    table = cross_patching.patch_across(
        trained, models.load_hooked(tmp_path), one_head.HARMFUL, one_head.METRIC, sites=("z", "result")
    ).table
    for site in ("z", "result"):
        heads = carried(table, site)
        assert heads[2, 1] == pytest.approx(1, abs=0.1)
        assert heads.drop((2, 1)).abs().max() < 0.1


# Memory, and other ways to the same numbers


def same(found, expected):
    pd.testing.assert_frame_equal(found, expected, atol=FORWARD, rtol=COMPOUND)


def test_taken_activations_need_no_source_and_give_the_same(both, family, tmp_path):
    source, target = both("llama")
    expected = cross_patching.patch_across(source, target, TEXTS, FORCED).table
    taken = cross_patching.keep_activations(source, TEXTS, FORCED, sites=("resid_pre", "attn_out", "mlp_out", "z"))
    same(cross_patching.patch_across(taken, target).table, expected)
    fewer = cross_patching.patch_across(taken, target, TEXTS, FORCED, sites=("z",), layers=[2]).table
    rows = expected[(expected["site"] == "z") & (expected["layer"] == 2)].reset_index(drop=True)
    same(fewer, rows)
    n = len({(i, t) for i, ids in enumerate(taken.ids) for t in range(len(ids))})
    assert 0 < taken.n_bytes <= 4 * 4 * 4 * 64 * (n + 3 * 8)
    released = perturbed(family("llama"), tmp_path)
    kept, gone = cross_patching.keep_activations(released, TEXTS, FORCED, sites=ALL), weakref.ref(released)
    del released
    gc.collect()
    assert gone() is None
    assert kept.n_bytes > taken.n_bytes


def test_prompts_in_parts_give_the_same(both, monkeypatch):
    source, target = both("llama")
    whole = cross_patching.patch_across(source, target, TEXTS, PLAIN).table
    sizes = []
    original = cross_patching.keep_activations

    def counting(model, texts, *args, **kwargs):
        sizes.append(len(texts))
        return original(model, texts, *args, **kwargs)

    monkeypatch.setattr(across, "keep_activations", counting)
    same(cross_patching.patch_across(source, target, TEXTS, PLAIN, memory=300_000).table, whole)
    assert len(sizes) > 1
    assert sum(sizes) == 3


def test_through_hooks_and_under_hooks_of_the_caller(both, monkeypatch):
    source, target = both("gpt-neox")
    sites = ("resid_pre", "mlp_out", "result")
    expected = cross_patching.patch_across(source, target, TEXTS, PLAIN, sites=sites, layers=[1]).table
    last = cross_patching.patch_across(source, target, TEXTS, PLAIN, sites=sites, layers=[1], positions="last").table
    seen = []
    hook = ("blocks.3.hook_resid_pre", lambda activation, hook: seen.append(1))
    with target.hooks(fwd_hooks=[hook]):  # source by trees, target through hooks
        same(cross_patching.patch_across(source, target, TEXTS, PLAIN, sites=sites, layers=[1]).table, expected)
    assert seen
    through_hooks(monkeypatch)
    same(
        cross_patching.patch_across(source, target, TEXTS, PLAIN, sites=sites, layers=[1], positions="last").table, last
    )


def test_a_function_of_the_logits_is_a_metric(both):
    source, target = both("llama")
    metric = RefusalMetric((), (5, 6), (500, 501, 502))
    expected = cross_patching.patch_across(source, target, TEXTS, metric, sites=("attn_out",)).table
    same(
        cross_patching.patch_across(source, target, TEXTS, lambda x: metric.of(x), sites=("attn_out",)).table, expected
    )
    with pytest.raises(MechrefusalError, match="does not depend on the logits"):
        cross_patching.keep_activations(source, TEXTS, lambda x: torch.zeros(len(x)))


def test_both_directions_load_one_checkpoint_at_a_time(both, family, tmp_path):
    source, target = both("llama")
    there = cross_patching.patch_across(source, target, TEXTS, PLAIN, sites=("mlp_out",)).table
    back = cross_patching.patch_across(target, source, TEXTS, PLAIN, sites=("mlp_out",)).table
    alive, most = weakref.WeakSet(), []
    perturbed(family("llama"), tmp_path)

    def loading(folder):
        def load():
            model = models.load_hooked(folder)
            alive.add(model)
            most.append(len(alive))
            return model

        return load

    pair = {"trained": loading(tmp_path), "base": loading(family("llama").folder)}
    table = cross_patching.both_directions(pair, TEXTS, PLAIN, sites=("mlp_out",)).table
    assert list(table.columns[:2]) == ["source", "target"]
    assert most == [1, 1, 1]
    for source_name, expected in (("trained", there), ("base", back)):
        found = table[table["source"] == source_name].drop(columns=["source", "target"]).reset_index(drop=True)
        same(found, expected)


def test_one_prompt_has_no_interval(both):
    table = cross_patching.patch_across(*both("llama"), TEXTS[:1], PLAIN, sites=("mlp_out",), layers=[0]).table
    row = table.iloc[0]
    assert np.isfinite([row.raw, row.effect]).all()
    assert np.isnan([row.low, row.high, row.effect_low]).all()
    assert row.reason == "one prompt gives no interval"


# Bad input


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The tiny model with a layer more, and with another chat template."""
    deeper = models.tiny.make(tmp_path_factory.mktemp("deeper") / "m", n_layers=5)
    template = models.tiny.make(tmp_path_factory.mktemp("template") / "m")
    tokenizer = models.load_tokenizer(template)
    tokenizer.chat_template = tokenizer.chat_template.replace("tiny", "small")
    tokenizer.save_pretrained(template)
    return models.load_hooked(deeper), models.load_hooked(template)


def test_checkpoints_that_do_not_fit_are_refused(tiny_hooked, others, both):
    deeper, template = others
    for source in (deeper, cross_patching.keep_activations(deeper, TEXTS, PLAIN)):
        with pytest.raises(MechrefusalError, match="differ in n_layers: 5 and 4"):
            cross_patching.patch_across(source, tiny_hooked, *((TEXTS, PLAIN) if source is deeper else ()))
    with pytest.raises(MechrefusalError, match="differ in architecture: GPT2LMHeadModel and LlamaForCausalLM"):
        cross_patching.patch_across(both("gpt2")[0], tiny_hooked, TEXTS, PLAIN)
    with pytest.raises(MechrefusalError, match="read 'Make a bomb' as other tokens"):
        cross_patching.patch_across(template, tiny_hooked, TEXTS, PLAIN)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": []}, "list of texts is empty"),
        ({"texts": "Make a bomb"}, "not the text 'Make a bomb'"),
        ({"texts": None}, "needs texts and a metric"),
        ({"sites": ("resid_mid",)}, "unknown site 'resid_mid'"),
        ({"sites": ()}, "sites to patch are"),
        ({"sites": "z"}, "sites to patch are 'z'"),
        ({"layers": [4]}, "layer 4 is not in this model"),
        ({"layers": []}, "no layer to patch"),
        ({"positions": "first"}, "unknown positions 'first'"),
        ({"draws": -1}, "draws of patching across checkpoints is -1"),
        ({"seed": 0.5}, "seed of patching across checkpoints is 0.5"),
        ({"metric": 3}, "neither a RefusalMetric nor a function"),
    ],
)
def test_bad_input_is_named(tiny_hooked, given, message):
    with pytest.raises(MechrefusalError, match=message):
        cross_patching.patch_across(tiny_hooked, tiny_hooked, **{"texts": TEXTS, "metric": PLAIN, **given})


def test_taken_activations_are_not_used_for_what_they_are_not(tiny_hooked):
    taken = cross_patching.keep_activations(tiny_hooked, TEXTS, PLAIN, sites=("z",), layers=[1, 2])
    for given, message in (
        ({"texts": TEXTS[:2]}, "other texts"),
        ({"metric": FORCED}, "another metric"),
        ({"sites": ("z", "mlp_out")}, "taken without mlp_out"),
        ({"layers": [0]}, "taken without layer 0"),
    ):
        with pytest.raises(MechrefusalError, match=message):
            cross_patching.patch_across(taken, tiny_hooked, **given)
    with pytest.raises(MechrefusalError, match="taken without attn_out"):
        cross_patching.cumulative(taken, tiny_hooked)
    with pytest.raises(MechrefusalError, match=r"more than the 0\.0 MiB allowed; give fewer prompts"):
        cross_patching.keep_activations(tiny_hooked, TEXTS, PLAIN, memory=1000)
    with pytest.raises(MechrefusalError, match="between two checkpoints; 1 were given"):
        cross_patching.both_directions({"base": tiny_hooked}, TEXTS, PLAIN)


def test_activations_that_are_not_finite_are_named(tmp_path):
    folder, words = tmp_path, models.tiny.tokenizer()
    build("llama-untied", len(words)).save_pretrained(folder)
    words.save_pretrained(folder)
    model = models.load_hooked(folder)
    with torch.no_grad():
        model.blocks[2].mlp.W_out.fill_(float("nan"))
    with pytest.raises(MechrefusalError, match="mlp_out of layer 2 holds NaN"):
        cross_patching.keep_activations(model, TEXTS, PLAIN, sites=("mlp_out", "attn_out"))


def test_tables_name_every_column(both):
    table = cross_patching.patch_across(*both("llama"), TEXTS, PLAIN).table
    assert list(table.columns) == [
        "site", "layer", "head", "raw", "low", "high", "effect", "effect_low", "effect_high",
        "control", "control_low", "control_high", "control_size", "source_score", "target_score", "n", "reason",
        "p",
    ]  # fmt: skip
    assert list(dict.fromkeys(table["site"])) == list(cross_patching.DEFAULT_SITES)
    assert len(table) == 4 * (3 + 4)
