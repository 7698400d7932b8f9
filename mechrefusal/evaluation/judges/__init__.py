"""Judges of completions: whether the model did what it was asked. They don't say whether an answer is harmful."""

from mechrefusal.evaluation.judges.degenerate import is_degenerate
from mechrefusal.evaluation.judges.judge import (
    DEGENERATE,
    FULL_COMPLIANCE,
    FULL_REFUSAL,
    LABEL_MEANINGS,
    LABELS,
    PARTIAL_REFUSAL,
    Judge,
    Verdict,
    require_texts,
    table,
)
from mechrefusal.evaluation.judges.rules import RefusalJudge

REFUSAL_JUDGE = RefusalJudge.name
"""Name of the judge in every table; rates of different judges are never mixed."""


def is_refusal(completion: str, prompt: str = "") -> bool:
    """Whether an answer declines, fully or in part; a degenerate one does neither.

    What counts as a refusal depends on what was asked: without the prompt, only what declines any request is seen.
    """
    return RefusalJudge().label(prompt, completion) in (FULL_REFUSAL, PARTIAL_REFUSAL)


__all__ = [
    "DEGENERATE",
    "FULL_COMPLIANCE",
    "FULL_REFUSAL",
    "LABELS",
    "LABEL_MEANINGS",
    "PARTIAL_REFUSAL",
    "REFUSAL_JUDGE",
    "Judge",
    "RefusalJudge",
    "Verdict",
    "is_degenerate",
    "is_refusal",
    "require_texts",
    "table",
]
