"""Where a behaviour changes sides: the layer by hand, its bootstrap against a loop, and what has no side."""

import numpy as np
import pytest

from mechrefusal.statistics.sides import side_change

N, LAYERS = 12, [0, 2, 4, 6, 8]


def outcomes(*rates):
    """12 prompts by layer, of which the first so many have the outcome."""
    return np.array([[float(i < round(rate * N)) for rate in rates] for i in range(N)])


HERE, THERE = outcomes(0.0)[:, 0], outcomes(1.0)[:, 0]


@pytest.mark.parametrize(
    ("rates", "depth"),
    [
        ((0, 0, 1, 1, 1), 4),
        ((0.5, 0.5, 0.5, 0.5, 0.5), 0),
        ((0, 1, 0.25, 0.75, 1), 6),  # it has been there before, and gone back
        ((0, 0, 0, 0, 0.25), 10),
        ((1, 1, 1, 1, 1), 0),
    ],
)
def test_the_first_layer_from_which_on_it_stays(rates, depth):
    there = side_change(outcomes(*rates), THERE, HERE, layers=LAYERS, beyond=10)
    assert (there.depth.value, there.reason, there.gap.value) == (depth, "", 1.0)
    back = side_change(1 - outcomes(*rates), HERE, THERE, layers=LAYERS, beyond=10)
    assert (back.depth.value, back.gap.value) == (depth, -1.0)


def test_the_interval_is_that_of_whole_prompts_drawn_anew():
    random = np.random.default_rng(1)
    by_layer = (np.arange(5)[None] >= random.normal(2, 2.5, N)[:, None]).astype(float)
    there, here = THERE.copy(), HERE.copy()
    there[0], here[1] = 0, 1
    found = side_change(by_layer, there, here, layers=LAYERS, beyond=10, draws=400, seed=3)
    weights = np.random.default_rng(3).multinomial(N, np.full(N, 1 / N), size=400)
    depths = []
    for times in weights:
        rows = np.repeat(np.arange(N), times)
        rate, a, b = by_layer[rows].mean(0), there[rows].mean(), here[rows].mean()
        share = (rate - b) / (a - b)
        stays = [place for place in range(5) if all(share[place:] >= 0.5 - 1e-9)]
        depths.append(LAYERS[stays[0]] if stays else 10)
    assert found.missing == 0
    assert (found.depth.low, found.depth.high) == tuple(
        np.quantile(depths, [0.025, 0.975], method="closest_observation")
    )
    assert found.depth.low < found.depth.high
    assert found.depth.low <= found.depth.value <= found.depth.high


def test_sides_that_are_alike_have_no_depth():
    same = side_change(outcomes(0, 0, 1, 1, 1), THERE, THERE, layers=LAYERS, beyond=10)
    assert np.isnan(same.depth.value)
    assert same.reason.startswith("the two sides differ by +0.00 [")
    one = side_change(outcomes(0, 1, 1, 1, 1)[:1], THERE[:1], HERE[:1], layers=LAYERS, beyond=10)
    assert "two are needed" in one.reason


def test_prompts_without_an_outcome_are_left_out():
    by_layer, there = outcomes(0, 0, 1, 1, 1), THERE.copy()
    there[:3], by_layer[:3] = np.nan, 1
    found = side_change(by_layer, there, HERE, layers=LAYERS, beyond=10)
    assert (found.depth.value, found.depth.n) == (4, N - 3)
    by_layer[5, 1] = np.nan
    assert side_change(by_layer, there, HERE, layers=LAYERS, beyond=10).depth.value == 4
