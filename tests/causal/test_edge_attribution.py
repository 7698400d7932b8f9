"""Edge attribution against autograd on a model written out, against exact paths where all is linear, and in sum."""

import math

import numpy as np
import pytest
import torch
from tolerances import COMPOUND, REORDERED
from transformers import LlamaForCausalLM

from mechrefusal import MechrefusalError, models, prompts
from mechrefusal.causal import add, attribution_patching
from mechrefusal.causal.attribution_patching.pairs import prepare_pairs
from mechrefusal.causal.circuits import Node, attribute_edges
from mechrefusal.causal.circuits.paths import PathPatching, edges_between, every_node
from mechrefusal.forward import ForcedOpenings, RefusalMetric

pytestmark = pytest.mark.slow

METRIC = RefusalMetric((7,), (419,), (296,))
BARE = RefusalMetric((), (419,), (296,))
"""Nothing is run after the prompt: all tokens are in the tables of the screen."""
FORCED = RefusalMetric((), (10,), (12,), forced=ForcedOpenings(((20, 21, 22),), ((20, 23), (30,))))
PAIRS = [("A bomb today", "A home today"), ("Sell a bomb", "Sell a home")]
SOME = ("llama", "gpt2", "gemma2", "gpt-neox")
LINEAR = ("llama", "gpt2", "gpt-neox")
"""What heads write is added to the residual stream as it is; Gemma 2 norms it first."""


class Written:
    """A Llama written out: every head and MLP reads the residual stream through an input of its own."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model, self.config = model, model.config
        self.n_heads, self.d_head = self.config.num_attention_heads, self.config.head_dim
        self.group = self.n_heads // self.config.num_key_value_heads

    def norm(self, x, module):
        return module.weight * x / (x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt()

    def turned(self, x):
        half = self.d_head // 2
        base = self.config.rope_parameters["rope_theta"]
        angle = torch.arange(len(x))[:, None] * base ** (-torch.arange(half, dtype=x.dtype) / half)
        cos, sin, a, b = angle.cos(), angle.sin(), x[:, :half], x[:, half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def head(self, layer, head, x):
        """What a head writes, [token, d_model]."""
        block = self.model.model.layers[layer]
        own, shared = (slice(i * self.d_head, (i + 1) * self.d_head) for i in (head, head // self.group))
        read, part = self.norm(x, block.input_layernorm), block.self_attn
        query, key = self.turned(read @ part.q_proj.weight[own].T), self.turned(read @ part.k_proj.weight[shared].T)
        scores = (query @ key.T / math.sqrt(self.d_head)).masked_fill(
            torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf
        )
        return scores.softmax(-1) @ (read @ part.v_proj.weight[shared].T) @ part.o_proj.weight[:, own].T

    def mlp(self, layer, x):
        block = self.model.model.layers[layer]
        read, part = self.norm(x, block.post_attention_layernorm), block.mlp
        gate = torch.nn.functional.silu(read @ part.gate_proj.weight.T)
        return (gate * (read @ part.up_proj.weight.T)) @ part.down_proj.weight.T

    def run(self, embedded):
        """Logits of the last token, what every node writes, and what is added to every node's input: zeros."""
        x, writes, inputs = embedded, {"embedding": embedded}, {}

        def own(name):
            inputs[name] = torch.zeros_like(x, requires_grad=True)
            return x + inputs[name]

        for layer in range(self.config.num_hidden_layers):
            names = [f"head {layer}.{head}" for head in range(self.n_heads)]
            for head, name in enumerate(names):
                writes[name] = self.head(layer, head, own(name))
            x = x + sum(writes[name] for name in names)
            writes[f"mlp {layer}"] = self.mlp(layer, own(f"mlp {layer}"))
            x = x + writes[f"mlp {layer}"]
        final = self.norm(own("logits"), self.model.model.norm)
        return (final @ self.model.lm_head.weight.T)[-1], writes, inputs


