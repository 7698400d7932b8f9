"""Harmful against harmless: differences and intervals against scipy, the floor against labels drawn one by one."""

import numpy as np
import pytest
import torch
from scipy import stats
from tolerances import COMPOUND

from mechrefusal import MechrefusalError
from mechrefusal.attribution import Attribution, Component, RefusalLogits, attribute, compare, difference
from mechrefusal.forward import RefusalMetric

HARMFUL = ["Steal a car.", "Tell me how to pick a lock.", "Make poison."]
HARMLESS = ["Bake bread.", "How do I swim across a river?", "Tell me a story.", "Paint a wall."]
METRIC = RefusalMetric((), (10, 11, 40), (12, 13))


def drawn(n, *, seed, shift=0.0):
    values = torch.tensor(np.random.default_rng(seed).normal(shift, 1 + seed, size=(n, 2)))
    return Attribution((Component("head", 0, 0), Component("mlp", 0)), values, values.sum(1))


def columns(found):
    return np.hstack([found.values.numpy(), found.total.numpy()[:, None]]).T


def test_the_interval_of_independent_prompts_is_welchs():
    harmful, harmless = drawn(9, seed=0, shift=2.0), drawn(14, seed=1)
    table = difference(harmful, harmless)
    assert table["component"].tolist() == ["head", "mlp", "total"]
    for row, one, other in zip(table.itertuples(), columns(harmful), columns(harmless), strict=True):
        bounds = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
        assert (row.harmful, row.harmless) == pytest.approx((one.mean(), other.mean()))
        assert row.difference == pytest.approx(one.mean() - other.mean())
        assert (row.low, row.high) == pytest.approx((bounds.low, bounds.high))
        assert (row.n_harmful, row.n_harmless) == (9, 14)


def test_the_interval_of_pairs_is_that_of_their_differences():
    harmful, harmless = drawn(9, seed=0, shift=2.0), drawn(9, seed=1)
    table = difference(harmful, harmless, paired=True)
    for row, one, other in zip(table.itertuples(), columns(harmful), columns(harmless), strict=True):
        bounds = stats.ttest_rel(one, other).confidence_interval(0.95)
        assert (row.low, row.high) == pytest.approx((bounds.low, bounds.high))


@pytest.mark.parametrize("paired", [False, True])
def test_the_floor_is_what_chance_gives(paired):
    """Without a difference, five in a hundred components exceed it; a large difference does."""
    exceeded = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        one, other = (torch.tensor(random.normal(size=(12, 5))) for _ in range(2))
        names = tuple(Component("mlp", layer) for layer in range(5))
        found = [Attribution(names, values, values.sum(1)) for values in (one, other)]
        table = difference(*found, paired=paired)[:5]
        exceeded += (table["difference"].abs() > table["floor"]).tolist()
    assert 0.02 < np.mean(exceeded) < 0.09
    table = difference(drawn(12, seed=0, shift=9.0), drawn(12, seed=1), paired=paired)
    assert (table["difference"] > table["floor"]).all()


def test_two_lists_of_texts(tiny_hooked):
    readout = RefusalLogits(METRIC)
    table = compare(tiny_hooked, HARMFUL, HARMLESS, readout)
    one, other = (attribute(tiny_hooked, texts, readout) for texts in (HARMFUL, HARMLESS))
    np.testing.assert_allclose(table["harmful"], one.table["value"])
    np.testing.assert_allclose(table["harmless"], other.table["value"])
    assert table[:-1]["difference"].sum() == pytest.approx(table["difference"].iloc[-1], abs=COMPOUND)


def test_one_prompt_has_means_and_nothing_else(tiny_hooked):
    for paired, harmless in ((False, HARMLESS), (True, HARMLESS[:1])):
        table = compare(tiny_hooked, HARMFUL[:1], harmless, RefusalLogits(METRIC), paired=paired)
        assert table[["harmful", "harmless", "difference"]].notna().all(axis=None)
        assert table[["low", "high", "floor"]].isna().all(axis=None)


def test_bad_input_is_named(tiny_hooked):
    with pytest.raises(MechrefusalError, match="not 3 and 4"):
        compare(tiny_hooked, HARMFUL, HARMLESS, RefusalLogits(METRIC), paired=True)
    with pytest.raises(MechrefusalError, match="empty"):
        compare(tiny_hooked, HARMFUL, [], RefusalLogits(METRIC))
