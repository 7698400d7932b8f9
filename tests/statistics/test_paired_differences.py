import numpy as np
import pytest

from mechrefusal.statistics.intervals import skewed_mean
from mechrefusal.statistics.paired import mean_difference, rate_difference


def outcomes(both, only_first, only_second, neither):
    first = [1] * both + [1] * only_first + [0] * only_second + [0] * neither
    second = [1] * both + [0] * only_first + [1] * only_second + [0] * neither
    return np.array(first, float), np.array(second, float)


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        # Newcombe (1998, Statistics in Medicine 17, 2635), table III, method 10; there the first minus the second.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
    ],
)
def test_newcombes_own_table(cells, low, high):
    found = rate_difference(*outcomes(*cells))
    assert (-found.high, -found.low) == pytest.approx((low, high), abs=2e-3)


def test_by_hand_where_the_two_rates_have_much_in_common():
    """53 and 53 of 54: Wilson intervals .0795 down and .0153 up, φ = (53 − 27) / 53 with the correction."""
    found = rate_difference(*outcomes(53, 0, 0, 1))
    half = np.sqrt(0.07945**2 - 2 * (26 / 53) * 0.07945 * 0.01525 + 0.01525**2)
    assert (found.low, found.high) == pytest.approx((-half, half), abs=1e-3)


def test_swapped_it_is_the_same_with_the_other_sign():
    first, second = outcomes(11, 7, 2, 9)
    one, other = rate_difference(first, second), rate_difference(second, first)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert one.value == pytest.approx(-5 / 29)


def test_all_alike_still_has_a_width():
    found = rate_difference(np.ones(16), np.ones(16))
    assert (found.value, found.n) == (0, 16)
    assert found.low == pytest.approx(-found.high)
    assert 0.1 < found.high < 0.3


def test_units_count_where_all_their_prompts_answer_alike():
    """Every prompt four times is a quarter of the evidence: the interval is that of each once."""
    first, second = outcomes(9, 6, 2, 7)
    once = rate_difference(first, second)
    units = np.repeat(np.arange(len(first)), 4)
    four = rate_difference(first.repeat(4), second.repeat(4), units)
    assert (four.value, four.n) == (once.value, 96)
    assert (four.low, four.high) == pytest.approx((once.low, once.high), abs=0.01)
    plain = rate_difference(first.repeat(4), second.repeat(4))
    assert plain.high - plain.low < 0.6 * (four.high - four.low)
    still = rate_difference(np.ones(96), np.ones(96), units)
    assert (still.low, still.high) == pytest.approx(
        tuple(vars(rate_difference(np.ones(24), np.ones(24))).values())[1:3]
    )


def test_prompts_without_a_unit_stand_alone():
    first, second = outcomes(9, 6, 2, 7)
    assert rate_difference(first, second, [None] * 24) == rate_difference(first, second)
    assert np.isnan(rate_difference(first, second, ["one"] * 24).low)
    assert np.isnan(rate_difference(np.ones(1), np.zeros(1)).low)


@pytest.mark.parametrize(("n", "p", "q"), [(16, 0.95, 0.95), (16, 0.9, 0.6), (64, 0.05, 0.2)])
def test_coverage_of_rates(n, p, q):
    """At least 95% up to the noise of 800 runs (.77%, two of them)."""
    random = np.random.default_rng(0)
    covered = []
    for _ in range(800):
        shared = random.random(n) < 0.5
        u, v = random.random((2, n))
        v = np.where(shared, u, v)
        found = rate_difference((u < p).astype(float), (v < q).astype(float))
        covered.append(found.low <= q - p <= found.high)
    assert np.mean(covered) > 0.95 - 2 * 0.0077


def test_means_of_units_and_of_prompts():
    changes = np.random.default_rng(0).exponential(size=30)
    assert mean_difference(changes) == skewed_mean(changes)
    sizes = np.tile([1, 2, 6], 10)
    labels = np.repeat(np.arange(30), sizes)
    found = mean_difference(changes[labels], labels)
    value = (changes * sizes).sum() / sizes.sum()
    error = (sizes * (changes - value)).std(ddof=1) / sizes.mean() / np.sqrt(30)
    assert found.value == pytest.approx(value)
    assert found.high - found.low == pytest.approx(2 * 2.0452 * error, rel=1e-4)
    assert found.n == 90
