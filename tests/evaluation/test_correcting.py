"""Rates with the judge's known error corrected, beside those that the judge counted."""

import math

import numpy as np
import pandas as pd
import pytest

from mechrefusal.evaluation import REFUSAL_JUDGE, correcting, metrics, rates
from mechrefusal.evaluation.correcting import CORRECTED, Correction, answers, correction_of, refusals
from mechrefusal.evaluation.judge_error import JudgeCounts, corrected_rate
from mechrefusal.evaluation.judges.known_errors import known_error

LEAKY = Correction(JudgeCounts(80, 100, 90, 100), "200 labels of these answers")
"""Sensitivity .8, specificity .9."""
FULL, YES, NOISE = "full_refusal", "full_compliance", "degenerate"


def test_refusals_are_corrected_by_rogan_and_gladen():
    found = refusals(45, 100, LEAKY)
    assert found["corrected"] == pytest.approx((0.45 + 0.9 - 1) / (0.8 + 0.9 - 1))
    assert found["corrected_by"] == "200 labels of these answers"
    expected = corrected_rate(45, 100, LEAKY.counts)
    assert (found["corrected_low"], found["corrected_high"]) == (expected.low, expected.high)


def test_answers_are_what_is_neither_refused_nor_degenerate():
    refused, answered = refusals(45, 100, LEAKY), answers(45, 10, 100, LEAKY)
    assert answered["corrected"] == pytest.approx(0.9 - refused["corrected"])
    assert answered["corrected_low"] == pytest.approx(max(0, 0.9 - refused["corrected_high"]))
    assert answered["corrected_high"] == pytest.approx(0.9 - refused["corrected_low"])
    assert answers(0, 100, 100, LEAKY)["corrected"] == 0


@pytest.mark.parametrize("found", [refusals(3, 9, None), refusals(0, 0, LEAKY), answers(0, 0, 0, LEAKY)])
def test_without_a_known_error_or_answers_there_is_no_correction(found):
    assert list(found) == list(CORRECTED)
    assert all(math.isnan(found[name]) for name in CORRECTED[:3])
    assert found["corrected_by"] == ""


def test_a_judge_no_better_than_chance_is_named():
    found = refusals(5, 10, Correction(JudgeCounts(2, 10, 3, 10), "labels"))
    assert math.isnan(found["corrected"])
    assert "no better than chance" in found["corrected_by"]


def test_the_rules_have_a_known_error():
    found = correction_of(REFUSAL_JUDGE)
    source, counts = known_error(REFUSAL_JUDGE)
    assert found == Correction(counts, f"{counts.positives + counts.negatives} labelled answers ({source})")
    assert known_error("another judge") is None
    assert correction_of("another judge") is None


def judged(n=60, *, wrong=6, judge="rules"):
    """Half of n answers are refusals; the judge misses `wrong` of them."""
    people = [FULL] * (n // 2) + [YES] * (n - n // 2)
    said = [YES] * wrong + people[wrong:]
    ids = [f"p{i}" for i in range(n)]
    rows = pd.DataFrame({"prompt": ids, "prompt_id": ids, "completion": [f"c{i}" for i in range(n)], "label": said})
    known = {"suite": "own", "side": "harmful", "attack": "none", "intervention": "none", "judge": judge}
    known |= {"kind": "refusal", "group": "", "category": "", "score": float("nan")}
    return rows.assign(**known), rows.assign(label=people)[["prompt", "completion", "label"]]


def test_labels_of_the_answers_themselves_come_before_those_of_others():
    verdicts, labels = judged(judge=REFUSAL_JUDGE)
    found = correction_of(REFUSAL_JUDGE, verdicts, labels)
    assert found.counts == JudgeCounts(24, 30, 30, 30)
    assert found.source == "60 labels of these answers"
    few = correction_of(REFUSAL_JUDGE, verdicts, labels.iloc[20:39])
    assert few.counts == known_error(REFUSAL_JUDGE)[1], "19 labels are too few"
    one_kind = correction_of(REFUSAL_JUDGE, verdicts, labels.iloc[:25])
    assert one_kind.counts == known_error(REFUSAL_JUDGE)[1], "refusals alone say nothing of the specificity"


def test_an_answer_that_occurs_twice_counts_once():
    verdicts, labels = judged()
    twice = pd.concat([verdicts, verdicts.assign(suite="other")])
    assert correction_of("rules", twice, labels).counts == JudgeCounts(24, 30, 30, 30)


def test_corrected_rates_stand_beside_the_counted_ones():
    verdicts, labels = judged()
    table = metrics.suite_rates(verdicts, metrics.corrections_of(verdicts, labels)).set_index("metric")
    assert table.loc["any_refusal", "value"] == pytest.approx(0.4)
    assert table.loc["any_refusal", "corrected"] == pytest.approx(0.5)
    assert table.loc["attack_success", "value"] == pytest.approx(0.6)
    assert table.loc["attack_success", "corrected"] == pytest.approx(0.5)
    assert table.loc["full_refusal", "corrected_by"] == "", "what is full and what partial is another question"
    attacked = verdicts.assign(attack="gcg")
    table = metrics.suite_rates(attacked, metrics.corrections_of(attacked, labels)).set_index("metric")
    assert table.loc["any_refusal", "corrected"] == pytest.approx(0.5)
    assert math.isnan(table.loc["attack_success", "corrected"])


def test_a_judge_of_harm_is_not_corrected():
    verdicts, labels = judged()
    harm = verdicts.assign(kind="harm", label="harmful", score=0.5)
    table = metrics.suite_rates(harm, metrics.corrections_of(harm, labels))
    assert len(table)
    assert table["corrected"].isna().all()


def test_rates_of_the_study_are_corrected():
    refused = np.arange(50) < 20
    rows = pd.DataFrame({"set": "evaluation_harmful", "attack": "none", "intervention": "none", "refused": refused})
    table = rates(rows.assign(degenerate=np.arange(50) >= 48)).set_index("metric")
    known = correcting.correction_of(REFUSAL_JUDGE)
    assert table.loc["refusal_rate", "corrected"] == refusals(20, 50, known)["corrected"]
    assert table.loc["attack_success_rate", "corrected"] == answers(20, 2, 50, known)["corrected"]
    assert math.isnan(table.loc["degenerate_rate", "corrected"])
