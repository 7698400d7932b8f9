"""The judge's measured errors belong to the judge that is in use."""

from mechrefusal.evaluation.judge_error import JudgeCounts, corrected_rate
from mechrefusal.evaluation.judges import REFUSAL_JUDGE
from mechrefusal.evaluation.judges.known_errors import KNOWN_ERRORS, MEASURED, POOLED, known_error


def test_the_counts_are_of_the_judge_in_use():
    assert set(KNOWN_ERRORS) == set(MEASURED) == {REFUSAL_JUDGE}, "measure again: see known_errors"


def test_the_pool_is_the_sum_of_its_data_sets():
    known = known_error(REFUSAL_JUDGE)
    assert isinstance(known, JudgeCounts)
    assert known.positives == sum(MEASURED[REFUSAL_JUDGE][name].positives for name in POOLED)
    assert known.true_negatives == sum(MEASURED[REFUSAL_JUDGE][name].true_negatives for name in POOLED)


def test_the_counts_correct_a_rate():
    found = corrected_rate(40, 100, known_error(REFUSAL_JUDGE))
    assert found.low < found.value < found.high
    assert found.value > 0.4 * 0.9


def test_nothing_is_known_of_other_judges():
    assert known_error("some judge") is None
