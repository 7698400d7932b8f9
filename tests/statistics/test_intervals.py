"""Intervals against their formulas."""

import numpy as np
import pytest

from mechrefusal.statistics import intervals

Z = 1.959963984540054  # the 97.5% point of the normal distribution


def wilson(k, n, z=Z):
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (50, 100), (99, 100), (1, 10_000)])
def test_wilson(k, n):
    found = intervals.rate(k, n)
    low, high = wilson(k, n)
    assert (found.value, found.n) == (k / n, n)
    assert found.low == pytest.approx(max(low, 0), abs=1e-12)
    assert found.high == pytest.approx(min(high, 1), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_wilson_from_a_book():
    """Newcombe (1998), table I: 81 of 263 and 15 of 148."""
    first, second = intervals.rate(81, 263), intervals.rate(15, 148)
    assert (round(first.low, 4), round(first.high, 4)) == (0.2553, 0.3662)
    assert (round(second.low, 4), round(second.high, 4)) == (0.0624, 0.1605)


def test_other_confidence():
    found = intervals.rate(3, 10, confidence=0.99)
    assert (found.low, found.high) == pytest.approx(wilson(3, 10, 2.5758293035489004))


def test_rate_of_nothing():
    found = intervals.rate(0, 0)
    assert np.isnan(found.value)
    assert (found.low, found.high, found.n) == (0.0, 1.0, 0)


def test_rate_of_numpy_numbers():
    found = intervals.rate(np.int64(3), np.int64(10))
    assert found == intervals.rate(3, 10)


def test_mean_by_hand():
    # Mean 3, standard deviation sqrt(2.5), t(4) at 97.5% = 2.776445.
    half = 2.7764451051977987 * np.sqrt(2.5 / 5)
    found = intervals.mean([1, 2, 3, 4, 5])
    assert (found.value, found.low, found.high, found.n) == pytest.approx((3, 3 - half, 3 + half, 5))
    narrower = intervals.mean(np.array([1, 2, 3, 4, 5]), confidence=0.5)
    assert narrower.high - 3 == pytest.approx(0.7406970841126809 * np.sqrt(0.5))


def test_mean_of_equal_values():
    found = intervals.mean([2.0, 2.0, 2.0])
    assert (found.value, found.low, found.high, found.n) == (2, 2, 2, 3)


def test_mean_of_one_and_of_nothing():
    one = intervals.mean([7.0])
    assert (one.value, one.n) == (7.0, 1)
    assert np.isnan([one.low, one.high]).all()
    none = intervals.mean([])
    assert np.isnan([none.value, none.low, none.high]).all()
    assert none.n == 0
