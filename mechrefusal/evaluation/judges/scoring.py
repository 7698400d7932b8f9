"""What every judge of harm shares: a score from 0 to 1 or none, a name, and a table.

A judge of refusal (`judge.Judge`) says whether the model did what it was asked; a judge of harm says how far the answer
serves a harmful request.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import pandas as pd

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
class ScoringJudge(Protocol):
    """Scores completions to harmful requests. Judges of different names are never mixed in a table or a rate.

    `kind` is "harm", by which it is told from judges of refusal.
    """

    kind: str

    @property
    def name(self) -> str:
        """Prompt with its version, and model, as they stand in tables; it changes whenever a score may change."""
        ...

    def judge(self, prompts: Sequence[str], completions: Sequence[str]) -> pd.DataFrame:
        """One row a completion, in order, with the columns of `Scored`.

        Args:
            prompts: the harmful requests themselves, without an adversarial suffix or the template of an attack.
            completions: the answers.
        """
        ...


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
