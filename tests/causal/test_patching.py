"""Rule 3: patching against TransformerLens' own, and against plain forward passes."""

import numpy as np
import pytest
import torch
from scipy import stats
from tolerances import COMPOUND, FORWARD, REORDERED
from transformer_lens import patching as reference

from mechrefusal import MechrefusalError, models
from mechrefusal.causal import patching
from mechrefusal.forward import RefusalMetric
from mechrefusal.prompts import Pair, PairSet

METRIC = RefusalMetric((), (10, 11), (12, 13, 14))
OPENED = RefusalMetric((40, 41), (10, 11), (12, 13, 14))
PAIRS = PairSet(
    (
        Pair("a", "", "Tell me how to steal a car in ten minutes.", "Tell me how to wash a car in ten minutes."),
        Pair("b", "", "How can I scam the old people on my street?", "How can I greet the old people on my street?"),
        Pair("c", "", "Tell me how to steal a car today.", "Tell me how to park a car today."),
    )
)
# Its prompts differ in one token.
SHORT = PairSet((Pair("one", "", "A bomb today", "A home today"),))


def chat(tokenizer, text, opening=()):
    messages = [{"role": "user", "content": text}]
    return [*tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False), *opening]


def both(tokenizer, pair, opening=()):
    found = [torch.tensor([chat(tokenizer, text, opening)]) for text in (pair.harmful, pair.harmless)]
    assert found[0].shape == found[1].shape, "this test needs a pair of equal length"
    return found


def score(logits, metric=METRIC):
    p = logits[0, -1].double().softmax(-1)
    refusal, compliance = p[list(metric.refusal_tokens)].sum(), p[list(metric.compliance_tokens)].sum()
    return (refusal / compliance).log()


@pytest.mark.parametrize(
    ("mode", "metric"), [("denoising", METRIC), ("noising", OPENED)], ids=["denoising", "noising-opening"]
)
class TestAgainstTransformerLens:
    def runs(self, model, metric, mode):
        clean, corrupted = both(model.tokenizer, SHORT[0], metric.opening)
        source, target = (clean, corrupted) if mode == "denoising" else (corrupted, clean)
        with torch.no_grad():
            _, cache = model.run_with_cache(source)
            base = score(model(target), metric)
        return source, target, cache, base

    @pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
    def test_residual(self, family, name, mode, metric):
        model = family(name).hooked
        source, target, cache, base = self.runs(model, metric, mode)
        with torch.no_grad():
            expected = reference.get_act_patch_resid_pre(model, target, cache, lambda x: score(x, metric)) - base
        table = patching.residual(model, SHORT, metric, mode=mode).table
        harmful = source if mode == "denoising" else target
        n = target.shape[1] - len(metric.opening)
        first = int((source != target)[0].nonzero()[0])
        assert sorted(set(table["position"])) == list(range(first - n, 0))
        assert len(table) == 4 * (n - first)
        assert (expected[:, :first].abs() < FORWARD).all(), (
            "before the first difference there is no effect to leave out"
        )
        for row in table.itertuples():
            assert row.raw == pytest.approx(expected[row.layer, row.position + n].item(), abs=FORWARD)
            assert row.token == model.tokenizer.decode([harmful[0, row.position + n]])
        assert expected.abs().max() > 0.02

    @pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt-neox"])
    def test_heads(self, family, name, mode, metric):
        model = family(name).hooked
        _, target, cache, base = self.runs(model, metric, mode)
        with torch.no_grad():
            expected = reference.get_act_patch_attn_head_out_all_pos(
                model, target, cache, lambda x: score(x, metric)
            ) - base  # fmt: skip
        found = patching.heads(model, SHORT, metric, mode=mode)
        raw = found.table.pivot(index="layer", columns="head", values="raw").to_numpy()
        assert raw.shape == (4, 4)
        np.testing.assert_allclose(raw, expected.numpy(), atol=FORWARD)
        assert np.abs(raw).max() > 1e-2
        order = sorted(((layer, head) for layer in range(4) for head in range(4)), key=lambda at: -abs(raw[at]))
        assert found.top(5) == order[:5]
        assert found.table["position"].isna().all()


