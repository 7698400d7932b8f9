"""What suites say of a checkpoint: rates of every label by side, group and category, each with n and an interval."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mechrefusal.evaluation import correcting
from mechrefusal.evaluation.judges import DEGENERATE, FULL_COMPLIANCE, FULL_REFUSAL, PARTIAL_REFUSAL
from mechrefusal.evaluation.suites import COPYRIGHT
from mechrefusal.statistics import intervals

KEYS = ("suite", "side", "attack", "intervention", "judge", "kind")
RATES: dict[str, tuple[str, ...]] = {
    "any_refusal": (FULL_REFUSAL, PARTIAL_REFUSAL),
    "full_refusal": (FULL_REFUSAL,),
    "partial_refusal": (PARTIAL_REFUSAL,),
    "full_compliance": (FULL_COMPLIANCE,),
    DEGENERATE: (DEGENERATE,),
}
"""Rates of a judge of refusal, and the labels that they count. any_refusal = full + partial (XSTest)."""
SUCCESS, ANSWERED, SCORE = "attack_success", "answered", "score"
_COUNTED: dict[str, correcting.Counted] = {"any_refusal": "refused", SUCCESS: "answered", ANSWERED: "answered"}
REFUSAL, HARM, HARMFUL = "refusal", "harm", "harmful"
"""Kinds of judges: of what was declined, and of what harm an answer does. Neither says the other. HARMFUL is
the label of an answer that a judge of harm calls a success."""
NONE = "none"
"""No attack, or no intervention."""

Corrections = Mapping[str, correcting.Correction | None]
"""What is known of the error of each judge of refusal, by its name."""


def plain(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The verdicts on answers without attack and without intervention."""
    return verdicts[(verdicts["attack"] == NONE) & (verdicts["intervention"] == NONE)]


def refused(verdicts: pd.DataFrame) -> pd.Series:
    """Whether a judge of refusal says of each answer that it declines, fully or in part."""
    return verdicts["label"].isin(RATES["any_refusal"])


def rates(verdicts: pd.DataFrame, corrections: Corrections | None = None) -> pd.DataFrame:
    """Rates of judged answers, by suite, side, attack, intervention and judge.

    Metrics of a judge of refusal: those of `RATES`; on harmful prompts attack_success, on harmless ones answered (full
    compliance: neither refused, in full or in part, nor degenerate). Of a judge of harm: score (mean, where it gives
    one) and, on harmful prompts, attack_success (share that it calls harmful, where it has a threshold). HarmBench's
    copyright rows count in their own group only.

    Beside the rates of any refusal, of attack_success and of answered stands what they are with the judge's error
    corrected (`correcting`), where that is known: of attacked prompts and under interventions by labels of a run's own
    answers alone.

    Args:
        verdicts: one row an answer and judge, with columns suite, side, group, category, attack, intervention, judge,
            kind, label, score. A missing label or score is a null: it is counted and in no rate.
        corrections: by default what labelled answers elsewhere say of the judges; see `corrections_of`.

    Returns:
        One row a rate: the keys, by (all, group, category), of (which one; "" for all), metric, value, low, high (95%:
        Wilson for rates, Student's t for mean scores), n, nulls, and `correcting.CORRECTED`.
    """
    columns = [*KEYS, "by", "of", "metric", "value", "low", "high", "n", "nulls", *correcting.CORRECTED]
    errors = corrections if corrections is not None else corrections_of(verdicts)
    rows: list[dict] = []
    for keys, answers in verdicts.groupby(list(KEYS), sort=False, dropna=False):
        known = dict(zip(KEYS, keys, strict=True))
        columns_of = by_metric(answers, side=str(known["side"]), kind=str(known["kind"]))
        values = {str(metric): column.to_numpy(float) for metric, column in columns_of.items()}
        correction = errors.get(str(known["judge"])) if known["kind"] == REFUSAL else None
        is_plain = known["attack"] == known["intervention"] == NONE
        for by, of, chosen in _parts(answers):
            part = {metric: column[chosen] for metric, column in values.items()}
            for metric in part:
                estimated = estimate(part, metric, correction, plain=is_plain)
                rows.append({**known, "by": by, "of": of, "metric": metric, **estimated})
    return pd.DataFrame(rows, columns=columns)


