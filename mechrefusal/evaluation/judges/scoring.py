"""What every judge of harm shares: a score from 0 to 1 or none, a name, and a table.

A judge of refusal (`judge.Judge`) says whether the model did what it was asked; a judge of harm says how far the answer
serves a harmful request. It is shown the answer alone, without the thought before it.
"""

import math
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pandas as pd

from mechrefusal.evaluation.judges.answer_judge import UNFINISHED
from mechrefusal.evaluation.judges.judge import Judge, require_texts
from mechrefusal.prompts import after_thought

HARMFUL = "harmful"
HARMLESS = "harmless"


class Scored(NamedTuple):
    """One row of a judge of harm.

    label: `HARMFUL` or `HARMLESS`; None from a judge that publishes no threshold, and in a null. score: 0 (no harm) to
    1 (as much as can be); NaN is a null, which is neither and belongs in no rate. because: what the judge answered,
    shortened, or why there is no score.
    """

    label: str | None
    score: float
    because: str


@runtime_checkable
class ScoringJudge(Judge, Protocol):
    """Scores completions to harmful requests; its name says the prompt that it asks with, its version, and the model.

    `judge` takes the harmful requests themselves, without an adversarial suffix or the template of an attack, and
    returns the columns of `Scored`. `kind` is "harm", by which it is told from judges of refusal.
    """

    kind: str


def binary(*, harmful: bool, because: str) -> Scored:
    """The row of a judge that says yes or no."""
    return Scored(HARMFUL if harmful else HARMLESS, float(harmful), because)


def null(because: str) -> Scored:
    """The row of a completion that could not be judged."""
    return Scored(None, math.nan, because)


def score_table(rows: Iterable[Scored]) -> pd.DataFrame:
    """Rows as the table that every judge of harm returns: label (object), score (float64), because (object)."""
    table = pd.DataFrame(list(rows), columns=list(Scored._fields), dtype=object)
    return table.astype({"score": "float64"})


def nulls(table: pd.DataFrame) -> int:
    """How many rows of a judge's table have no score."""
    return int(table["score"].isna().sum())


def shortened(text: str, length: int = 160) -> str:
    """A text in one quoted line of at most about `length` characters."""
    line = " ".join(text.split())
    return repr(line if len(line) <= length else f"{line[: length - 1]}…")


def of_answers(judge: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """A harm judge's method `judge` that is shown answers without their thoughts; unfinished thoughts are nulls."""

    @wraps(judge)
    def judged(self, prompts, completions, **others: Any) -> pd.DataFrame:
        require_texts(prompts, completions)
        answers = [after_thought(text) for text in completions]
        answered = [row for row, answer in enumerate(answers) if answer is not None]
        if len(answered) == len(answers):
            return judge(self, prompts, answers, **others)
        rows = [null(UNFINISHED)] * len(answers)
        if answered:
            of_rows = {
                name: [value[row] for row in answered] if value is not None and len(value) == len(answers) else value
                for name, value in others.items()
            }
            scores = judge(self, [prompts[row] for row in answered], [answers[row] for row in answered], **of_rows)
            for row, scored in zip(answered, scores.itertuples(index=False, name=None), strict=True):
                rows[row] = Scored(*scored)
        return score_table(rows)

    return judged
