import numpy as np
import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.statistics import power
from mechrefusal.statistics.maps import sign_flip_p
from mechrefusal.statistics.paired import rate_difference


def test_pairs_by_connors_formula():
    difference, discordant = 0.1, 0.3
    by_hand = ((1.959964 * np.sqrt(0.3) + 1.281552 * np.sqrt(0.3 - 0.01)) / 0.1) ** 2
    assert power.prompts_for_rates(difference, discordant) == np.ceil(by_hand)


@pytest.mark.parametrize(("lost", "gained"), [(0.25, 0.05), (0.02, 0.15)])
def test_rates_at_that_number_are_told_as_often(lost, gained):
    """The package's own interval (Newcombe's) excludes 0 in about 90% of 800 runs (noise 1.1%)."""
    n = int(power.prompts_for_rates(lost - gained, lost + gained))
    random, told = np.random.default_rng(0), []
    for _ in range(800):
        u = random.random(n)
        first = np.where(u < lost, 1.0, np.where(u < lost + gained, 0.0, 1.0))
        second = np.where(u < lost, 0.0, np.where(u < lost + gained, 1.0, 1.0))
        found = rate_difference(first, second)
        told.append(found.low > 0 or found.high < 0)
    assert 0.84 < np.mean(told) < 0.96


def test_the_smallest_difference_needs_that_number():
    for n in (24, 60, 400):
        least = power.smallest_rate_difference(0.3, n)
        discordant = max(least, 0.3)
        assert power.rate_power(least, discordant, n) == pytest.approx(0.9, abs=1e-6)
        assert power.prompts_for_rates(least, discordant) == pytest.approx(n, abs=1)
    assert power.smallest_rate_difference(0.05, 20) > 0.05, "with more discordant prompts than there were"
    assert np.isnan(power.smallest_rate_difference(0.05, 2))
    assert np.isnan(power.prompts_for_rates(0.0, 0.3))
    with pytest.raises(MechrefusalError, match=r"difference of 0\.4 with 0\.3"):
        power.rate_power(0.4, 0.3, 100)


def test_a_head_of_that_effect_stands_out_as_often():
    random = np.random.default_rng(0)
    common = random.normal(size=(40, 1))
    critical = power.map_critical(0.6 * common + random.normal(size=(40, 100)))
    assert 3 < critical < 4
    effect = power.smallest_effect(1.0, critical, 40)
    assert power.prompts_for_effect(effect, 1.0, critical) == pytest.approx(40, abs=1)
    told = []
    for _ in range(200):
        values = 0.5 * random.normal(size=(40, 1)) + np.sqrt(0.75) * random.normal(size=(40, 100))
        values[:, 3] += effect
        told.append(sign_flip_p(values, draws=600)[3] < 0.05)
    # Student's t in place of the normal: at 40 prompts somewhat less than 90%.
    assert 0.75 < np.mean(told) < 0.97
    assert np.isnan(power.map_critical(np.ones((5, 3))))


@pytest.mark.parametrize(("move", "limit"), [(5.0, 3.0), (9.0, 3.0), (2.0, 1.0)])
def test_moves(move, limit):
    n = power.prompts_for_move(move, 1.5, limit, 32)
    error = 1.5 * np.sqrt(32 / n)
    assert power.move_power(move, error, limit) == pytest.approx(0.9, abs=0.03)
    # Ten prompts in place of 9.3: whole numbers alone are 4% of the error.
    assert power.smallest_move(error, limit) == pytest.approx(move, rel=0.04)
    draws = np.random.default_rng(0).normal(move, error, size=20_000)
    told = (np.abs(draws) > limit) & (np.abs(draws) > 1.959964 * error)
    assert told.mean() == pytest.approx(power.move_power(move, error, limit), abs=0.01)


def test_no_number_tells_a_move_within_the_tolerance():
    assert np.isnan(power.prompts_for_move(3.0, 0.5, 3.0, 32))
    assert power.prompts_for_move(5.0, 0.0, 3.0, 32) == 32
    assert (power.move_power(5.0, 0.0, 3.0), power.move_power(2.0, 0.0, 3.0)) == (1, 0)
    assert np.isnan(power.prompts_for_move(5.0, float("nan"), 3.0, 32))