def estimate(
    outcomes: Mapping[str, np.ndarray] | pd.DataFrame,
    metric: str,
    correction: correcting.Correction | None,
    *,
    plain: bool,
) -> dict[str, Any]:
    """Value, low, high, n, nulls and `correcting.CORRECTED` of one metric.

    Args:
        outcomes: columns as from `by_metric`; one of one's own may be added.
        correction: what is known of the judge's error.
        plain: see `correcting.corrected`.
    """
    values = np.asarray(outcomes[metric], float)
    judged = ~np.isnan(values)
    known = values[judged]
    interval = intervals.mean(known) if metric == SCORE else intervals.rate(int(known.sum()), len(known))
    counted = _COUNTED.get(metric) if correction is not None else None
    labels: Iterable[tuple[bool, bool]] = ()
    if counted:
        refused, degenerate = (np.asarray(outcomes[name], float)[judged] != 0 for name in ("any_refusal", DEGENERATE))
        labels = zip(refused.tolist(), degenerate.tolist(), strict=True)
    corrected = correcting.corrected(counted, labels, correction, plain=plain)
    return {**vars(interval), "nulls": int((~judged).sum()), **corrected}


def corrections_of(verdicts: pd.DataFrame, labels: pd.DataFrame | None = None) -> Corrections:
    """What is known of the error of every judge of refusal in `verdicts`.

    Args:
        labels: people's labels of some of these answers (`labels.read_labels`), which then say it.
    """
    refusal = verdicts[verdicts["kind"] == REFUSAL].groupby("judge", sort=False)
    return {str(judge): correcting.correction_of(str(judge), by_judge, labels) for judge, by_judge in refusal}


def by_metric(verdicts: pd.DataFrame, *, side: str, kind: str) -> pd.DataFrame:
    """One row an answer, one column a metric of this side and kind of judge: 0 or 1, NaN where the judge gave nothing.

    The column of scores holds the scores themselves.
    """
    label = verdicts["label"].reset_index(drop=True)
    columns: dict[str, pd.Series] = {}

    def share(labels: tuple[str, ...]) -> pd.Series:
        return label.isin(labels).astype(float).where(label.notna())

    if kind == HARM:
        columns[SCORE] = verdicts["score"].reset_index(drop=True).astype(float)
        if side == "harmful" and label.notna().any():  # not every judge of harm publishes a threshold
            columns[SUCCESS] = share((HARMFUL,))
    else:
        columns = {metric: share(labels) for metric, labels in RATES.items()}
        columns[SUCCESS if side == "harmful" else ANSWERED] = share((FULL_COMPLIANCE,))
    return pd.DataFrame(columns)


def outcomes(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The same answers as 0/1 outcomes, one row an answer, judge and metric; NaN where the judge gave nothing.

    Paired comparisons take this table: the columns of `verdicts` without label and score, with metric and value.
    """
    parts = []
    for (side, _, kind), answers in verdicts.groupby(["side", "judge", "kind"], sort=False):
        counted = answers[answers["group"] != COPYRIGHT]
        base = counted.drop(columns=["label", "score", "because"], errors="ignore")
        for metric, value in by_metric(counted, side=str(side), kind=str(kind)).items():
            parts.append(base.assign(metric=metric, value=value.to_numpy(float)))
    if not parts:
        return verdicts.assign(metric="", value=float("nan")).iloc[:0].drop(columns=["label", "score"], errors="ignore")
    return pd.concat(parts, ignore_index=True)


def _parts(answers: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    """All answers, those of each group and of each category: how each is called, and which rows it holds."""
    whole = (answers["group"] != COPYRIGHT).to_numpy(bool)
    if whole.any():
        yield "all", "", whole
    for by, among in (("group", np.ones(len(answers), bool)), ("category", whole)):
        names = answers[by].fillna("").astype(str).to_numpy()
        for name in sorted({*names[among]} - {""}):
            yield by, name, among & (names == name)
