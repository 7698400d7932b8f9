from itertools import product

import numpy as np
import pytest
from scipy import stats

from mechrefusal.statistics.maps import among_controls_p, holm, sign_flip_p, two_sample_p


def test_of_one_cell_it_is_scipys_permutation_test():
    values = np.random.default_rng(0).normal(0.5, 1, size=9)
    expected = stats.permutation_test(
        (values,), lambda x: abs(x.mean()), permutation_type="samples", n_resamples=np.inf, alternative="greater"
    ).pvalue
    assert sign_flip_p(values[:, None])[0] == pytest.approx(expected)


def test_step_down_by_a_plain_loop():
    values = np.random.default_rng(1).normal(size=(6, 4)) + np.array([0.0, 1.5, 0.3, -0.8])

    def t(rows):
        return np.abs(rows.mean(0)) / (rows.std(0, ddof=1) / np.sqrt(len(rows)))

    observed, order = t(values), np.argsort(-t(values))
    drawn = np.array([t(values * np.array(signs)[:, None]) for signs in product([1, -1], repeat=6)])
    p, worst = np.empty(4), 0.0
    for place, cell in enumerate(order):
        worst = max(worst, float((drawn[:, order[place:]].max(axis=1) >= observed[cell] - 1e-9).mean()))
        p[cell] = worst
    np.testing.assert_allclose(sign_flip_p(values), p)


@pytest.mark.parametrize("rounding", [0.0, 3e-7, -3e-7])
def test_rounding_breaks_no_tie(rounding):
    """A cell that is 0 for one of two pairs has |t| 1 whichever sign is flipped, so that every flip is as far."""
    assert sign_flip_p(np.array([[0.8], [rounding]])).tolist() == [1.0]
    assert sign_flip_p(np.array([[0.8], [1e-3]])).tolist() == [0.5], "a difference that is there is seen"


def test_rounding_is_no_change():
    """What float32 rounds away has p 1, and tells nothing of the other cells."""
    random = np.random.default_rng(0)
    cells = random.normal(0.02, 0.02, size=(2, 6))
    rounding = 1e-6 * random.normal(size=(2, 200))
    found = sign_flip_p(np.hstack([cells, rounding]))
    assert found[:6].tolist() == sign_flip_p(cells).tolist()
    assert (found[6:] == 1).all()


def test_cells_without_numbers():
    values = np.ones((8, 4))
    values[:, 1] = np.random.default_rng(0).normal(size=8)
    values[0, 2], values[:, 3] = np.nan, 0
    found = sign_flip_p(values)
    assert found[0] == 2 / 2**8, "all alike and not zero: as far as can be told"
    assert np.isnan(found[2])
    assert found[3] == 1
    assert np.isnan(sign_flip_p(np.ones((1, 3)))).all()
    assert sign_flip_p(np.ones((5, 0))).shape == (0,)


def correlated(random, n, cells=270, share=0.7):
    """Cells that move together, as heads do."""
    common = random.normal(size=(n, 1)) * random.normal(1, 0.3, size=cells)
    return np.sqrt(share) * common + np.sqrt(1 - share) * random.normal(size=(n, cells))


@pytest.mark.parametrize("n", [8, 16, 32])
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_false_alarms_of_a_map(n, share):
    """Maps of nothing with any mark: at most 5%, and two standard errors of 300 runs (2.5%)."""
    random = np.random.default_rng([n, int(10 * share)])
    marked = [(sign_flip_p(correlated(random, n, share=share), draws=400) < 0.05).any() for _ in range(300)]
    assert np.mean(marked) <= 0.05 + 0.025


def test_ten_heads_of_one_standard_deviation_are_found():
    random = np.random.default_rng(0)
    found, false = [], []
    for _ in range(100):
        values = correlated(random, 32, share=0.5)
        values[:, :10] += values.std() * 1.0
        marks = sign_flip_p(values, draws=600) < 0.05
        found.append(marks[:10].sum())
        false.append(marks[10:].any())
    assert np.mean(found) >= 9
    assert np.mean(false) <= 0.05 + 2 * 0.022


@pytest.mark.parametrize(("n", "m"), [(12, 12), (8, 24)])
def test_false_alarms_and_power_of_two_groups(n, m):
    random = np.random.default_rng(n)
    marked, found = [], []
    for _ in range(150):
        one, other = correlated(random, n, 60, 0.5), correlated(random, m, 60, 0.5)
        marked.append((two_sample_p(one, other, draws=400) < 0.05).any())
        found.append((two_sample_p(one + 2.5 * (np.arange(60) == 3), other, draws=400) < 0.05)[3])
    assert np.mean(marked) <= 0.05 + 2 * 0.018
    assert np.mean(found) > 0.8
    assert np.isnan(two_sample_p(np.ones((1, 2)), np.ones((5, 2)))).all()


@pytest.mark.parametrize("draws", [3, 4, 20])
@pytest.mark.parametrize("unlike", [0.0, 0.5, 1.0])
def test_false_alarms_among_controls(draws, unlike):
    """A value that is one more draw of its control, for 270 cells of like and of very unlike sizes."""
    random = np.random.default_rng([draws, int(10 * unlike)])
    sizes = random.lognormal(sigma=unlike, size=270)
    marked = []
    for _ in range(2000):
        all_of_them = random.normal(0.2, 1, size=(draws + 1, 270)) * sizes
        marked.append((among_controls_p(all_of_them[0], all_of_them[1:]) < 0.05).any())
    assert np.mean(marked) <= 0.05 + 2 * 0.005
    if draws == 4 and unlike < 1:
        value, controls = random.normal(size=270) * sizes, random.normal(size=(draws, 270)) * sizes
        value[7] = 12 * sizes[7]
        assert among_controls_p(value, controls)[7] < 0.05, "with the other cells' variances four draws are enough"
    assert np.isnan(among_controls_p(np.ones(2), random.normal(size=(2, 2)))).all()


def test_holm_by_hand_leaves_out_what_is_no_test():
    found = holm(np.array([0.001, np.nan, 0.04, 0.012, 0.5, np.nan, 0.012]))
    # Five tests: 5 · .001; 4 · .012, and no less for the same p; 2 · .04; .5.
    np.testing.assert_allclose(found, [0.005, np.nan, 0.08, 0.048, 0.5, np.nan, 0.048], rtol=1e-12)
    np.testing.assert_allclose(holm(np.array([0.03, 0.04])), [0.06, 0.06], err_msg="it rises with p")
    assert holm(np.array([0.7, 0.8])).tolist() == [1, 1]
    assert len(holm(np.array([]))) == 0


def test_holm_keeps_the_share_of_families_with_any_false_mark():
    random = np.random.default_rng(0)
    # Of correlated tests of nothing: the common part makes them err together.
    values = random.normal(size=(1000, 1)) + random.normal(size=(1000, 30))
    p = 2 * stats.norm.sf(np.abs(values) / np.sqrt(2))
    any_mark = np.mean([(holm(row) < 0.05).any() for row in p])
    assert any_mark <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)
    assert (p < 0.05).any(axis=1).mean() > 0.3, "unadjusted"
