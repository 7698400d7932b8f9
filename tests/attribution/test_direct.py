"""Rule 2: direct attribution sums to what it attributes, and its parts are those of independent computations."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import FAMILIES
from scipy import stats
from tolerances import COMPOUND, FORWARD, REORDERED
from transformer_lens.tools.analysis import direct_logit_attribution

from mechrefusal import MechrefusalError, models
from mechrefusal.attribution import Onto, RefusalLogits, attribute
from mechrefusal.forward import ForcedOpenings, RefusalMetric, runner

TEXTS = ["Bake bread.", "How do I swim across a river?", "Tell me how to steal a car."]
METRIC = RefusalMetric((), (10, 11, 40), (12, 13))
SINGLE = RefusalMetric((), (10,), (12,))


def refusal_logits(model, texts, metric):
    return attribute(model, texts, RefusalLogits(metric)).table


def onto_direction(model, texts, direction, *, layer, position):
    return attribute(model, texts, Onto(direction, layer, position)).table


def chat(tokenizer, text, opening=()):
    messages = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return torch.tensor([[*ids, *opening]])


def parts(table):
    return table[table["component"] != "total"]["value"].sum()


def one(table, component, layer=-1, head=-1):
    rows = table[(table["component"] == component) & (table["layer"] == layer) & (table["head"] == head)]
    assert len(rows) == 1
    return rows.iloc[0]


def plain_parts(hf, tokens):
    """What each head and MLP of a Hugging Face Llama writes at the last position, before the final norm."""
    kept, handles = {}, []
    for layer, block in enumerate(hf.model.layers):
        handles += [
            block.self_attn.o_proj.register_forward_pre_hook(lambda _, a, i=layer: kept.update({("z", i): a[0]})),
            block.mlp.register_forward_hook(lambda _m, _a, out, i=layer: kept.update({("mlp", i): out})),
        ]
    handles.append(hf.model.norm.register_forward_pre_hook(lambda _, a: kept.update(final=a[0])))
    with torch.no_grad():
        logits = hf(tokens).logits[0, -1].double()
    for handle in handles:
        handle.remove()
    found = {("embed", -1, -1): hf.model.embed_tokens.weight[tokens[0, -1]]}
    for layer, block in enumerate(hf.model.layers):
        z, weight = kept["z", layer][0, -1].view(4, -1), block.self_attn.o_proj.weight.view(64, 4, -1)
        for head in range(4):
            found["head", layer, head] = weight[:, head] @ z[head]
        found["mlp", layer, -1] = kept["mlp", layer][0, -1]
    return {key: value.detach().double() for key, value in found.items()}, kept["final"][0, -1].double(), logits


def test_every_part_of_a_llama_by_hand(tiny_hf, tiny_hooked):
    hf, tokenizer = tiny_hf
    values, totals = [], []
    for text in TEXTS:
        written, final, logits = plain_parts(hf, chat(tokenizer, text))
        scale = (final.pow(2).mean() + hf.config.rms_norm_eps).sqrt()
        readout = hf.lm_head.weight.double().detach() * hf.model.norm.weight.double().detach()
        direction = readout[[10, 11, 40]].mean(0) - readout[[12, 13]].mean(0)
        values.append({key: (part @ direction / scale).item() for key, part in written.items()})
        totals.append((logits[[10, 11, 40]].mean() - logits[[12, 13]].mean()).item())
    table = refusal_logits(tiny_hooked, TEXTS, METRIC)
    assert len(table) == len(values[0]) + 2, "heads, MLPs, embedding, bias and total, each once"
    for (component, layer, head), _ in values[0].items():
        expected = np.array([value[component, layer, head] for value in values])
        row = one(table, component, layer, head)
        assert row["value"] == pytest.approx(expected.mean(), abs=FORWARD)
        half = stats.t.ppf(0.975, 2) * expected.std(ddof=1) / np.sqrt(3)
        assert (row["low"], row["high"]) == pytest.approx(
            (expected.mean() - half, expected.mean() + half), abs=COMPOUND
        )
        assert row["n"] == 3
    assert one(table, "bias")["value"] == pytest.approx(0, abs=REORDERED)
    assert one(table, "total")["value"] == pytest.approx(np.mean(totals), abs=FORWARD)
    assert parts(table) == pytest.approx(np.mean(totals), abs=FORWARD)


@pytest.mark.parametrize("metric", [METRIC, RefusalMetric((50, 51), (10,), (12, 13))], ids=["", "opening"])
@pytest.mark.parametrize("name", FAMILIES)
def test_parts_sum_to_the_total(family, name, metric):
    chosen = family(name)
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            logits = chosen.hf(chat(chosen.tokenizer, text, metric.opening)).logits[0, -1].double()
        if cap := getattr(chosen.hf.config, "final_logit_softcapping", None):
            logits = cap * torch.atanh(logits / cap)
        expected.append(
            (logits[list(metric.refusal_tokens)].mean() - logits[list(metric.compliance_tokens)].mean()).item()
        )
    table = refusal_logits(chosen.hooked, TEXTS, metric)
    assert one(table, "total")["value"] == pytest.approx(np.mean(expected), abs=2 * COMPOUND)
    assert parts(table) == pytest.approx(np.mean(expected), abs=2 * COMPOUND)
    assert len(table[table["component"] == "head"]) == 16
    assert len(table[table["component"] == "mlp"]) == 4


@pytest.mark.parametrize("name", ["llama", "llama-untied", "qwen2", "gpt2", "gpt-neox"])
def test_equals_transformer_lens(family, name):
    model = family(name).hooked
    text = TEXTS[1]
    tokens = chat(model.tokenizer, text)
    table = refusal_logits(model, [text], SINGLE)
    asked = {"answer_tokens": 10, "incorrect_tokens": 12}
    heads = direct_logit_attribution(model, tokens, **asked, unit="head")
    for label, value in zip(heads.labels, heads.attribution[:, 0].tolist(), strict=True):
        if label.startswith("L"):
            layer, head = label[1:].split("H")
            assert one(table, "head", int(layer), int(head))["value"] == pytest.approx(value, abs=FORWARD), label
    found = direct_logit_attribution(model, tokens, **asked, unit="component")
    components = dict(zip(found.labels, found.attribution[:, 0].tolist(), strict=True))
    assert one(table, "embed")["value"] == pytest.approx(components["embed"], abs=FORWARD)
    if name == "gpt2":
        assert one(table, "pos_embed")["value"] == pytest.approx(components["pos_embed"], abs=FORWARD)
    if name.startswith("llama"):
        for layer in range(4):
            assert one(table, "mlp", layer)["value"] == pytest.approx(components[f"{layer}_mlp_out"], abs=FORWARD)
            written = sum(one(table, "head", layer, head)["value"] for head in range(4))
            assert written == pytest.approx(components[f"{layer}_attn_out"], abs=FORWARD)
    unembedding = (model.b_U[10] - model.b_U[12]).item()
    assert parts(table) == pytest.approx(sum(components.values()) + unembedding, abs=COMPOUND)


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("position", [-1, -4])
def test_what_writes_a_direction(tiny_hf, tiny_hooked, layer, position):
    hf, tokenizer = tiny_hf
    direction = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 5
    unit = direction.double() / direction.double().norm()
    projections, heads = [], []
    for text in TEXTS:
        tokens = chat(tokenizer, text)
        with torch.no_grad():
            states = hf(tokens, output_hidden_states=True).hidden_states
        projections.append((states[layer][0, position].double() @ unit).item())
        # Causal: cut after the position, it is the last one.
        written, _, _ = plain_parts(hf, tokens[:, : tokens.shape[1] + position + 1])
        heads.append({key: (part @ unit).item() for key, part in written.items()})
    table = onto_direction(tiny_hooked, TEXTS, direction, layer=layer, position=position)
    assert one(table, "total")["value"] == pytest.approx(np.mean(projections), abs=FORWARD)
    assert parts(table) == pytest.approx(np.mean(projections), abs=FORWARD)
    assert set(table[table["layer"] >= 0]["layer"]) == set(range(layer)), "what is above has not written yet"
    for key in heads[0]:
        if key[1] < layer:
            assert one(table, *key)["value"] == pytest.approx(np.mean([found[key] for found in heads]), abs=FORWARD)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_writes_a_direction_sums(family, name):
    model = family(name).hooked
    direction = torch.randn(64, generator=torch.Generator().manual_seed(0))
    expected = []
    for text in TEXTS:
        kept = []
        with (
            torch.no_grad(),
            model.hooks(fwd_hooks=[("blocks.3.hook_resid_pre", lambda value, hook, kept=kept: kept.append(value))]),
        ):
            model(chat(model.tokenizer, text))
        expected.append((kept[0][0, -2].double() @ direction.double() / direction.double().norm()).item())
    table = onto_direction(model, TEXTS, direction, layer=3, position=-2)
    assert one(table, "total")["value"] == pytest.approx(np.mean(expected), abs=COMPOUND)
    assert parts(table) == pytest.approx(np.mean(expected), abs=COMPOUND)


def test_a_component_that_is_ablated_writes_nothing(tiny_hooked):
    """An attribution is tested by intervening: without head 2 of layer 3 the total falls by what it wrote."""
    table = refusal_logits(tiny_hooked, TEXTS[:1], SINGLE)

    def silence(z, hook):
        shape = z.shape
        kept = z.reshape(*shape[:2], 4, -1).clone()
        kept[:, :, 2] = 0
        return kept.reshape(shape)

    with tiny_hooked.hooks(fwd_hooks=[("blocks.3.attn.hook_z", silence)]):
        without = refusal_logits(tiny_hooked, TEXTS[:1], SINGLE)
    assert abs(one(table, "head", 3, 2)["value"]) > 1e-3
    assert one(without, "head", 3, 2)["value"] == 0
    assert parts(without) == pytest.approx(one(without, "total")["value"], abs=FORWARD)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_prompt_of_a_batch_is_what_it_is_alone_through_hooks(family, name):
    """One token tree, against rows through hooks (a hook of the caller is open)."""
    model = family(name).hooked
    readout = RefusalLogits(METRIC)
    found = attribute(model, TEXTS, readout)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: value)]):
        alone = [attribute(model, [text], readout) for text in TEXTS]
    assert all(one.components == found.components for one in alone)
    torch.testing.assert_close(found.values, torch.cat([one.values for one in alone]), atol=FORWARD, rtol=0)
    torch.testing.assert_close(found.total, torch.cat([one.total for one in alone]), atol=2 * COMPOUND, rtol=0)
    torch.testing.assert_close(found.values.sum(1), found.total, atol=2 * COMPOUND, rtol=0)


def test_many_groups_give_what_one_gives(tiny_hooked, monkeypatch):
    whole = attribute(tiny_hooked, TEXTS, RefusalLogits(METRIC))
    monkeypatch.setitem(runner.TOKENS_AT_ONCE, "cpu", 1)
    parts = attribute(tiny_hooked, TEXTS, RefusalLogits(METRIC))
    torch.testing.assert_close(parts.values, whole.values, atol=REORDERED, rtol=0)


def test_values_by_prompt_are_those_of_the_table(tiny_hooked):
    found = attribute(tiny_hooked, TEXTS, Onto(torch.ones(64), 3, -2))
    rows = found.observations.table
    assert len(rows) == 3 * len(found.components)
    means = rows.groupby(["component", "layer", "head"], sort=False)["value"].mean()
    np.testing.assert_allclose(means, found.table["value"][:-1])
    own = rows[(rows["component"] == "head") & (rows["layer"] == 2) & (rows["head"] == 1)]["value"]
    assert found.of("head", 2, 1).tolist() == own.tolist() == found.observations.of(layer=2, head=1).tolist()
    interval = stats.ttest_1samp(own, 0).confidence_interval()
    estimate = found.interval(layer=2, head=1)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((own.mean(), *interval))
    heads = found.table[found.table["component"] == "head"]
    order = heads.reindex(heads["value"].abs().sort_values(ascending=False).index)
    assert found.top(3) == list(zip(order["layer"], order["head"], strict=True))[:3]


def test_forced_openings_are_read_by_the_token_sets(tiny_hooked):
    forced = replace(METRIC, kind="teacher_forced", forced=ForcedOpenings(((30, 31),), ((40, 41),)))
    expected = refusal_logits(tiny_hooked, TEXTS, METRIC)
    pd.testing.assert_frame_equal(refusal_logits(tiny_hooked, TEXTS, forced), expected)


def test_one_prompt_has_no_interval(tiny_hooked):
    table = refusal_logits(tiny_hooked, TEXTS[:1], METRIC)
    assert table["low"].isna().all()
    assert table["value"].notna().all()
    assert (table["n"] == 1).all()


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda model: refusal_logits(model, [], METRIC), "list of texts is empty"),
        (lambda model: refusal_logits(model, "Bake bread.", METRIC), "put it into a list"),
        (lambda model: attribute(model, TEXTS, RefusalLogits(RefusalMetric((), (10,), (4000,)))), "token 4000"),
        (lambda model: attribute(model, TEXTS, Onto(torch.ones(64), 2, -90)), "position -90 .* prompt 0, which has"),
        (lambda model: attribute(model, TEXTS, Onto(torch.ones(64), 2, 30)), "position 30 .* prompt 0"),
        (lambda model: attribute(model, ["Bake " * 600], RefusalLogits(METRIC)), "context of 512"),
    ],
)
def test_bad_input_is_named(tiny_hooked, ask, said):
    with pytest.raises(MechrefusalError, match=said):
        ask(tiny_hooked)


@pytest.mark.parametrize("weight", ["layers.2.mlp.down_proj", "lm_head"])
def test_weights_that_are_not_finite_are_named(tmp_path, weight):
    model = models.load_hooked(models.tiny.make(tmp_path / "model", tied=False))
    module = next(
        m
        for name, m in model.original_model.named_modules()
        if name.endswith(weight.split(".")[-1]) and ("lm_head" in weight or "layers.2." in name)
    )
    next(module.parameters()).data[0, 0] = float("nan")
    said = "mlp_out of layer 2 .*not finite" if "layers" in weight else "unembedding is not finite"
    with pytest.raises(MechrefusalError, match=said):
        refusal_logits(model, TEXTS, METRIC)


@pytest.mark.parametrize("direction", [torch.zeros(64), torch.full((64,), float("nan")), torch.ones(63)])
def test_direction_that_points_nowhere(tiny_hooked, direction):
    with pytest.raises(MechrefusalError):
        onto_direction(tiny_hooked, TEXTS[:1], direction, layer=2, position=-1)


@pytest.mark.parametrize("layer", [4, 9, -1])
def test_layer_that_is_not_there(tiny_hooked, layer):
    with pytest.raises(MechrefusalError):
        onto_direction(tiny_hooked, TEXTS[:1], torch.ones(64), layer=layer, position=-1)


@pytest.mark.slow
def test_real_model(smollm2_hooked):
    model = smollm2_hooked
    metric = RefusalMetric((), (57,), (2683,))
    table = refusal_logits(model, TEXTS[:2], metric)
    with torch.no_grad():
        logits = [model(chat(model.tokenizer, text))[0, -1].double() for text in TEXTS[:2]]
    expected = np.mean([(row[57] - row[2683]).item() for row in logits])
    assert parts(table) == pytest.approx(expected, abs=2 * COMPOUND)
    assert len(table[table["component"] == "head"]) == 30 * 9
