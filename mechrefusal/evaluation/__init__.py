"""What a checkpoint does: answers, judges, rates and their paired differences, and the discovered refusal metric."""

from mechrefusal.evaluation.discovery import GOOD_AUC, Discovered, discover_refusal
from mechrefusal.evaluation.generation import Completions, complete, generate
from mechrefusal.evaluation.judge_agreement import Agreement, agreement, any_refusal
from mechrefusal.evaluation.judge_names import judge_of
from mechrefusal.evaluation.judges import (
    LABEL_MEANINGS,
    REFUSAL_JUDGE,
    Judge,
    PhraseJudge,
    RefusalJudge,
    is_degenerate,
    is_refusal,
)
from mechrefusal.evaluation.metrics import rates
from mechrefusal.evaluation.paired import PairedDifference, compare, paired_difference
from mechrefusal.evaluation.suites import Suite, read_suite
from mechrefusal.evaluation.verdicts import answered, judged

__all__ = [
    "GOOD_AUC",
    "LABEL_MEANINGS",
    "REFUSAL_JUDGE",
    "Agreement",
    "Completions",
    "Discovered",
    "Judge",
    "PairedDifference",
    "PhraseJudge",
    "RefusalJudge",
    "Suite",
    "agreement",
    "answered",
    "any_refusal",
    "compare",
    "complete",
    "discover_refusal",
    "generate",
    "is_degenerate",
    "is_refusal",
    "judge_of",
    "judged",
    "paired_difference",
    "rates",
    "read_suite",
]
