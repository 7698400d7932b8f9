"""The logit lens against the Hugging Face model's hidden states and TransformerLens' accumulated residual stream."""

import numpy as np
import pytest
import torch
from architectures import FAMILIES
from scipy import stats
from tolerances import FORWARD

from mechrefusal import MechrefusalError
from mechrefusal.attribution import compare_lenses, lens, logit_lens
from mechrefusal.forward import RefusalMetric
from mechrefusal.prompts import segments

TEXTS = ["Bake bread.", "How do I swim across a river?", "Tell me how to steal a car."]
METRIC = RefusalMetric((50,), (10, 11, 40), (12, 13))
REFUSAL, COMPLIANCE = [10, 11, 40], [12, 13]


def ids_of(model, text):
    return torch.tensor([[*segments(model.tokenizer, text).prompt_ids, 50]])


def same(found, prompt, likely, atol=FORWARD):
    """A prompt's lens is that of log-probabilities [layer, vocab]."""
    refusal, compliance = (likely[:, ids].logsumexp(-1) for ids in (REFUSAL, COMPLIANCE))
    torch.testing.assert_close(found.refusal[:, prompt].float(), refusal, atol=atol, rtol=0)
    torch.testing.assert_close(found.compliance[:, prompt].float(), compliance, atol=atol, rtol=0)
    torch.testing.assert_close(found.score[:, prompt].float(), refusal - compliance, atol=2 * atol, rtol=0)
    best = likely[:, REFUSAL].amax(-1, keepdim=True)
    assert found.rank[:, prompt].tolist() == (likely > best).sum(-1).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_is_that_of_the_accumulated_stream(family, name):
    model = family(name).hooked
    found = logit_lens(model, TEXTS, METRIC)
    cap = getattr(model.original_model.config, "final_logit_softcapping", None)
    for prompt, text in enumerate(TEXTS):
        with torch.no_grad():
            logits, cache = model.run_with_cache(ids_of(model, text))
            stream = cache.accumulated_resid(layer=-1, apply_ln=True, pos_slice=-1)[:, 0]
            each = stream @ model.W_U + model.b_U
        each = cap * torch.tanh(each / cap) if cap else each
        same(found, prompt, each.log_softmax(-1))
        own = logits[0, -1].log_softmax(-1)
        assert found.refusal[-1, prompt].item() == pytest.approx(own[REFUSAL].logsumexp(0).item(), abs=FORWARD)
        assert found.score[-1, prompt].item() == pytest.approx(METRIC.of(logits[0, -1]).item(), abs=FORWARD)


def test_every_layer_is_that_of_the_plain_model(family):
    chosen = family("llama-untied")
    found = logit_lens(chosen.hooked, TEXTS, METRIC)
    for prompt, text in enumerate(TEXTS):
        with torch.no_grad():
            states = chosen.hf(ids_of(chosen.hooked, text), output_hidden_states=True).hidden_states
            below = torch.stack([state[0, -1] for state in states[:-1]])
            # The last of them has been through the final norm.
            normed = torch.cat([chosen.hf.model.norm(below), states[-1][0, -1:]])
            same(found, prompt, chosen.hf.lm_head(normed).log_softmax(-1))


def test_means_and_intervals_by_layer(tiny_hooked):
    lenses = compare_lenses(tiny_hooked, TEXTS, TEXTS[:1], METRIC)
    table = lenses.table
    assert len(table) == 2 * 4 * 5
    found = logit_lens(tiny_hooked, TEXTS, METRIC)
    rows = table[table["set"] == "harmful"].set_index(["quantity", "layer"])
    for name in ("refusal", "compliance", "score", "rank"):
        for layer in range(5):
            values = getattr(found, name)[layer].double().numpy()
            assert rows.loc[(name, layer), "value"] == pytest.approx(values.mean())
            assert rows.loc[(name, layer), "low"] <= values.mean() <= rows.loc[(name, layer), "high"]
            named = {"quantity": name, "layer": layer}
            estimate = lenses.interval(set="harmful", **named)
            assert found.interval(**named) == estimate
            expected = stats.ttest_1samp(values, 0).confidence_interval()
            assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), nan_ok=True)
            np.testing.assert_allclose(lenses.observations.of(set="harmless", **named), values[:1], atol=FORWARD)
    alone = table[table["set"] == "harmless"]
    assert alone[["low", "high"]].isna().all(axis=None)
    assert np.isfinite(alone["value"]).all()


def test_a_last_row_that_is_not_the_models_output_is_refused(tiny_hooked, monkeypatch):
    monkeypatch.setattr(lens, "TOLERANCE", -1.0)
    with pytest.raises(MechrefusalError, match="off the model's own output"):
        logit_lens(tiny_hooked, TEXTS, METRIC)


@pytest.mark.parametrize(
    ("texts", "metric", "said"),
    [([], METRIC, "empty"), ("Hello", METRIC, "list"), (TEXTS, RefusalMetric((), (10,), (9999,)), "token 9999")],
)
def test_bad_input_is_named(tiny_hooked, texts, metric, said):
    with pytest.raises(MechrefusalError, match=said):
        logit_lens(tiny_hooked, texts, metric)