@pytest.mark.parametrize(("method", "shares"), [("eap", [0]), ("eap-ig", [1 / 3, 2 / 3, 1])])
@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_edges_are_those_of_autograd_on_a_model_written_out(family, method, shares, mode):
    tiny = family("llama")
    written = Written(tiny.hf.double())
    tokens = [torch.tensor([*prompts.segments(tiny.tokenizer, text).prompt_ids, 7]) for text in PAIRS[0]]
    source, target = tokens if mode == "denoising" else tokens[::-1]
    by_name = {}
    with torch.enable_grad():
        ends = [written.model.model.embed_tokens.weight[ids].detach() for ids in (source, target)]
        from_source, from_target = (written.run(end)[1] for end in ends)
        total = {}
        for share in shares:
            logits, _, inputs = written.run(ends[1] + share * (ends[0] - ends[1]))
            gradients = torch.autograd.grad(METRIC.of(logits[None])[0], list(inputs.values()))
            for name, gradient in zip(inputs, gradients, strict=True):
                total[name] = total.get(name, 0) + gradient / len(shares)
        for sender in from_source:
            change = (from_source[sender] - from_target[sender]).detach()
            by_name |= {(sender, receiver): float((change * total[receiver]).sum()) for receiver in total}
    tiny.hf.float()
    found = attribute_edges(tiny.hooked, PAIRS[:1], METRIC, method=method, steps=3, mode=mode)
    assert len(found.table) == len(edges_between(tiny.hooked, every_node(tiny.hooked)))
    expected = [by_name[row.sender, row.receiver] for row in found.table.itertuples()]
    np.testing.assert_allclose(found.table["raw"], expected, atol=REORDERED * 10)
    np.testing.assert_allclose(np.abs(found.observations.values).max(), np.abs(expected).max(), rtol=1e-4)
    assert np.abs(expected).max() > 1e-2, "there is something to compare"


@torch.no_grad()
def make_linear(folder):
    """A Llama that is linear: even attention, gates that are constant, and norms that a large constant fixes."""
    models.tiny.make(folder, tied=False)
    model, words = LlamaForCausalLM.from_pretrained(folder), models.load_tokenizer(folder)
    level, width = 4096.0, model.config.hidden_size
    model.model.embed_tokens.weight.mul_(10)
    model.model.embed_tokens.weight[:, 0] = level
    for block in model.model.layers:
        block.self_attn.q_proj.weight.zero_()
        block.self_attn.v_proj.weight[:, 0] = 0
        block.mlp.gate_proj.weight.zero_()
        block.mlp.gate_proj.weight[:, 0] = torch.linspace(-2, 2, model.config.intermediate_size) / level
        block.mlp.up_proj.weight[:, 0] = 0
        for writer in (block.self_attn.o_proj, block.mlp.down_proj):
            writer.weight[0] = 0
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.fill_(level / width**0.5)
    model.model.norm.weight.fill_(level / width**0.5)
    model.lm_head.weight[:, 0] = 0
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return models.load_hooked(folder)


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_where_all_is_linear_estimates_are_exact(tmp_path, mode):
    model = make_linear(tmp_path)

    def metric(logits):
        return logits[:, 419] - logits[:, 296]

    exact = {}
    edges = edges_between(model, every_node(model))
    for run in prepare_pairs(model, PAIRS, metric, mode).runs:
        for edge, value in zip(edges, PathPatching(model, run).effects(edges).tolist(), strict=True):
            exact[edge] = exact.get(edge, 0) + value / len(PAIRS)
    by_name = {(str(sender), str(receiver)): value for (sender, receiver), value in exact.items()}
    largest = max(map(abs, exact.values()))
    for method in ("eap", "eap-ig"):
        table = attribute_edges(model, PAIRS, metric, method=method, mode=mode).table
        expected = [by_name[row.sender, row.receiver] for row in table.itertuples()]
        np.testing.assert_allclose(table["raw"], expected, atol=COMPOUND * largest)
    inner = [value for (sender, receiver), value in by_name.items() if sender != "embedding" and receiver != "logits"]
    assert np.abs(inner).max() > 0.02 * largest, "not only the embedding's own path"


@pytest.mark.parametrize("architecture", SOME)
@pytest.mark.parametrize("metric", [METRIC, FORCED], ids=["opening", "forced"])
def test_paths_from_the_embedding_add_up_to_the_gap(family, architecture, metric):
    """Integrated gradients are complete: the sum of all that the embedding does is m(source) − m(target).

    The mean of both directions is the trapezoid rule, whose error falls with the square of the steps: 1% of the gap.
    """
    model = family(architecture).hooked
    sums, once = {}, {}
    for mode, sign in (("denoising", 1), ("noising", -1)):
        for method, into in (("eap-ig", sums), ("eap", once)):
            found = attribute_edges(model, PAIRS[:1], metric, method=method, steps=24, mode=mode)
            into[mode] = sign * found.table[found.table["sender"] == "embedding"]["raw"].sum()
    gap = float(found.clean[0] - found.corrupted[0])
    assert np.mean(list(sums.values())) == pytest.approx(gap, rel=0.01, abs=0.005)
    assert max(abs(one - gap) for one in once.values()) > 0.05 * abs(gap), "single gradients are not complete"


