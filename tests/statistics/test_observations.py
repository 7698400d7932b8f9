"""Observations against numpy and scipy by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mechrefusal import MechrefusalError
from mechrefusal.statistics import Observations, Observed, intervals
from mechrefusal.statistics.maps import sign_flip_p

VALUES = np.random.default_rng(0).normal([0.0, 1.0, -2.0, 0.1], 0.5, (12, 4))
CELLS = pd.DataFrame({"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1]})


@pytest.fixture
def seen():
    return Observations(VALUES, CELLS, tuple(f"p{i}" for i in range(12)))


def test_a_cell_is_found_by_its_axes(seen):
    np.testing.assert_array_equal(seen.of(layer=1, head=0), VALUES[:, 2])
    part = seen.where(layer=0)
    np.testing.assert_array_equal(part.values, VALUES[:, :2])
    assert part.cells["head"].tolist() == [0, 1]


def test_an_interval_is_that_of_student(seen):
    found, own = seen.interval(layer=0, head=1), VALUES[:, 1]
    low, high = stats.t.interval(0.95, 11, loc=own.mean(), scale=stats.sem(own))
    assert (found.value, found.low, found.high, found.n) == pytest.approx((own.mean(), low, high, 12))


def test_the_bootstrap_draws_whole_units(seen):
    """Of a difference of two cells that go up and down together: much narrower than of either."""
    shared = np.random.default_rng(1).normal(0, 10, (12, 1)) + VALUES
    both = Observations(shared, CELLS, seen.units)
    found = both.bootstrap(lambda values: (values[:, 1] - values[:, 0]).mean(), draws=500)
    assert found.value == pytest.approx((VALUES[:, 1] - VALUES[:, 0]).mean())
    assert found.low < found.value < found.high
    assert found.high - found.low < 1.5
    alone = both.bootstrap(lambda values: values[:, 1].mean(), draws=500)
    assert alone.high - alone.low > 5
    assert found == both.bootstrap(lambda values: (values[:, 1] - values[:, 0]).mean(), draws=500), (
        "one seed, one number"
    )


def test_p_is_that_of_flipped_signs(seen):
    np.testing.assert_array_equal(seen.p(), sign_flip_p(VALUES))
    assert (seen.p() < 0.05)[1:3].all()
    assert seen.p()[0] > 0.05


def test_the_largest_come_first_whatever_their_sign(seen):
    assert seen.top(2)[["layer", "head"]].to_numpy().tolist() == [[1, 0], [0, 1]]
    assert seen.top(1)["value"][0] == pytest.approx(VALUES[:, 2].mean())


def test_tidy_rows_there_and_back_without_what_is_lacking():
    rows = pd.DataFrame({"pair": ["a", "a", "b"], "layer": [1, 0, 1], "position": [-1, -2, -1], "raw": [1.0, 2.0, 3.0]})
    seen = Observations.of_rows(rows, ["layer", "position"], unit="pair", value="raw")
    assert seen.units == ("a", "b")
    np.testing.assert_array_equal(seen.values, [[1.0, 2.0], [3.0, np.nan]])
    assert seen.of(layer=0, position=-2).tolist() == [2.0], "b has no such cell"
    back = seen.table.rename(columns={"value": "raw"}).sort_values(["pair", "layer"], ignore_index=True)
    pd.testing.assert_frame_equal(
        back[["pair", "layer", "position", "raw"]].astype(rows.dtypes),
        rows.sort_values(["pair", "layer"], ignore_index=True)[["pair", "layer", "position", "raw"]],
    )


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"position": 1}, "no axis 'position'; these observations have layer, head"),
        ({"layer": 7, "head": 0}, "no cell with layer 7, head 0 was measured"),
        ({"layer": 1}, "2 cells fit"),
    ],
)
def test_a_cell_that_is_none(seen, axes, said):
    with pytest.raises(MechrefusalError, match=said):
        seen.of(**axes)


def test_sides_are_units_of_their_own():
    """What is measured on one side has no value of the other."""
    values = {("a", 1): ("harmful", np.array([1.0, 2.0])), ("b", 1): ("harmless", np.array([3.0, 4.0, 5.0]))}
    found = Observations.of_sides({"harmful": 2, "harmless": 3}, values, ("name", "k"))
    assert found.units == ("harmful 0", "harmful 1", "harmless 0", "harmless 1", "harmless 2")
    assert found.of(name="a").tolist() == [1, 2]
    assert found.of(name="b").tolist() == [3, 4, 5]
    assert found.interval(name="b") == intervals.mean([3, 4, 5])


def test_observations_are_joined_by_their_units(seen):
    part = Observations(VALUES[:5], CELLS, seen.units[:5])
    found = Observations.joined([seen, part], "draw", [0, 1])
    assert found.axes == ("draw", "layer", "head")
    np.testing.assert_array_equal(found.where(draw=0).values, VALUES)
    assert found.of(draw=1, layer=1, head=0).tolist() == VALUES[:5, 2].tolist()
    assert found.units == seen.units


def test_a_result_asks_its_observations(seen):
    class Result(Observed):
        observations = seen

    assert Result().interval(layer=0, head=1) == seen.interval(layer=0, head=1)
    assert Result().top(1).equals(seen.top(1))
    with pytest.raises(MechrefusalError, match="4 cells fit"):
        Result().interval()
