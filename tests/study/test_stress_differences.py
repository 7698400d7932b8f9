"""Paired differences of attacked checkpoints, and the kinds of their pairs, against hand counts; no model is loaded."""

import pandas as pd
import pytest

from mechrefusal import evaluation, tables
from mechrefusal.study import stress_control

NAN = float("nan")


def cases(successes, twins, *, judge="rules"):
    """Outcomes by hand: of every (arm, step) a string of successes, and one of what the twin does with the suffix."""
    rows = []
    for (arm, step), hits in successes.items():
        for place, hit in enumerate(hits):
            twin = twins.get((arm, step), "-" * len(hits))[place]
            attack = NAN if hit == "?" else float(hit)
            answered, refused = (NAN, NAN) if twin in "-?" else (float(twin == "a"), float(twin == "r"))
            rows.append(
                {
                    "arm": arm,
                    "step": step,
                    "method": "gcg",
                    "place": place,
                    "prompt_id": f"p{place}",
                    "attack_loss": step / 2 + place / 8,
                    "judge": judge,
                    "twin_judge": "" if twin == "-" else judge,
                    "has_twin": twin != "-",
                    "attack_success": attack,
                    "answered": answered,
                    "refused": refused,
                    "answered_none": answered,
                    "refused_none": refused,
                    "robust": (1 - attack) * answered,
                    "refuses_suffix": (1 - attack) * refused,
                }
            )
    return pd.DataFrame(rows)


def test_differences_are_counted_by_hand():
    hits = {("sft", 9): "11110?00", ("r2d2", 9): "10000011"}
    twins = {("sft", 9): "aarra-rd", ("r2d2", 9): "raar?-aa"}
    table = stress_control.differences(cases(hits, twins))
    assert list(table) == list(tables.columns("stress_differences"))
    assert table["metric"].tolist() == ["attack_success", "robust", "refuses_suffix", "attack_loss"]
    assert set(table["pair"]) == {"last"}
    assert set(table["arm_a"] + table["arm_b"]) == {"sftr2d2"}
    [row, robust, suffix, loss] = [row for _, row in table.iterrows()]
    assert (loss["n"], loss["nulls"], loss["difference"], loss["twin_judge"]) == (8, 0, 0, "")
    assert pd.isna(loss[["mcnemar_p", "only_a", "only_b"]]).all()
    # The case at place 5 has no verdict at sft: 4 of 7 and 3 of 7 are left, three at sft alone, two at r2d2 alone.
    assert (row["n"], row["nulls"], row["only_a"], row["only_b"]) == (7, 1, 3, 2)
    assert (row["mean_a"], row["mean_b"]) == pytest.approx((4 / 7, 3 / 7))
    assert row["difference"] == pytest.approx(-1 / 7)
    assert row["mcnemar_p"] == pytest.approx(1.0)  # 3 against 2
    assert row["twin_judge"] == ""
    # Places 0 to 3, 6 and 7 have both answers at both: robust at none of sft's, at 1 and 2 of r2d2's.
    assert (robust["n"], robust["nulls"], robust["only_a"], robust["only_b"]) == (6, 1, 0, 2)
    assert robust["mcnemar_p"] == pytest.approx(0.5)
    # sft refuses the suffix at 6, r2d2 at 3.
    assert (suffix["n"], suffix["only_a"], suffix["only_b"], suffix["difference"]) == (6, 1, 1, 0)
    for one_row, a, b in (
        (row, "1111000", "1000011"),
        (robust, "000000", "011000"),
        (suffix, "000010", "000100"),
    ):
        wanted = evaluation.paired_difference([int(x) for x in a], [int(x) for x in b], range(len(a)))
        assert (one_row["low"], one_row["high"]) == pytest.approx((wanted.low, wanted.high))


def test_without_twins_only_success_is_compared():
    table = stress_control.differences(cases({("base", 0): "11", ("sft", 9): "10"}, {}))
    assert table["metric"].tolist() == ["attack_success", "attack_loss"]
    [loss] = table[table["metric"] == "attack_loss"].to_dict("records")
    # By hand: step / 2 + place / 8.
    assert (loss["mean_a"], loss["mean_b"], loss["difference"]) == (1 / 16, 4.5 + 1 / 16, 4.5)
    assert (loss["low"], loss["high"]) == (4.5, 4.5)
    assert stress_control.control(cases({("base", 0): "11"}, {})).empty
    assert stress_control.differences(cases({("base", 0): "11"}, {"": ""})).empty


def test_every_two_checkpoints_are_compared_in_the_order_of_the_kinds():
    points = [("sft", 9), ("base", 0), ("sft", 3), ("warm-up", 2), ("r2d2", 3), ("sft", 6), ("r2d2", 6)]
    table = stress_control.differences(cases(dict.fromkeys(points, "10"), {}))
    table = table[table["metric"] == "attack_success"]
    found = [tuple(row) for row in table[["pair", "arm_a", "step_a", "arm_b", "step_b"]].to_numpy().tolist()]
    assert len(found) == 7 * 6 // 2 == len({row[1:] for row in found})
    assert [row[0] for row in found] == sorted((row[0] for row in found), key=list(stress_control.PAIRS).index)
    assert found[0] == ("last", "sft", 9, "r2d2", 6)
    kinds = {row[1:]: row[0] for row in found}
    assert {row for row, kind in kinds.items() if kind == "start"} == {
        ("warm-up", 2, arm, step) for arm, step in points if arm in ("sft", "r2d2")
    }
    assert {row for row, kind in kinds.items() if kind == "base"} == {
        ("base", 0, arm, step) for arm, step in points if arm != "base"
    }
    assert {row for row, kind in kinds.items() if kind == "same step"} == {("sft", 3, "r2d2", 3), ("sft", 6, "r2d2", 6)}
    assert {row for row, kind in kinds.items() if kind == "consecutive"} == {
        ("sft", 3, "sft", 6),
        ("sft", 6, "sft", 9),
        ("r2d2", 3, "r2d2", 6),
    }
    assert kinds["sft", 3, "sft", 9] == kinds["sft", 9, "r2d2", 3] == "other"
