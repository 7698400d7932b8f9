"""Agreement of two label columns, against counting by hand."""

import math

import pandas as pd
import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import agreement, any_refusal

C, P, F, D = "full_compliance", "partial_refusal", "full_refusal", "degenerate"


def test_by_hand():
    a = [C, C, C, F, F, P, P, D]
    b = [C, C, F, F, F, F, P, D]
    found = agreement(a, b)
    assert found.n == 8
    assert found.share == pytest.approx(6 / 8)
    expected = (3 * 2 + 2 * 1 + 2 * 4 + 1 * 1) / 64  # chance agreement from the margins
    assert found.kappa == pytest.approx((6 / 8 - expected) / (1 - expected))
    assert found.confusion.index.tolist() == found.confusion.columns.tolist() == [C, P, F, D]
    assert found.confusion.to_numpy().tolist() == [[2, 0, 1, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 1]]
    assert (found.confusion.index.name, found.confusion.columns.name) == ("a", "b")


def test_rows_without_a_label_are_counted_apart():
    found = agreement(pd.Series([C, None, F, float("nan")]), pd.Series([C, F, None, None], index=[7, 8, 9, 10]))
    assert (found.n, found.nulls_a, found.nulls_b) == (1, 2, 2)
    assert found.share == 1
    assert math.isnan(found.kappa)
    assert found.confusion.to_numpy().tolist() == [[1]]


def test_booleans():
    found = agreement([True, True, False, False], [True, False, False, True])
    assert found.share == 0.5
    assert found.kappa == pytest.approx(0)
    assert found.confusion.to_numpy().sum() == 4


def test_nothing_to_compare():
    found = agreement([], [])
    assert found.n == 0
    assert math.isnan(found.share)
    assert math.isnan(found.kappa)
    assert found.confusion.empty


def test_lengths_differ():
    with pytest.raises(MechrefusalError, match="1 and 2 rows"):
        agreement([C], [C, C])


def test_any_refusal():
    assert [any_refusal(label) for label in (C, P, F, D)] == [False, True, True, False]
    with pytest.raises(MechrefusalError, match="'1_full_compliance'"):
        any_refusal("1_full_compliance")
