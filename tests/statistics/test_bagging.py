import numpy as np
import pytest
from scipy import stats

from mechrefusal.statistics.bagging import bagged


def bootstraps(n, draws, seed=0):
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)


def test_of_a_mean_it_is_the_mean_and_its_variance():
    """Nothing is chosen: the mean of bootstraps is the mean, and the jackknife's variance is the textbook's (σ²/n)."""
    x = np.random.default_rng(1).normal(size=30)
    times = bootstraps(30, 200_000)
    found = bagged(times @ x / 30, times)
    assert found.value == pytest.approx(x.mean(), abs=4 * x.std() / np.sqrt(30 * 200_000))
    assert found.variance == pytest.approx(x.var() / 30, rel=0.02)
    assert (found.n, found.missing) == (30, 0.0)
    reach = stats.t.ppf(0.975, 29) * np.sqrt(found.variance + 0.5)
    assert found.interval(more=0.5) == pytest.approx((found.value - reach, found.value + reach))


def test_few_draws_do_not_inflate_the_variance():
    """Without the correction 200 draws of 30 prompts would add 30/200 of the statistic's own variance, 15%."""
    x = np.random.default_rng(1).normal(size=30)
    found = []
    for seed in range(200):
        times = bootstraps(30, 200, seed)
        found.append(bagged(times @ x / 30, times).variance)
    assert np.mean(found) == pytest.approx(x.var() / 30, rel=0.05)


def test_draws_without_a_value_are_counted_and_left_out():
    times = bootstraps(10, 1000)
    values = (times @ np.arange(10) / 10).astype(float)
    gone = times[:, 0] == 0
    found = bagged(np.where(gone, np.nan, values), times)
    assert found.missing == gone.mean()
    assert found.value == pytest.approx(values[~gone].mean())
    nothing = bagged(np.full(1000, np.nan), times)
    assert (nothing.missing, nothing.n) == (1.0, 10)
    assert np.isnan([nothing.value, *nothing.interval()]).all()
