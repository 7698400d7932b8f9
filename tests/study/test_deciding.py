"""How many prompts would decide, against a search for the first number at which the rule itself decides."""

from dataclasses import replace
from math import nan, sqrt

import numpy as np
import pytest

from mechrefusal.geometry.drift import Turn, verdict
from mechrefusal.statistics import Estimate
from mechrefusal.statistics.deciding import prompts_needed
from mechrefusal.study import move_verdicts

NOW = 40
MOST = 100_000


def first(decides):
    """The least number of prompts, from `NOW` on, at which `decides(scale of the intervals)`; NaN where none does."""
    numbers = np.arange(NOW, MOST + 1)
    told = np.array([decides(sqrt(NOW / n)) for n in numbers[:: len(numbers) // 200]])
    if not told.any():
        return nan if not decides(sqrt(NOW / MOST)) else float(_narrowed(decides, NOW, MOST))
    return float(_narrowed(decides, NOW, int(numbers[:: len(numbers) // 200][told.argmax()])))


def _narrowed(decides, low, high):
    """The first of low to high that decides, where everything from there on does."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(sqrt(NOW / middle)) else (middle + 1, high)
    return low


def turned(excess, corrected, reason=""):
    given = [Estimate(v, v - below, v + above, 16) for v, below, above in (excess, corrected)]
    return Turn("cosine", (given[1], given[1]), given[1], 0.9, given[0], given[1], 0.1, reason)


def scaled(found, scale):
    def one(estimate):
        ends = (estimate.value + scale * (end - estimate.value) for end in (estimate.low, estimate.high))
        return Estimate(estimate.value, *ends, estimate.n)

    return replace(found, excess=one(found.excess), corrected=one(found.corrected))


@pytest.mark.parametrize("seed", range(60))
def test_turn(seed):
    drawn = np.random.default_rng(seed)
    excess = (drawn.uniform(-0.05, 0.3), *drawn.uniform(0, 0.5, 2))
    corrected = (drawn.uniform(0.8, 1.0), *drawn.uniform(0, 0.2, 2))
    found = turned(excess, corrected)
    expected = first(lambda scale: verdict(scaled(found, scale))[0] != "cannot tell")
    assert move_verdicts.for_turn(found, NOW) == pytest.approx(expected, nan_ok=True, abs=1)


def test_turns_that_no_number_decides():
    assert np.isnan(move_verdicts.for_turn(turned((-0.01, 0.1, 0.1), (0.85, 0.1, 0.1)), 40)), "turned, but by no excess"
    assert np.isnan(move_verdicts.for_turn(turned((0.1, 0.2, 0.2), (0.9, 0.1, 0.1)), 40)), "on the border"
    assert np.isnan(move_verdicts.for_turn(turned((0.1, 0.2, 0.2), (0.85, 0.1, 0.1), reason="unpaired"), 40))
    assert np.isnan(move_verdicts.for_turn(turned((0.1, nan, nan), (0.85, 0.1, 0.1)), 40))


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ([(2.0, 1.0)], 160),
        ([(2.0, 1.0), (1.5, 1.0)], 90),  # the nearer of two ways
        ([(0.5, 1.0)], 40),  # never fewer than there are
        ([(1.0, 0.0)], nan),  # on the border
        ([(1.0, -1.0)], nan),
        ([(nan, 1.0)], nan),
        ([(1.0, nan), (2.0, 1.0)], 160),
        ([], nan),
        ([(50.0, 1.0)], 100_000),
        ([(50.1, 1.0)], nan),  # more than anybody has
        ([(1.01, 1.0)], 41),  # rounded up
    ],
)
def test_prompts_needed(needs, expected):
    assert prompts_needed(40, *needs) == pytest.approx(expected, nan_ok=True)


def test_of_an_unknown_number_of_prompts():
    assert np.isnan(prompts_needed(nan, (2.0, 1.0)))


def test_words():
    assert move_verdicts.what_decides(160.0) == "about 160 prompts of each side would decide it"
    assert move_verdicts.what_decides(nan) == "no number of prompts decides it as things stand"
