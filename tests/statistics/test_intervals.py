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


def test_a_ratio_by_hand_and_patching_everything():
    parts, wholes = np.array([1.0, 2.0, 4.0, 3.0]), np.array([2.0, 5.0, 6.0, 7.0])
    found = intervals.ratio(parts, wholes)
    assert found.value == 0.5
    error = np.std(parts - 0.5 * wholes, ddof=1) / 5 / 2
    assert found.high - found.value == pytest.approx(3.1824463 * error)
    assert intervals.ratio(wholes, wholes) == intervals.Estimate(1.0, 1.0, 1.0, 4)
    assert np.isnan(intervals.ratio([1, 2], [1, -1]).value)
    assert np.isnan(intervals.ratio([], []).value)
    one = intervals.ratio([1], [4])
    assert one.value == 0.25
    assert np.isnan(one.low)
    negative = intervals.ratio(-parts, wholes)
    assert (negative.low, negative.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize("kind", ["proportional", "independent"])
@pytest.mark.parametrize("n", [16, 64])
def test_coverage_of_ratios(kind, n):
    """Between .93 and .97 of 2000 runs, the noise of which is .5%; a denominator that is held covers .12 to 1.00."""
    random = np.random.default_rng(n)
    covered = []
    for _ in range(2000):
        wholes = random.normal(5, 2, n)
        parts = 0.3 * wholes + random.normal(0, 0.3, n) if kind == "proportional" else random.normal(1.5, 1, n)
        found = intervals.ratio(parts, wholes)
        covered.append(found.low <= 0.3 <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_a_skewed_mean_of_symmetric_values_is_a_mean():
    values = np.array([-3.0, -1.0, 0.0, 1.0, 3.0]) + 2
    plain, found = intervals.mean(values), intervals.skewed_mean(values)
    assert (found.value, found.n) == (plain.value, plain.n)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high))
    assert intervals.skewed_mean([1.0, 1.0, 1.0, 1.0]) == intervals.mean([1.0, 1.0, 1.0, 1.0])
    assert intervals.skewed_mean([1.0, 2.0]) == intervals.mean([1.0, 2.0])
    assert np.isnan(intervals.skewed_mean([1.0, 2.0, np.nan]).value)


def test_the_ends_of_a_skewed_mean_are_what_halls_transformation_says():
    values = np.random.default_rng(0).lognormal(size=20)
    found, n = intervals.skewed_mean(values), 20
    spread, g = values.std(), ((values - values.mean()) ** 3).mean() / values.std() ** 3
    for end, t in ((found.low, 2.0930241), (found.high, -2.0930241)):
        w = (values.mean() - end) / spread
        assert w + g * w**2 / 3 + g**2 * w**3 / 27 + g / (6 * n) == pytest.approx(t / np.sqrt(n - 1), abs=1e-6)
    assert found.high - found.value > found.value - found.low, "the long tail is the uncertain one"


@pytest.mark.parametrize(("n", "least"), [(16, 0.89), (32, 0.90), (128, 0.92)])
def test_coverage_of_divergences(n, least):
    """Log-normal values (σ 1), for which a t interval covers .85, .88 and .93 (2000 runs, noise .6%)."""
    random = np.random.default_rng(n)
    covered, plainly = [], []
    for _ in range(2000):
        values = random.lognormal(size=n)
        for into, interval in ((covered, intervals.skewed_mean(values)), (plainly, intervals.mean(values))):
            into.append(interval.low <= np.exp(0.5) <= interval.high)
    assert np.mean(covered) > least
    assert np.mean(covered) > np.mean(plainly)
