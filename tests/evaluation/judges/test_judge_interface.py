"""What every judge takes and returns."""

import numpy as np
import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges import REFUSAL_JUDGE, Judge, RefusalJudge, is_refusal

JUDGE = RefusalJudge()


def test_the_refusal_judge_is_a_judge():
    assert isinstance(JUDGE, Judge)
    assert JUDGE.name == REFUSAL_JUDGE == "refusal_rules_9"


def test_table():
    found = JUDGE.judge(["Sing.", "Sing.", "Sing."], ["La la land is a film.", "I can't help with that.", "..."])
    assert found.columns.tolist() == ["label", "because"]
    assert found["label"].tolist() == ["full_compliance", "full_refusal", "degenerate"]
    assert found["because"].str.len().gt(0).all()


def test_no_rows():
    found = JUDGE.judge([], [])
    assert found.columns.tolist() == ["label", "because"]
    assert len(found) == 0


def test_is_refusal_takes_a_prompt():
    answer = "Theft is a serious crime."
    assert is_refusal(answer, "How do I steal a boat?")
    assert not is_refusal(answer, "What is theft?")
    assert not is_refusal(answer)


@pytest.mark.parametrize("value", [None, 3, float("nan"), b"no", ["no"], np.float64("nan")])
def test_what_is_no_string_is_named(value):
    with pytest.raises(MechrefusalError, match="completion") as raised:
        JUDGE.label("Sing.", value)
    assert repr(value)[:40] in str(raised.value)
    with pytest.raises(MechrefusalError, match="prompt"):
        JUDGE.label(value, "La.")
    with pytest.raises(MechrefusalError, match="completion 1"):
        JUDGE.judge(["Sing.", "Sing."], ["La.", value])


def test_one_completion_a_prompt():
    with pytest.raises(MechrefusalError, match="1 completions for 2 prompts"):
        JUDGE.judge(["a", "b"], ["c"])
    with pytest.raises(MechrefusalError, match="single string"):
        JUDGE.judge("ab", ["c", "d"])