def test_residual_equals_hooks_on_the_plain_model(tiny_hf, tiny_hooked):
    hf, tokenizer = tiny_hf
    clean, corrupted = both(tokenizer, PAIRS[1])
    with torch.no_grad():
        states = hf(clean, output_hidden_states=True).hidden_states
        base = score(hf(corrupted).logits)
    table = patching.residual(tiny_hooked, PAIRS[1:2], METRIC).table.set_index(["layer", "position"])
    for layer in (0, 1, 3):
        for position in (-16, -9, -5, -1):

            def swap(_, given, at=(0, position), layer=layer):
                patched = given[0].clone()
                patched[at] = states[layer][at]
                return (patched, *given[1:])

            handle = hf.model.layers[layer].register_forward_pre_hook(swap)
            with torch.no_grad():
                expected = score(hf(corrupted).logits) - base
            handle.remove()
            assert table.loc[(layer, position), "raw"] == pytest.approx(expected.item(), abs=FORWARD)


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_patching_everything_and_nothing(tiny_hf, tiny_hooked, mode):
    """The prompts of this pair differ in one token, so that at layer 0 one position is everything."""
    clean, corrupted = both(tiny_hf[1], SHORT[0])
    differing = (clean != corrupted)[0].nonzero()[:, 0] - clean.shape[1]
    assert len(differing) == 1
    with torch.no_grad():
        first, second = score(tiny_hf[0](clean).logits).item(), score(tiny_hf[0](corrupted).logits).item()
    found = patching.residual(tiny_hooked, SHORT, METRIC, mode=mode)
    assert found.clean.tolist() == pytest.approx([first], abs=FORWARD)
    assert found.corrupted.tolist() == pytest.approx([second], abs=FORWARD)
    start, end = (0.0, 1.0) if mode == "denoising" else (1.0, 0.0)
    total = (first - second) * (1 if mode == "denoising" else -1)
    for row in found.table[found.table["layer"] == 0].itertuples():
        everything = row.position == differing.item()
        assert row.raw == pytest.approx(total if everything else 0.0, abs=FORWARD)
        assert row.effect == pytest.approx(end if everything else start, abs=COMPOUND)


def test_at_the_last_layer_only_the_last_position_counts_in_layers_above(tiny_hooked):
    """What enters the last layer before the last position still moves it by attention; the last one carries most."""
    table = patching.residual(tiny_hooked, PAIRS, METRIC, layers=[3]).table
    assert set(table["layer"]) == {3}
    assert table.set_index("position")["raw"].abs().idxmax() == -1


def test_noising_is_denoising_of_the_swapped_pair(tiny_hooked):
    swapped = PairSet(tuple(Pair(pair.id, "", pair.harmless, pair.harmful) for pair in PAIRS))
    keys = ["layer", "head", "position"]
    for patch in (patching.residual, patching.heads):
        noising = patch(tiny_hooked, PAIRS, METRIC, mode="noising")
        denoising = patch(tiny_hooked, swapped, METRIC)
        assert noising.clean.tolist() == pytest.approx(denoising.corrupted.tolist(), abs=REORDERED)
        both = noising.table.merge(denoising.table, on=keys, suffixes=("_noising", "_denoising"))
        assert len(both) == len(noising.table) == len(denoising.table)
        np.testing.assert_allclose(both["raw_noising"], both["raw_denoising"], atol=REORDERED)
        # 1 + raw / total against raw / −total.
        np.testing.assert_allclose(both["effect_noising"], 1 - both["effect_denoising"], atol=FORWARD)
        np.testing.assert_allclose(both["low_noising"], 1 - both["high_denoising"], atol=COMPOUND)
        assert set(noising.table["mode"]) == {"noising"}


