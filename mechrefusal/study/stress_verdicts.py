"""What judges say of the answers of a stress test: 0/1 outcomes of each answer to each behaviour, or to its twin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, metrics
from mechrefusal.evaluation.judges.scoring import ScoringJudge
from mechrefusal.evaluation.suites import Side

NAN = float("nan")


@dataclass(frozen=True)
class Judged:
    """Outcomes of answers by one judge.

    Fields:
        kind: what the judge judges: `metrics.REFUSAL` or `metrics.HARM`.
        outcomes: 0 or 1 of every (place of the behaviour, completion), by metric; nulls are missing.
    """

    kind: str
    outcomes: Mapping[str, Mapping[tuple[int, str], float]]

    def of(self, metric: str, places: Sequence[int], completions: Sequence[str]) -> list[float]:
        """The outcome of each answer, NaN where the judge gave none."""
        known = self.outcomes.get(metric, {})
        return [known.get(answer, NAN) for answer in zip(places, completions, strict=True)]


def judged(
    judge: Judge | ScoringJudge, answers: pd.DataFrame, requests: Mapping[int, str], *, side: Side = "harmful"
) -> Judged:
    """What a judge says of answers, each of which it is shown once, with the bare request.

    Args:
        answers: columns place and completion; an answer that stands twice is judged once.
        requests: of each place.
        side: of the requests; it says which metrics there are (`mechrefusal.evaluation.metrics`).

    Raises:
        MechrefusalError: the judge gave more or fewer rows than answers.
    """
    asked = answers[["place", "completion"]].drop_duplicates().reset_index(drop=True)
    found = judge.judge([requests[place] for place in asked["place"]], asked["completion"].tolist())
    if len(found) != len(asked):
        raise MechrefusalError(f"judge '{judge.name}' gave {len(found)} rows for {len(asked)} answers")
    scores = "score" in found
    verdicts = asked.assign(
        side=side,
        group="",
        judge=judge.name,
        kind=metrics.HARM if scores else metrics.REFUSAL,
        label=found["label"].tolist(),
        score=found["score"].tolist() if scores else NAN,
    )
    known = metrics.outcomes(verdicts).dropna(subset="value")
    outcomes = {
        str(metric): dict(zip(zip(own["place"], own["completion"], strict=True), own["value"], strict=True))
        for metric, own in known.groupby("metric", sort=False)
    }
    return Judged(metrics.HARM if scores else metrics.REFUSAL, outcomes)
