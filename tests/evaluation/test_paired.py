"""Paired differences against formulas by hand, and the pairs of checkpoints that a table gives."""

from math import comb, isnan

import numpy as np
import pandas as pd
import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import compare, paired_difference


def outcomes(n_both: int, n_lost: int, n_gained: int, n_neither: int):
    a = [1] * n_both + [1] * n_lost + [0] * n_gained + [0] * n_neither
    b = [1] * n_both + [0] * n_lost + [1] * n_gained + [0] * n_neither
    return a, b, range(len(a))


@pytest.mark.parametrize(("lost", "gained"), [(3, 12), (12, 3), (5, 5), (0, 6), (1, 0), (0, 0)])
def test_mcnemar_is_the_binomial_formula(lost, gained):
    found = paired_difference(*outcomes(20, lost, gained, 10))
    tail = sum(comb(lost + gained, k) for k in range(min(lost, gained) + 1)) / 2 ** (lost + gained)
    assert found.mcnemar_p == pytest.approx(min(1, 2 * tail))
    assert (found.only_a, found.only_b, found.n, found.nulls) == (lost, gained, 30 + lost + gained, 0)
    assert found.difference == pytest.approx((gained - lost) / found.n)
    assert found.mean_b - found.mean_a == pytest.approx(found.difference)


def test_the_interval_is_that_of_the_standard_error_of_the_changes():
    a, b, ids = outcomes(200, 60, 110, 130)
    found = paired_difference(a, b, ids)
    changes = np.array(b) - np.array(a)
    half = 1.959964 * changes.std() / np.sqrt(len(changes))
    assert found.low == pytest.approx(changes.mean() - half, abs=0.003)
    assert found.high == pytest.approx(changes.mean() + half, abs=0.003)
    # The pairing counts: unpaired, the interval would be wider.
    unpaired = 1.959964 * np.sqrt((np.var(a) + np.var(b)) / len(a))
    assert found.high - found.low < 2 * unpaired
    assert found == paired_difference(a, b, ids)


def test_real_outcomes_have_an_interval_and_no_mcnemar():
    random = np.random.default_rng(0)
    a = random.normal(size=400)
    b = a + random.normal(0.3, 0.5, size=400)
    found = paired_difference(a, b, np.arange(400))
    half = 1.959964 * (b - a).std() / 20
    assert (found.low, found.high) == pytest.approx(((b - a).mean() - half, (b - a).mean() + half), abs=0.004)
    assert (found.only_a, found.only_b) == (None, None)
    assert isnan(found.mcnemar_p)


def test_twins_are_drawn_together():
    # Each group of four moves as one: the noise is that of 50 groups, not of 200 prompts.
    moves = np.repeat(np.random.default_rng(1).normal(size=50), 4)
    groups = np.repeat(np.arange(50), 4)
    found = paired_difference(np.zeros(200), moves, np.arange(200), groups)
    half = 1.959964 * moves.std() / np.sqrt(50)
    assert (found.low, found.high) == pytest.approx((moves.mean() - half, moves.mean() + half), abs=0.03)
    alone = paired_difference(np.zeros(200), moves, np.arange(200))
    assert (found.high - found.low) / (alone.high - alone.low) == pytest.approx(2, rel=0.1)
    # Groups of one, and no group at all, are prompts.
    assert paired_difference(np.zeros(200), moves, np.arange(200), [None] * 200).low == alone.low
    # Groups of different sizes: a draw is a ratio of sums, whose linearised error is known.
    sizes = np.tile([1, 2, 6], 40)
    labels, base = np.repeat(np.arange(120), sizes), np.random.default_rng(2).normal(size=120)
    changes = base[labels]
    found = paired_difference(np.zeros(len(changes)), changes, range(len(changes)), labels)
    parts = sizes * (base - changes.mean())
    half = 1.959964 * np.sqrt((parts**2).sum()) / sizes.sum()
    assert (found.low, found.high) == pytest.approx((changes.mean() - half, changes.mean() + half), abs=0.03)


