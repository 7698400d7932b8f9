"""Rates of refusals and of answers, corrected for the error of the judge that counted them, raw beside corrected."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.agreement import any_refusal
from mechrefusal.evaluation.judge_error import JudgeCounts, corrected_rate, counts_of
from mechrefusal.evaluation.judges.known_errors import known_error
from mechrefusal.statistics.intervals import Estimate

CORRECTED = ("corrected", "corrected_low", "corrected_high", "corrected_by")
"""Columns of a corrected rate; missing where a rate has no correction."""
FEWEST_LABELS = 20
"""With fewer labels of a run's own answers a judge's error is not measured by them."""


@dataclass(frozen=True)
class Correction:
    """How a judge errs on any refusal: counts, and where they come from."""

    counts: JudgeCounts
    source: str


def correction_of(
    judge: str, verdicts: pd.DataFrame | None = None, labels: pd.DataFrame | None = None
) -> Correction | None:
    """What is known of a judge of refusal: by people's labels of these answers, else by labelled answers elsewhere.

    The latter holds as far as the judge errs as often on these answers as on those, the former for these alone.

    Args:
        verdicts: answers that this judge judged, with columns prompt, completion, label.
        labels: as from `read_labels`.
    """
    if labels is not None and verdicts is not None:
        both = labelled(verdicts, labels).dropna(subset=["label", "people"])
        both = both.drop_duplicates(["prompt", "completion"])
        people = both["people"].map(any_refusal).astype(bool)
        if len(both) >= FEWEST_LABELS and people.nunique() == 2:
            counts = counts_of(both["label"].map(any_refusal).astype(bool).tolist(), people.tolist())
            return Correction(counts, f"{len(both)} labels of these answers")
    known = known_error(judge)
    if known is None:
        return None
    source, counts = known
    return Correction(counts, f"{counts.positives + counts.negatives} labelled answers ({source})")


def labelled(verdicts: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """The verdicts with a column `people`, missing where nobody labelled the answer."""
    return verdicts.merge(labels.rename(columns={"label": "people"}), on=["prompt", "completion"], how="left")


def refusals(refused: int, n: int, correction: Correction | None) -> dict[str, float | str]:
    """Columns `CORRECTED` of a rate of refusal (full or partial), by Rogan and Gladen."""
    return answers(refused, 0, n, correction, refusals=True)


def answers(
    refused: int, degenerate: int, n: int, correction: Correction | None, *, refusals: bool = False
) -> dict[str, float | str]:
    """Columns `CORRECTED` of the rate of answers that are neither refused nor degenerate.

    What is not refused and not degenerate: the refusals are corrected, degenerate answers are taken as counted.
    """
    if correction is None or not n:
        return _columns(None, "")
    try:
        found = corrected_rate(refused, n, correction.counts)
    except MechrefusalError as error:  # a judge that is no better than chance
        return _columns(None, str(error))
    if refusals:
        return _columns(found, correction.source)
    rest = 1 - degenerate / n
    value, low, high = (float(np.clip(rest - end, 0, 1)) for end in (found.value, found.high, found.low))
    return _columns(Estimate(value, low, high, n), correction.source)


def _columns(found: Estimate | None, source: str) -> dict[str, float | str]:
    values = (np.nan, np.nan, np.nan) if found is None else (found.value, found.low, found.high)
    return dict(zip(CORRECTED, (*values, source), strict=True))
