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
    refuses,
    require_texts,
    table,
)
from mechrefusal.evaluation.judges.phrases import PhraseJudge
from mechrefusal.evaluation.judges.rules import RefusalJudge

RULES = RefusalJudge()
"""The built-in rules, which judge where no other judge of refusal is named. They read English."""
REFUSAL_JUDGE = RULES.name
"""Their name in every table; rates of different judges are never mixed."""


def is_refusal(completion: str, prompt: str = "") -> bool:
    """Whether an answer declines, fully or in part; a degenerate one does neither.

    By the built-in rules, which read English. What counts as a refusal depends on what was asked: without the prompt,
    only what declines any request is seen.
    """
    return refuses(RULES.label(prompt, completion))


__all__ = [
    "DEGENERATE",
    "FULL_COMPLIANCE",
    "FULL_REFUSAL",
    "LABELS",
    "LABEL_MEANINGS",
    "PARTIAL_REFUSAL",
    "REFUSAL_JUDGE",
    "RULES",
    "Judge",
    "PhraseJudge",
    "RefusalJudge",
    "Verdict",
    "is_degenerate",
    "is_refusal",
    "refuses",
    "require_texts",
    "table",
]
