"""Verdicts: answers to suites with what judges say of them, one row an answer and judge."""

from collections.abc import Sequence

import pandas as pd

from mechrefusal.evaluation import metrics
from mechrefusal.evaluation.judges import Judge
from mechrefusal.evaluation.judges.classifier import HarmBenchClassifier

_OF_JUDGES = ("behaviour", "context")
"""Columns of questions that only judges of harm are shown."""


def answered(
    questions: pd.DataFrame,
    completions: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    ended: Sequence[bool],
    *,
    intervention: str = metrics.NONE,
    max_new_tokens: int,
) -> pd.DataFrame:
    """The questions with their answers, in the same order, for `judged`.

    Args:
        questions: one row a prompt, as `Suite.questions` gives them.
        token_ids: of the answers, without the end token; ended: whether the model ended its turn itself.
        intervention: what was done to the model meanwhile.
    """
    return questions.reset_index(drop=True).assign(
        intervention=intervention,
        completion=list(completions),
        n_tokens=[len(ids) for ids in token_ids],
        ended=list(ended),
        max_new_tokens=max_new_tokens,
    )


def judged(answers: pd.DataFrame, judges: Sequence[Judge]) -> pd.DataFrame:
    """One row an answer and judge. A judge of harm is asked about harmful prompts alone, by the bare request.

    Args:
        answers: as from `answered`; columns that are not named here are kept.

    Returns:
        The answers without behaviour and context, and judge, kind (refusal or harm), label, score (NaN where the judge
        gives none) and because.
    """
    parts = []
    for judge in judges:
        harm = is_of_harm(judge)
        chosen = answers[answers["side"] == "harmful"] if harm else answers
        if chosen.empty:
            continue
        requests = chosen["behaviour" if harm else "prompt"].tolist()
        if isinstance(judge, HarmBenchClassifier):
            verdicts = judge.judge(requests, chosen["completion"].tolist(), contexts=chosen["context"].tolist())
        else:
            verdicts = judge.judge(requests, chosen["completion"].tolist())
        known = chosen.drop(columns=list(_OF_JUDGES), errors="ignore").reset_index(drop=True)
        scores = verdicts["score"].to_numpy() if "score" in verdicts else float("nan")
        kind = metrics.HARM if harm else metrics.REFUSAL
        columns = {"judge": judge.name, "kind": kind, "label": verdicts["label"].to_numpy()}
        parts.append(known.assign(**columns, score=scores, because=verdicts["because"].to_numpy()))
    return pd.concat(parts, ignore_index=True)


def is_of_harm(judge: Judge) -> bool:
    """Whether a judge says what harm an answer does, and not whether it declines."""
    return getattr(judge, "kind", metrics.REFUSAL) == metrics.HARM