def test_rows_without_an_outcome_are_left_out_and_counted():
    a = [1, None, 0, 1, float("nan"), True, pd.NA]
    b = [0, 1, None, 1, None, False, 1]
    found = paired_difference(a, b, list("abcdefg"), ["x", "x", "y", "y", None, "z", "z"])
    assert (found.n, found.nulls, found.only_a, found.only_b) == (3, 4, 2, 0)
    assert found.difference == pytest.approx(-2 / 3)
    assert found.mcnemar_p == pytest.approx(0.5)
    verdicts = pd.Series([None if pd.isna(value) else bool(value) for value in b], dtype="boolean")
    nullable = paired_difference(pd.Series(a, dtype="Float64"), verdicts, pd.Series(list("abcdefg")))
    assert (nullable.n, nullable.difference) == (3, found.difference)


def test_too_little_to_say_anything():
    none = paired_difference([], [], [])
    assert (none.n, none.nulls, none.only_a) == (0, 0, None)
    assert all(isnan(value) for value in (none.difference, none.low, none.high, none.mcnemar_p, none.mean_a))
    one = paired_difference([0], [1], ["x"])
    assert (one.difference, one.mcnemar_p, one.only_b) == (1, 1, 1)
    assert isnan(one.low)
    assert isnan(paired_difference([0, 0], [1, 1], ["x", "y"], ["g", "g"]).low)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": [1], "b": [1, 0], "ids": ["x", "y"]}, "1 outcomes of a, 2 of b do not fit 2 ids"),
        ({"a": [1], "b": [1], "ids": ["x"], "groups": []}, "and 0 groups do not fit 1 ids"),
        ({"a": [1, 1], "b": [1, 0], "ids": ["x", "x"]}, "prompt 'x' stands twice"),
        ({"a": ["yes"], "b": [1], "ids": ["x"]}, "prompt 'x' at a is 'yes'"),
        ({"a": [1], "b": [float("inf")], "ids": ["x"]}, "prompt 'x' at b is inf"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_named(given, message):
    with pytest.raises(MechrefusalError, match=message):
        paired_difference(**given)


@pytest.fixture
def table():
    random = np.random.default_rng(4)
    rows = [
        {
            "arm": arm, "step": step, "set": name, "attack": attack, "intervention": "none", "prompt_id": f"p{prompt}",
            "twin": prompt // 2, "refused": bool(random.random() < 0.5), "score": float(random.normal()),
        }
        for arm, step in [("r2d2", 20), ("base", 0), ("r2d2", 10), ("sft", 10), ("sft", 20), ("sft", 5)]
        for name, attack in [("harmful", "none"), ("harmful", "gcg"), ("harmless", "none")]
        for prompt in range(12)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def at(table, arm, step, name="harmful", attack="none"):
    chosen = (table["arm"] == arm) & (table["step"] == step) & (table["set"] == name) & (table["attack"] == attack)
    return table[chosen].set_index("prompt_id")


def test_every_pair_of_checkpoints_has_its_rows(table):
    before = table.copy()
    found = compare(table, value=["refused", "score"])
    pairs = found[["pair", "arm_a", "step_a", "arm_b", "step_b"]].drop_duplicates().values.tolist()
    assert pairs == [
        ["base", "base", 0, "r2d2", 10],
        ["base", "base", 0, "r2d2", 20],
        ["base", "base", 0, "sft", 5],
        ["base", "base", 0, "sft", 10],
        ["base", "base", 0, "sft", 20],
        ["consecutive", "r2d2", 10, "r2d2", 20],
        ["consecutive", "sft", 5, "sft", 10],
        ["consecutive", "sft", 10, "sft", 20],
        ["last", "r2d2", 20, "sft", 20],
    ]
    assert len(found) == len(pairs) * 3 * 2
    assert not found.duplicated(["pair", "arm_a", "step_a", "arm_b", "step_b", "set", "attack", "metric"]).any()
    for row in found.itertuples():
        a, b = (
            at(table, *side, row.set, row.attack)[row.metric]
            for side in ((row.arm_a, row.step_a), (row.arm_b, row.step_b))
        )
        alone = paired_difference(a, b, a.index)
        assert row.difference == pytest.approx(b.astype(float).mean() - a.astype(float).mean())
        assert (row.low, row.high, row.n, row.missing_a, row.missing_b) == (alone.low, alone.high, 12, 0, 0)
        if row.metric == "refused":
            assert (row.mcnemar_p, row.only_a, row.only_b) == (alone.mcnemar_p, alone.only_a, alone.only_b)
        else:
            assert isnan(row.mcnemar_p)
    pd.testing.assert_frame_equal(table, before)


def test_the_order_of_the_rows_does_not_matter(table):
    shuffled = table.sample(frac=1, random_state=0)
    order = ["arm_a", "step_a", "arm_b", "step_b", "set", "attack"]
    found, again = (compare(t, value="refused", groups="twin") for t in (table, shuffled))
    columns = [*order, "difference", "low", "high", "mcnemar_p", "n"]
    # Which arm comes first is that of the table: here the pairs of last anchors are left aside.
    found, again = (t[t["pair"] != "last"][columns].sort_values(order, ignore_index=True) for t in (found, again))
    pd.testing.assert_frame_equal(found, again)


def test_prompts_of_one_side_are_counted_and_not_compared(table):
    gone = (table["arm"] == "sft") & (table["step"] == 20) & (table["set"] == "harmful") & (table["attack"] == "none")
    part = table[~(gone & table["prompt_id"].isin(["p1", "p2"]))]
    part = part[~((part["arm"] == "base") & (part["prompt_id"] == "p7"))]
    part = part[~((part["arm"] == "base") & (part["set"] == "harmless"))]
    part = part.assign(refused=part["refused"].astype(object))
    part.loc[(part["arm"] == "base") & (part["prompt_id"] == "p5"), "refused"] = None
    found = compare(part, value="refused", groups="twin")
    row = found[(found["pair"] == "base") & (found["arm_b"] == "sft") & (found["step_b"] == 20)].set_index(
        ["set", "attack"]
    )
    here = row.loc[("harmful", "none")]
    assert (here["n"], here["nulls"], here["missing_a"], here["missing_b"]) == (8, 1, 1, 2)
    nothing = row.loc[("harmless", "none")]
    assert (nothing["n"], nothing["missing_a"], nothing["missing_b"]) == (0, 12, 0)
    assert isnan(nothing["difference"])
    assert nothing["only_a"] is pd.NA


def test_cells_of_ones_own_and_missing_cells(table):
    judges = pd.concat([table.assign(judge=None), table.assign(judge="llm", refused=~table["refused"])])
    judges["judge"] = judges["judge"].astype("category")
    found = compare(judges, value="refused", by=["set", "judge", "attack"])
    assert len(found) == 2 * len(compare(table, value="refused"))
    plain, turned = found[found["judge"].isna()], found[found["judge"] == "llm"]
    assert plain["difference"].to_numpy() == pytest.approx(-turned["difference"].to_numpy())
    one = table[(table["set"] == "harmless")]
    assert len(compare(one, value="refused", by=[])) == 9
    assert compare(table[:0], value="refused").empty
    assert set(compare(table[table["arm"] != "base"], value="refused")["pair"]) == {"consecutive", "last"}


def test_tables_that_cannot_be_compared_are_named(table):
    with pytest.raises(
        MechrefusalError, match=r"prompt 'p3' stands twice at arm sft, step 5, set harmless, attack none"
    ):
        compare(pd.concat([table, table[-9:-8]]), value="refused")
    with pytest.raises(MechrefusalError, match=r"has no columns \['judge', 'harm'\]"):
        compare(table, value=["refused", "harm"], by=["set", "judge"])
    with pytest.raises(MechrefusalError, match="column 'prompt_id' is empty in 1 of"):
        compare(table.assign(prompt_id=[None, *table["prompt_id"][1:]]), value="refused")
    with pytest.raises(MechrefusalError, match=r"the arm 'base' has the steps \[0, 1\]"):
        compare(pd.concat([table, at(table, "base", 0).reset_index().assign(step=1)]), value="refused")
    with pytest.raises(MechrefusalError, match="is in another 'twin' at another checkpoint"):
        compare(table.assign(twin=range(len(table))), value="refused", groups="twin")
