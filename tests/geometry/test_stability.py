"""The bootstrap of the carrier against a plain loop, and what it must say of clear and of hopeless races."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mechrefusal import MechrefusalError
from mechrefusal.geometry import carriers, stability
from mechrefusal.geometry.carrier_scores import CarrierScores
from mechrefusal.geometry.contrast import FOLDS
from mechrefusal.geometry.directions import Directions


def scores(bypass, induce, kl, *, layers=None, exact=None):
    bypass, induce, kl = (np.asarray(values, float) for values in (bypass, induce, kl))
    n = len(bypass)
    table = pd.DataFrame(
        {
            "position": -1,
            "layer": range(n) if layers is None else layers,
            "bypass": bypass.mean(1),
            "induce": induce.mean(1),
            "kl": kl.mean(1),
            "exact": True if exact is None else exact,
        }
    )
    return CarrierScores(table, bypass, induce, kl)


@pytest.fixture
def noisy():
    random = np.random.default_rng(1)
    return scores(
        random.normal([[-1.0], [-1.2], [-0.8], [-3.0]], 1.0, (4, 12)),
        random.normal([[0.5], [0.4], [0.6], [0.2]], 1.0, (4, 9)),
        random.normal([[0.05], [0.09], [0.02], [0.3]], 0.05, (4, 9)),
    )


def test_every_resample_is_a_selection(noisy):
    """The same resamples, chosen one by one by `carriers.select`."""
    found = stability.bootstrap(noisy, 10, n=200, seed=3)
    random = np.random.default_rng(3)
    harmful = random.multinomial(12, np.full(12, 1 / 12), size=200) / 12
    harmless = random.multinomial(9, np.full(9, 1 / 9), size=200) / 9
    winners, margins = [], []
    for h, g in zip(harmful, harmless, strict=True):
        table = noisy.table.assign(bypass=noisy.bypass @ h, induce=noisy.induce @ g, kl=noisy.kl @ g)
        selection = carriers.select(table, 10)
        winners.append(-1 if selection.winner is None else selection.winner.layer)
        admitted = selection.table[selection.table["admissible"]]["bypass"].sort_values().to_numpy()
        if len(admitted) > 1:
            margins.append(admitted[1] - admitted[0])
    winners = np.array(winners)
    assert found.table["win_frequency"].tolist() == pytest.approx([np.mean(winners == layer) for layer in range(4)])
    assert found.none_frequency == pytest.approx(np.mean(winners == -1))
    assert 0 < found.table["win_frequency"].iloc[0] < 1
    chosen = np.sort(winners[winners >= 0])
    assert found.layer_low == chosen[int(np.ceil(0.025 * len(chosen))) - 1]
    assert found.layer_high == chosen[int(np.ceil(0.975 * len(chosen))) - 1]
    margins = np.sort(margins)
    assert found.margin_low == pytest.approx(margins[int(np.ceil(0.025 * len(margins))) - 1])
    whole = carriers.select(noisy, 10).table
    admitted = whole[whole["admissible"]]["bypass"].sort_values().to_numpy()
    assert found.margin == pytest.approx(admitted[1] - admitted[0])


def test_a_clear_winner_always_wins():
    clear = scores([[-5.0] * 6, [-1.0] * 6, [0.0] * 6], [[1.0] * 4] * 3, [[0.0] * 4] * 3, layers=[7, 2, 3])
    found = stability.bootstrap(clear, 10, n=50)
    assert found.table["win_frequency"].tolist() == [1, 0, 0]
    assert found.none_frequency == 0
    assert (found.layer_low, found.layer_high) == (7, 7)
    assert [found.margin, found.margin_low, found.margin_high] == pytest.approx([4, 4, 4])


def test_ties_are_decided_as_in_the_selection():
    tied = scores([[-1.0] * 3] * 2, [[1.0] * 3] * 2, [[0.0] * 3] * 2, layers=[5, 4])
    assert stability.bootstrap(tied, 10, n=20).table["win_frequency"].tolist() == [0, 1]
    assert carriers.select(tied, 10).winner.layer == 4


def test_what_cannot_win_does_not():
    given = scores(
        [[-9.0] * 3, [-8.0] * 3, [np.nan] * 3, [0.0] * 3], [[1.0] * 2] * 4, [[0.0] * 2] * 4, layers=[8, 1, 2, 3]
    )
    given.kl[1] = 0.5
    found = stability.bootstrap(given, 10, n=30)
    assert found.table["win_frequency"].tolist() == [0, 0, 0, 1]  # too late, harmful, NaN
    assert np.isnan(found.margin)


def test_nobody_is_admissible():
    found = stability.bootstrap(scores([[0.0] * 3], [[-1.0] * 3], [[0.0] * 3]), 10, n=30)
    assert found.none_frequency == 1
    assert found.table["win_frequency"].tolist() == [0]
    assert np.isnan([found.margin, found.margin_low, found.layer_low, found.layer_high]).all()
    nothing = stability.bootstrap(scores(*[np.empty((0, 3))] * 3), 10, n=30)
    assert nothing.none_frequency == 1
    assert len(nothing.table) == 0


def test_a_bootstrap_needs_resamples(noisy):
    with pytest.raises(MechrefusalError, match="at least 1"):
        stability.bootstrap(noisy, 10, n=0)


HALVES = {
    # bypass, induce and kl of the candidate at each layer by the directions of either half; all others score worse
    "far apart": ([{1: (-3.0, 1.0, 0.0), 5: (-2.0, 1.0, 0.0)}, {1: (-1.0, 1.0, 0.0), 5: (-2.0, 1.0, 0.0)}], (1, 5)),
    "one not admissible": ([{1: (-3.0, 1.0, 0.5), 5: (-2.0, 1.0, 0.0)}, {1: (-4.0, 1.0, 0.0)}], (1, 5)),
    "one without any": ([{5: (-2.0, 1.0, 0.0)}, {1: (-4.0, -1.0, 0.0), 5: (-4.0, -1.0, 0.0)}], None),
}


def of_layers(layers):
    """Scores of candidates that win in the order given: each of 20 prompts is the same, so that the first wins all."""
    rows = [(-1.0 + 0.1 * number, 1.0, 0.01) for number in range(len(layers))]
    return scores(*([[row[place]] * 20 for row in rows] for place in range(3)), layers=list(layers))


def half_scored(monkeypatch, by_half, given, **settings):
    """What `split_half` makes of scores put in by hand; also the layers that it asked for."""
    sums = torch.ones((2, FOLDS, 1, 10, 2))
    sums[0, ::2] = 3.0  # even folds: a difference of 2, odd ones: of 0
    directions = Directions(
        torch.ones(1, 10, 2), (-1,), ("t",), FOLDS, FOLDS, "w", sums, torch.ones((2, FOLDS), dtype=torch.long)
    )
    asked = []

    def scores_of(scorer, half):
        which = 0 if half.vector[0] == 2 else 1
        asked.append((which, half.layer))
        default = (0.0, -1.0, 0.0)
        return tuple(np.full(3, value) for value in by_half[which].get(half.layer, default))

    monkeypatch.setattr(stability, "scores_of", scores_of)
    monkeypatch.setattr(stability, "Scorer", lambda *_: None)
    model = SimpleNamespace(cfg=SimpleNamespace(n_layers=10), weights="w")
    given, drawn = replace(given, reference="zero"), stability.bootstrap(given, 10)
    return stability.split_half(model, directions, None, None, given, drawn, **settings), asked


@pytest.mark.parametrize("name", HALVES)
def test_each_half_chooses_by_its_own_scores(monkeypatch, name):
    by_half, expected = HALVES[name]
    found, asked = half_scored(monkeypatch, by_half, of_layers([1, 5, 3]))
    assert sorted(asked) == [(which, layer) for which in (0, 1) for layer in (1, 3, 5)]
    wins = dict(zip(found.table["layer"], found.table["half_wins"], strict=True))
    if expected is None:
        assert found.n_halves == 1
        assert np.isnan([found.layer_low, found.layer_high]).all()
        assert wins == {1: 0, 5: 1, 3: 0}
    else:
        assert (found.n_halves, found.layer_low, found.layer_high) == (2, *expected)
        assert wins == {1: 1, 5: 1, 3: 0}


def test_contenders_are_the_likeliest(monkeypatch):
    """The winner, then admissible runners-up, then what is not admissible; none that can not win."""
    given = of_layers([4, 5, 6, 7, 2, 3, 9])
    given.kl[4] = given.table.loc[4, "kl"] = 0.5  # layer 2: lowest bypass of all, KL too large
    given.bypass[4] = given.table.loc[4, "bypass"] = -9.0
    given.induce[5] = given.table.loc[5, "induce"] = np.nan
    given.table.loc[3, "exact"] = False
    given.bypass[3] = np.nan
    _, asked = half_scored(monkeypatch, [{}, {}], given, contenders=3)
    assert {layer for _, layer in asked} == {4, 5, 6}
    _, asked = half_scored(monkeypatch, [{}, {}], given)
    assert {layer for _, layer in asked} == {4, 5, 6, 2}, "not 3 (NaN), 7 (screened) or 9 (too late)"
