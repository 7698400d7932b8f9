"""Carriers at a fraction of the passes: a rough score of every candidate, exact ones of those that could still win.

The screen runs a sample of the validation prompts, in bfloat16 where the machine multiplies it. What a sample can be
wrong by is estimated from its own spread, so that how many candidates are scored exactly follows from how close the
race is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry.carriers import last_layer
from mechrefusal.geometry.directions import Contrast, Directions
from mechrefusal.geometry.scoring import (
    CarrierScores,
    Lists,
    Scorer,
    candidate_rows,
    exactly,
    gathered,
    same_weights,
    score,
)
from mechrefusal.models import RefusalMetric
from mechrefusal.progress import track

FEWEST = 12
"""Prompts of each side in the sample at least."""
SURE, LIKELY = 3.0, 2.0
"""Standard errors by which a candidate must be out of the running: of the sample against all prompts (it cannot be the
carrier), and of all prompts against others like them (it would hardly be the carrier in a bootstrap)."""
SCORE_SLACK, KL_SLACK = 0.1, 0.02
"""Ours: what rounding to bfloat16 is allowed to shift a mean refusal score, and a mean KL, by (nats). The shifts that
`benchmarks/carriers.py` prints are larger, as they hold the sampling as well."""


@dataclass(frozen=True)
class _Rough:
    """Scores of one candidate on the sample, prompt by prompt."""

    bypass: ndarray
    induce: ndarray
    kl: ndarray


def screened(
    model,
    directions: Directions,
    validation: Contrast,
    metric: RefusalMetric,
    *,
    rows: Sequence[dict] | None = None,
    kl_threshold: float = 0.1,
    induce_threshold: float = 0.0,
    prune_layer_fraction: float = 0.2,
    share: float = 0.5,
) -> CarrierScores:
    """Scores for `carriers.select` with the same thresholds, exact only where a candidate could win.

    A candidate is scored exactly (all prompts, float32) unless the screen puts it clearly (`SURE`, `LIKELY`) beyond a
    threshold, or, prompt by prompt, behind the best admissible candidate found so far: such a candidate can neither win
    nor, but for a few percent of the draws, win a bootstrap (`stability`). Candidates are gone through from the lowest
    rough bypass on. All others keep the scores of the screen, with `exact` False.

    Args:
        rows: (position, layer) pairs, from `carriers.candidates`; by default all that `select` could admit.
        share: of the validation prompts that the screen runs, at least `FEWEST` of each side.

    Raises:
        MechrefusalError: directions of other weights, no prompts, or a share that is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise MechrefusalError(f"share of a screen is {share:g}: give more than 0 and at most 1")
    same_weights(model, directions)
    wanted = candidate_rows(model, directions, rows)
    sample = Lists(*(_sample(texts, share) for texts in (validation.harmful, validation.harmless)))
    fractions = [
        len(part) / max(1, len(whole))
        for part, whole in zip(
            (sample.harmful, sample.harmless), (validation.harmful, validation.harmless), strict=True
        )
    ]
    rough = Scorer(model, sample, metric, low_precision=True)
    if min(fractions) >= 1 and not rough.low_precision:
        return score(model, directions, validation, metric, rows=wanted)
    found = [exactly(rough, directions, row) for row in track(wanted, "screening carriers")]
    del rough
    exact = Scorer(model, validation, metric)
    race = _Race([_Rough(*one) for one in found], fractions[0], fractions[1])
    limit = last_layer(model.cfg.n_layers, prune_layer_fraction)
    runners = [
        place
        for place in race.order()
        if wanted[place]["layer"] < limit and race.may_be_admissible(place, kl_threshold, induce_threshold)
    ]
    is_exact = [bool(np.isnan(one[0]).any()) for one in found]  # NaN is as exact as it gets
    best: tuple[int, float] | None = None
    for place in track(runners, "scoring finalists"):
        if best is None or race.may_beat(place, best[0]):
            scores = exactly(exact, directions, wanted[place])
            found[place], is_exact[place] = scores, True
            bypass, induce, kl = (values.mean() for values in scores)
            if kl <= kl_threshold and induce >= induce_threshold and (best is None or bypass < best[1]):
                best = (place, bypass)
    return gathered(wanted, found, is_exact)


class _Race:
    """The rough scores, and what they leave open."""

    def __init__(self, rough: list[_Rough], harmful: float, harmless: float) -> None:
        self._rough = rough
        self._shares = {"bypass": harmful, "induce": harmless, "kl": harmless}

    def order(self) -> list[int]:
        """Candidates that have scores, the lowest rough bypass first."""
        means = np.array([one.bypass.mean() for one in self._rough])
        return [int(place) for place in np.argsort(means, kind="stable") if np.isfinite(means[place])]

    def may_be_admissible(self, place: int, kl_threshold: float, induce_threshold: float) -> bool:
        one = self._rough[place]
        kl = one.kl.mean() - self._error(one.kl, "kl") - KL_SLACK
        induce = one.induce.mean() + self._error(one.induce, "induce") + SCORE_SLACK
        return bool(kl <= kl_threshold and induce >= induce_threshold)

    def may_beat(self, place: int, best: int) -> bool:
        """Whether the bypass of `place` may be lower than that of `best`, compared prompt by prompt."""
        behind = self._rough[place].bypass - self._rough[best].bypass
        return bool(behind.mean() - self._error(behind, "bypass") - SCORE_SLACK <= 0)

    def _error(self, values: ndarray, measure: str) -> float:
        """How far the mean over all prompts, or over a bootstrap of them, may lie from that of the sample.

        The sample is drawn without replacement from finitely many prompts. Against a bootstrap of all of them the two
        variances add up to that of a mean of independent draws, s² / n.
        """
        if len(values) < 2:
            return 0.0
        error = float(values.std(ddof=1)) / np.sqrt(len(values))
        return error * max(SURE * np.sqrt(max(0.0, 1 - self._shares[measure])), LIKELY)


def _sample(texts, share: float) -> list[str]:
    """Evenly spread over the prompts, as sets come in blocks of categories."""
    given = list(texts)
    n = min(len(given), max(FEWEST, int(np.ceil(share * len(given)))))
    return [given[place] for place in np.unique(np.linspace(0, len(given) - 1, n).round().astype(int))] if given else []