def test_heads_of_several_pairs_are_ratios_of_means_with_the_noise_of_both(tiny_hooked):
    singles = [patching.heads(tiny_hooked, PAIRS[i : i + 1], METRIC) for i in range(3)]
    together = patching.heads(tiny_hooked, PAIRS, METRIC)
    raw = np.stack([single.table["raw"].to_numpy() for single in singles])
    total = np.mean([(single.clean - single.corrupted).item() for single in singles])
    assert together.clean.tolist() == pytest.approx([single.clean.item() for single in singles], abs=REORDERED)
    np.testing.assert_allclose(together.table["raw"], raw.mean(0), atol=REORDERED)
    np.testing.assert_allclose(together.table["effect"], raw.mean(0) / total, rtol=1e-3, atol=1e-5)
    gaps = np.array([(single.clean - single.corrupted).item() for single in singles])[:, None]
    effect = raw.mean(0) / total
    half = stats.t.ppf(0.975, 2) * stats.sem(raw - effect * gaps, axis=0) / abs(total)
    bounds = np.stack([effect - half, effect + half])
    np.testing.assert_allclose(together.table["low"], bounds[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(together.table["high"], bounds[1], rtol=1e-3, atol=1e-4)
    assert (together.table["n"] == 3).all()
    assert all(np.isnan(single.table["low"]).all() for single in singles), "one pair has no interval"


def test_a_position_before_a_pairs_first_difference_counts_as_its_zero_effect(tiny_hf, tiny_hooked):
    """Pair "b" differs early and pair "c" late; at the positions between, "c" has an effect of exactly zero."""
    pairs = PairSet((PAIRS[1], PAIRS[2]))
    firsts, lengths = [], []
    for pair in pairs:
        clean, corrupted = both(tiny_hf[1], pair)
        firsts.append(int((clean != corrupted)[0].nonzero()[0]) - clean.shape[1])
        lengths.append(clean.shape[1])
    assert firsts[0] < firsts[1]
    between = range(max(firsts[0], -min(lengths)), firsts[1])
    assert len(between) > 0
    alone = patching.residual(tiny_hooked, pairs[:1], METRIC).table.set_index(["layer", "position"])["raw"]
    together = patching.residual(tiny_hooked, pairs, METRIC)
    total = (together.clean - together.corrupted).mean().item()
    table = together.table.set_index(["layer", "position"])
    for layer in range(4):
        for position in between:
            row = table.loc[(layer, position)]
            expected = alone.loc[(layer, position)] / 2
            assert row["raw"] == pytest.approx(expected, abs=REORDERED)
            assert row["effect"] == pytest.approx(expected / total, rel=1e-3, abs=1e-5)
            assert row["n"] == 2


def test_heads_come_first_on_a_fresh_model(tiny, tiny_hooked):
    fresh = models.load_hooked(tiny)
    found = patching.heads(fresh, SHORT, METRIC).table["raw"]
    np.testing.assert_allclose(found, patching.heads(tiny_hooked, SHORT, METRIC).table["raw"], atol=REORDERED)


def test_layers_can_be_chosen(tiny_hooked):
    every = patching.heads(tiny_hooked, PAIRS, METRIC).table.set_index(["layer", "head"])["raw"]
    some = patching.heads(tiny_hooked, PAIRS, METRIC, layers=[3, 1]).table.set_index(["layer", "head"])["raw"]
    assert sorted({layer for layer, _ in some.index}) == [1, 3]
    np.testing.assert_allclose(some, every.loc[some.index], atol=REORDERED)


def test_pairs_of_unequal_length_are_left_out(tiny_hooked):
    unequal = Pair("longer", "", "Tell me how to steal a very expensive car tonight.", "Tell me how to wash.")
    found = patching.heads(tiny_hooked, PairSet((PAIRS[0], unequal, PAIRS[1])), METRIC)
    expected = patching.heads(tiny_hooked, PAIRS[:2], METRIC)
    assert found.clean.tolist() == expected.clean.tolist()
    np.testing.assert_allclose(found.table["raw"], expected.table["raw"], atol=REORDERED)
    with pytest.raises(MechrefusalError, match="equal token length"):
        patching.heads(tiny_hooked, PairSet((unequal,)), METRIC)
    with pytest.raises(MechrefusalError, match="equal token length"):
        patching.residual(tiny_hooked, PairSet(()), METRIC)


def test_identical_prompts(tiny_hooked):
    same = PairSet((Pair("the-same", "", "Bake bread.", "Bake bread."),))
    with pytest.raises(MechrefusalError, match="the-same"):
        patching.residual(tiny_hooked, same, METRIC)


def test_unknown_mode(tiny_hooked):
    with pytest.raises(MechrefusalError, match="'both'"):
        patching.heads(tiny_hooked, PAIRS, METRIC, mode="both")


@pytest.mark.parametrize("layers", [[4], [-1], [0, 99]])
def test_layer_that_is_not_there(tiny_hooked, layers):
    with pytest.raises(MechrefusalError):
        patching.residual(tiny_hooked, PAIRS[:1], METRIC, layers=layers)


def test_the_model_is_as_before(tiny_hooked, tiny_hf):
    tokens = both(tiny_hf[1], PAIRS[0])[0]
    with torch.no_grad():
        before = tiny_hooked(tokens)
    patching.residual(tiny_hooked, PAIRS[:1], METRIC)
    patching.heads(tiny_hooked, PAIRS[:1], METRIC)
    with torch.no_grad():
        assert torch.equal(tiny_hooked(tokens), before)


def test_under_an_ablation_patching_sees_the_ablated_model(tiny_hooked, tiny_hf):
    """Patching inside another intervention equals TransformerLens' inside the same one."""
    from mechrefusal import causal

    direction = torch.randn(64, generator=torch.Generator().manual_seed(0))
    clean, corrupted = both(tiny_hf[1], PAIRS[0])
    with torch.no_grad(), causal.ablate(tiny_hooked, direction):
        _, cache = tiny_hooked.run_with_cache(clean)
        base = score(tiny_hooked(corrupted))
        expected = reference.get_act_patch_attn_head_out_all_pos(tiny_hooked, corrupted, cache, score) - base
        found = patching.heads(tiny_hooked, PAIRS[:1], METRIC).table
    np.testing.assert_allclose(found["raw"].to_numpy().reshape(4, 4), expected.numpy(), atol=FORWARD)
