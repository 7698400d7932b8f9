"""The choice of a carrier: rules one by one, and draws against a plain loop over candidates."""

import numpy as np
import pandas as pd
import pytest

from mechrefusal import MechrefusalError
from mechrefusal.statistics.choosing import Admissible, Candidates, lowest, ranked

NAN = float("nan")


def plainly(bypass, induce, kl, rule, *, or_best):
    """Place of the one that is taken, by one means a candidate; −1 for none."""
    there = [place for place, value in enumerate(bypass) if np.isfinite(value)]
    low = [place for place in there if kl[place] <= rule.kl]
    groups = [[place for place in low if induce[place] >= rule.induce]]
    groups += [low, there] if or_best else []
    for group in groups:
        if group:
            return min(group, key=lambda place: bypass[place])
    return -1


@pytest.mark.parametrize("or_best", [False, True])
@pytest.mark.parametrize("kl", [0.05, 0.1, 0.2, 0.5])
def test_draws_choose_as_a_plain_loop(kl, or_best):
    random = np.random.default_rng(3)
    rule = Admissible(induce=0.2)
    candidates = Candidates(
        random.normal(size=(6, 9)), random.normal(size=(6, 7)), random.normal(kl, 0.1, (6, 7)), rule
    )
    times = [random.multinomial(4, np.full(n, 1 / n), size=200) for n in (9, 7)]
    times[0][3] = times[1][5] = 0
    shifts = random.normal(size=(200, 3, 6)) * np.array([1.0, 1.0, 0.02])[:, None]
    found = lowest(candidates.ranked(*times, shifts=shifts, or_best=or_best))
    for draw, (harmful, harmless) in enumerate(zip(*times, strict=True)):
        if draw in (3, 5):
            assert found[draw] == -1, "a side without a prompt chooses nothing"
            continue
        means = [
            np.repeat(values, counts, axis=1).mean(1) + shift
            for values, counts, shift in zip(
                (candidates.bypass, candidates.induce, candidates.kl), (harmful, harmless, harmless), shifts[draw],
                strict=True,
            )
        ]  # fmt: skip
        assert found[draw] == plainly(*means, rule, or_best=or_best)
    assert len(set(found)) > (3 if or_best else 0)


def test_the_first_of_the_lowest_is_taken():
    same = np.zeros((1, 3))
    assert lowest(ranked(same, same, same, Admissible())) == [0]
    assert lowest(np.full((2, 3), np.inf)).tolist() == [-1, -1]
    assert lowest(np.empty((2, 0))).tolist() == [-1, -1]
    bypass = np.array([[NAN, 2.0, 1.0]])
    assert lowest(ranked(bypass, same, same, Admissible())) == [2]
    assert lowest(ranked(bypass, same - 1, same, Admissible(), or_best=True)) == [2]


def test_rules_of_a_table():
    table = pd.DataFrame(
        [(-1, 3, 0.0, 1.0, 0.1), (NAN, 3, 0.0, 1.0, 0.0), (-1, 4, 0.0, -0.1, 0.2), (-1, NAN, NAN, NAN, NAN)],
        columns=["position", "layer", "bypass", "induce", "kl"],
    )
    found = Admissible().of(table, 5)
    assert found["admissible"].tolist() == [True, False, False, False]
    assert found["admissible_layer"].tolist() == [True, True, False, False]
    assert found["admissible_kl"].tolist() == [True, True, False, False]
    assert found["admissible_induce"].tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("given", "said"), [({"prune": 1.5}, "1.5: give a share"), ({"prune": NAN}, "share"), ({"kl": NAN}, "kl is NaN")]
)
def test_rules_that_are_none(given, said):
    with pytest.raises(MechrefusalError, match=said):
        Admissible(**given)
