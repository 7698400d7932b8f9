"""The judge's measured errors belong to the judge that is in use."""

from mechrefusal.evaluation.judge_error import corrected_rate
from mechrefusal.evaluation.judges import REFUSAL_JUDGE
from mechrefusal.evaluation.judges.known_errors import MEASURED, XSTEST, known_error


def test_the_counts_are_of_the_judge_in_use():
    assert set(MEASURED) == {REFUSAL_JUDGE}, "measure again: see known_errors"


def test_rates_are_corrected_by_answers_to_prompts_of_the_same_kind():
    source, counts = known_error(REFUSAL_JUDGE)
    assert source == XSTEST
    assert counts == MEASURED[REFUSAL_JUDGE][XSTEST]
    found = corrected_rate(40, 100, counts)
    assert found.low < found.value < found.high
    assert abs(found.value - 0.4) < 0.03


def test_nothing_is_known_of_other_judges():
    assert known_error("some judge") is None