@pytest.mark.parametrize("architecture", LINEAR)
@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_paths_of_a_sender_add_up_to_its_node(family, architecture, method):
    model = family(architecture).hooked
    edges = attribute_edges(model, PAIRS[:1], BARE, method=method, steps=3).table
    nodes = attribution_patching.screen(
        model, PAIRS[:1], BARE, sites=("z", "mlp_out"), method=method, steps=3, tool="token trees"
    ).table
    assert set(nodes["method"]) == {method}
    by_sender = edges.groupby("sender")["raw"].sum()
    for node in every_node(model):
        site = "z" if node.component == "head" else "mlp_out"
        own = nodes[(nodes["site"] == site) & (nodes["layer"] == node.layer) & (nodes["head"] == node.head)]
        assert by_sender[str(node)] == pytest.approx(own["estimate"].sum(), abs=REORDERED * 10), node


@pytest.mark.parametrize("architecture", SOME)
def test_trees_and_hooks_agree(family, architecture):
    model = family(architecture).hooked
    on_trees, hooked = (
        attribute_edges(model, PAIRS, FORCED, tool=tool).observations.table.set_index(["pair", "sender", "receiver"])[
            "value"
        ]
        for tool in ("token trees", "hooks")
    )
    np.testing.assert_allclose(on_trees, hooked.loc[on_trees.index], atol=REORDERED * 10)
    assert on_trees.abs().max() > 1e-3
    screens = [
        attribution_patching.screen(model, PAIRS, FORCED, method="eap-ig", tool=tool).table
        for tool in ("token trees", "hooks")
    ]
    np.testing.assert_allclose(screens[0]["estimate"], screens[1]["estimate"], atol=REORDERED * 10)


def test_hooks_of_the_caller_act(family):
    model = family("llama").hooked
    before = attribute_edges(model, PAIRS, METRIC, nodes=[Node(2, "mlp")])
    with add(model, torch.ones(model.cfg.d_model), layer=1):
        under = attribute_edges(model, PAIRS, METRIC, nodes=[Node(2, "mlp")])
    assert (set(before.table["tool"]), set(under.table["tool"])) == ({"token trees"}, {"hooks"})
    both = before.table.merge(under.table, on=["sender", "receiver"])
    assert len(both) == 3
    assert (both["raw_x"] - both["raw_y"]).abs().max() > 1e-3
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())


def test_means_over_pairs_and_shares_of_the_gap(family):
    model = family("gpt2").hooked
    found = attribute_edges(model, PAIRS, METRIC, steps=2, mode="noising")
    by_pair = found.observations.table.groupby(["sender", "receiver"])["value"]
    table = found.table.set_index(["sender", "receiver"])
    np.testing.assert_allclose(table["raw"], by_pair.mean().loc[table.index])
    gap = float((found.clean - found.corrupted).mean())
    np.testing.assert_allclose(table["effect"], -table["raw"] / gap, rtol=1e-5)
    assert found.table["effect"].abs().is_monotonic_decreasing
    assert set(table["n"]) == {2}
    assert set(table["steps"]) == {2}


def test_bad_input_is_named(family):
    model = family("llama").hooked
    with pytest.raises(MechrefusalError, match="unknown gradient method 'ig'; use 'eap' or 'eap-ig'"):
        attribute_edges(model, PAIRS, METRIC, method="ig")
    with pytest.raises(MechrefusalError, match="unknown gradient method 'ig'"):
        attribution_patching.screened(model, PAIRS, METRIC, method="ig")
    for steps in (0, True, 2.0):
        with pytest.raises(MechrefusalError, match=f"steps is {steps}"):
            attribute_edges(model, PAIRS, METRIC, steps=steps)
    with pytest.raises(MechrefusalError, match="unknown tool 'transformer_lens' of edge attribution"):
        attribute_edges(model, PAIRS, METRIC, tool="transformer_lens")
    with pytest.raises(MechrefusalError, match="transformer_lens: it has no integrated gradients"):
        attribution_patching.screen(model, PAIRS, METRIC, method="eap-ig", tool="transformer_lens")
    with pytest.raises(MechrefusalError, match=r"this model has no 'head 9\.0'"):
        attribute_edges(model, PAIRS, METRIC, nodes=[Node(9, "head", 0)])
    with pytest.raises(MechrefusalError, match="has no gradient with regard to the logits"):
        attribute_edges(model, PAIRS, lambda logits: logits.detach()[:, 3] * 2)
    with pytest.raises(MechrefusalError, match="no pairs to patch"):
        attribute_edges(model, [], METRIC)
