"""Which judges read English, and whether what a run asked and got is English."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from mechrefusal.prompts.english import CRITERION, share_not_english
from mechrefusal.report import wording
from mechrefusal.report.reading import MeasuredCheckpoint

BUILT_IN = "refusal_rules_"
"""How the names of the built-in rules begin."""
PHRASES = "phrases_"
SAID = "The built-in rules of refusal, affirmative targets, prompts and jailbreak texts are English."


def described(judge: Any) -> str:
    """The name of a judge, and what it reads where that is known by its name."""
    name = wording.plain(judge)
    if name.startswith(BUILT_IN):
        return f"{name} (built-in rules, English)"
    return f"{name} (phrases from a file)" if name.startswith(PHRASES) else name


def of_measurements(checkpoints: Sequence[MeasuredCheckpoint]) -> str:
    """`of_verdicts` for what measurements asked."""
    frames = [checkpoint.tables["verdicts"] for checkpoint in checkpoints]
    return of_verdicts(pd.concat(frames), "measuring.judge: phrases=FILE") if frames else ""


def of_verdicts(verdicts: pd.DataFrame, instead: str = "--judge phrases=FILE") -> str:
    """A warning where answers are judged by English rules and most prompts, or answers, are not English; else "".

    Args:
        verdicts: table `verdicts`.
        instead: how another judge is named.
    """
    judged = verdicts[(verdicts["attack"] == "none") & (verdicts["intervention"] == "none")]
    judged = judged[judged["judge"].str.startswith(BUILT_IN)]
    return _warning(judged["judge"].unique(), judged[["prompt", "completion"]], instead)


def of_ablation(table: pd.DataFrame) -> str:
    """The same for answers without and with an intervention (`study.Ablated.table`)."""
    texts = table[["prompt", "baseline"]].rename(columns={"baseline": "completion"})
    return _warning(table["judge"].unique(), texts, "--judge phrases=FILE")


def _warning(judges: Iterable[Any], texts: pd.DataFrame, instead: str) -> str:
    english = sorted({wording.plain(judge) for judge in judges if str(judge).startswith(BUILT_IN)})
    if not english:
        return ""
    counts = []
    for name, column in (("prompts", "prompt"), ("answers", "completion")):
        others, n = share_not_english(texts[column].unique())
        if 2 * others > n:
            counts.append(f"{others} of {n} distinct {name}")
    if not counts:
        return ""
    return (
        f"Not English, it seems: {' and '.join(counts)} ({CRITERION}). The judge {', '.join(english)} reads English "
        f"alone, and so its rates may be wrong here; name a judge for the language ({instead})."
    )
