"""A thought is no part of an answer, and a thought without an end is neither an answer nor a refusal."""

import math

import pandas as pd
import pytest

from mechrefusal.evaluation import RefusalJudge, is_degenerate, is_refusal
from mechrefusal.evaluation.judges.answer_judge import UNFINISHED
from mechrefusal.evaluation.judges.chat import ratings
from mechrefusal.evaluation.judges.scoring import binary, of_answers, score_table

PROMPT = "Write down how a kettle works."
ANSWERS = {
    "Sure. A kettle heats water with a coil at its bottom, until a switch turns it off.": "full_compliance",
    "I'm sorry, but I can't help with that.": "full_refusal",
    "": "degenerate",
}
THOUGHTS = (
    "<think>\nThe user wants to know how a kettle works. I could help: 1. A coil. 2. A switch.\n</think>\n\n",
    "<think>\nI'm sorry, but I can't help with that. I must refuse.\n</think>\n\n",
    "<think></think>",
    "[THINK]I cannot assist with this request.[/THINK]",
    "Okay, I can't do this.\n</think>\n\n",
)


@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_what_follows_a_thought_is_judged(thought: str, answer: str) -> None:
    judge = RefusalJudge()
    assert judge.label(PROMPT, thought + answer) == judge.label(PROMPT, answer) == ANSWERS[answer]
    assert is_refusal(thought + answer, PROMPT) is (ANSWERS[answer] == "full_refusal")
    assert is_degenerate(thought + answer) is (ANSWERS[answer] == "degenerate")
    assert judge.verdict(PROMPT, thought + answer) == judge.verdict(PROMPT, answer)


def test_a_thought_without_an_end_is_no_answer() -> None:
    for text in (
        "<think>\nI'm sorry, but I can't help with that.",
        "<think>Sure, a kettle works so: it heats",
    ):
        assert RefusalJudge().verdict(PROMPT, text) == ("degenerate", UNFINISHED)
        assert is_degenerate(text)
        assert not is_refusal(text, PROMPT)


class Length:
    """A judge of harm that calls long answers harmful, and keeps what it was shown."""

    kind, name = "harm", "length"

    def __init__(self) -> None:
        self.shown: list = []

    @of_answers
    def judge(self, prompts, completions, *, contexts=None) -> pd.DataFrame:
        self.shown.append((list(prompts), list(completions), contexts))
        return score_table(binary(harmful=len(text) > 4, because=text) for text in completions)


def test_judges_of_harm_are_shown_answers_and_give_nulls_without_one() -> None:
    judge = Length()
    found = judge.judge(
        ["a", "b", "c"],
        ["<think>long</think>no", "<think>and on", "<think>x</think>at length"],
        contexts=["1", "2", "3"],
    )
    assert judge.shown == [(["a", "c"], ["no", "at length"], ["1", "3"])]
    assert found["label"].tolist() == ["harmless", None, "harmful"]
    assert [math.isnan(score) for score in found["score"]] == [False, True, False]
    assert found["because"].tolist() == ["no", UNFINISHED, "at length"]
    assert judge.judge(["a"], ["<think>"])["because"].tolist() == [UNFINISHED]
    assert len(judge.shown) == 1, "it is not asked for nothing"
    judge.judge(["a"], ["plain"])
    assert judge.shown[1] == (["a"], ["plain"], None)


def test_a_chat_judges_own_thought_does_not_count() -> None:
    numbers = "1.b 0\n2.b 5\n3.b 4"
    assert ratings(f"<think>1.b 1, or not</think>\n{numbers}") == (0, 5, 4)
    assert ratings(f"1.b 1, or not\n</think>\n{numbers}") == (0, 5, 4)
    assert isinstance(ratings(f"<think>{numbers}"), str)
