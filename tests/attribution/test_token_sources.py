"""What heads read from each token, against attention patterns and values of TransformerLens' own cache, in numpy."""

import numpy as np
import pytest
import torch
from architectures import FAMILIES
from scipy import stats
from tolerances import FORWARD, REORDERED, ROUNDED

from mechrefusal import MechrefusalError
from mechrefusal.attribution import Onto, RefusalLogits, attribute, sources
from mechrefusal.forward import RefusalMetric
from mechrefusal.prompts import segments

TEXTS = ["Bake bread.", "How do I swim across a river?", "Tell me how to steal a car."]
METRIC = RefusalMetric((50, 51), (10, 11, 40), (12, 13))


@pytest.mark.parametrize("onto", ["logits", "direction"])
@pytest.mark.parametrize("name", FAMILIES)
def test_they_sum_to_what_each_head_writes(family, name, onto):
    model = family(name).hooked
    direction = torch.randn(64, generator=torch.Generator().manual_seed(0))
    readout = RefusalLogits(METRIC) if onto == "logits" else Onto(direction, 3, -2)
    direct = attribute(model, TEXTS, readout)
    found = sources(model, TEXTS, readout)
    summed = found.table.groupby(["prompt", "layer", "head"])[["value", "weight"]].sum()
    assert len(summed) == 3 * 4 * (4 if onto == "logits" else 3)
    for (prompt, layer, head), row in summed.iterrows():
        assert row["value"] == pytest.approx(direct.of("head", layer, head)[prompt].item(), abs=FORWARD)
        assert row["weight"] == pytest.approx(1, abs=REORDERED)
    # Every prompt has all its segments, so that the means of the segments sum to the mean of the head.
    segment_sums = found.by_segment.groupby(["layer", "head"])["value"].sum()
    for (layer, head), value in segment_sums.items():
        assert value == pytest.approx(direct.of("head", layer, head).mean().item(), abs=FORWARD)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_each_source_by_hand(family, name):
    model = family(name).hooked
    direction = torch.randn(64, generator=torch.Generator().manual_seed(1))
    unit = (direction / direction.norm()).double().numpy()
    table = sources(model, TEXTS[1:2], Onto(direction, 3, -3), heads=[(2, 3), (0, 1)]).table
    ids = segments(model.tokenizer, TEXTS[1]).prompt_ids
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([ids]))
    for layer, head in ((2, 3), (0, 1)):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head, len(ids) - 3].double().numpy()
        v = cache[f"blocks.{layer}.attn.hook_v"][0].double().numpy()
        v = v.reshape(len(ids), -1, 16)
        shared = v[:, head // (4 // v.shape[1])]
        written = shared @ model.W_O[layer, head].detach().double().numpy() @ unit
        rows = table[(table["layer"] == layer) & (table["head"] == head)]
        assert rows["source"].tolist() == list(range(len(ids) - 2)), "up to the position that is read"
        np.testing.assert_allclose(rows["value"], (pattern * written)[: len(ids) - 2], atol=REORDERED)
        np.testing.assert_allclose(rows["weight"], pattern[: len(ids) - 2], atol=ROUNDED)
        assert rows["token"].tolist() == [model.tokenizer.decode([i]) for i in ids[:-2]]


def test_tokens_and_segments_over_prompts(tiny_hooked):
    found = sources(tiny_hooked, TEXTS, RefusalLogits(METRIC), heads=[(1, 0), (3, 2)])
    table = found.table
    cut = [segments(tiny_hooked.tokenizer, text) for text in TEXTS]
    for prompt, one in enumerate(cut):
        rows = table[(table["prompt"] == prompt) & (table["layer"] == 3)]
        assert rows["segment"].tolist() == [*one.labels, "opening", "opening"]
    for name, by in (("token", found.by_token), ("segment", found.by_segment)):
        assert not by.duplicated(["layer", "head", name]).any()
        for row in by.itertuples():
            same = (table["layer"] == row.layer) & (table["head"] == row.head) & (table[name] == getattr(row, name))
            sums = [rows["value"].sum() for _, rows in table[same].groupby("prompt")]
            assert row.n == len(sums)
            assert row.value == pytest.approx(np.mean(sums))
            if row.n > 1:
                half = stats.t.ppf(0.975, row.n - 1) * np.std(sums, ddof=1) / np.sqrt(row.n)
                assert (row.low, row.high) == pytest.approx((row.value - half, row.value + half))
            else:
                assert np.isnan(row.low)
    assert set(found.by_segment["segment"]) == {"before", "instruction", "after", "opening"}


def test_nothing_has_written_below_layer_0(tiny_hooked):
    found = sources(tiny_hooked, TEXTS, Onto(torch.ones(64), 0, -1))
    assert len(found.table) == 0
    assert len(found.by_token) == len(found.by_segment) == 0


@pytest.mark.parametrize(
    ("readout", "heads", "said"),
    [
        (RefusalLogits(METRIC), [(4, 0)], r"head \(4, 0\) is not in this model"),
        (RefusalLogits(METRIC), [(0, -1)], r"head \(0, -1\) is not"),
        (Onto(torch.ones(64), 2, -1), [(1, 0), (2, 0)], r"head \(2, 0\) writes after"),
        (Onto(torch.zeros(64), 2, -1), None, "zero"),
        (Onto(torch.ones(63), 2, -1), None, r"\(63,\)"),
        (Onto(torch.ones(64), 9, -1), None, "layer 9"),
        (Onto(torch.ones(64), 2, -99), None, "position -99"),
    ],
)
def test_bad_input_is_named(tiny_hooked, readout, heads, said):
    with pytest.raises(MechrefusalError, match=said):
        sources(tiny_hooked, TEXTS, readout, heads=heads)


def test_the_model_is_left_without_hooks(tiny_hooked):
    with pytest.raises(MechrefusalError):
        sources(tiny_hooked, TEXTS, Onto(torch.ones(64), 2, -99))
    sources(tiny_hooked, TEXTS[:1], RefusalLogits(METRIC), heads=[(0, 0)])
    assert not [name for name, point in tiny_hooked.hook_dict.items() if point.fwd_hooks]
