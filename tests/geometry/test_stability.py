"""The bootstrap of the carrier against a plain loop, and what it must say of clear and of hopeless races."""

import numpy as np
import pandas as pd
import pytest

from mechrefusal import MechrefusalError
from mechrefusal.geometry import carriers, stability
from mechrefusal.geometry.scoring import CarrierScores


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
        winners.append(-1 if selection.winner is None else int(selection.winner["layer"]))
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
    assert carriers.select(tied, 10).winner["layer"] == 4


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
