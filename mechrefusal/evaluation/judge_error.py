"""Rates corrected for the error of the judge that counted them, with intervals that carry the error's own uncertainty.

Rogan and Gladen's estimate with Lang and Reiczigel's interval. It holds where the judge errs on these answers as often
as on those that its sensitivity and specificity were measured on: best, a random part of the very answers, labelled by
people (`labels.label_sheet`). Pseudo-counts keep the interval honest with few labels of which none is wrong, where a
normal interval, as in prediction-powered inference (arXiv 2301.09633), has no width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mechrefusal.errors import MechrefusalError
from mechrefusal.statistics.intervals import Estimate


@dataclass(frozen=True)
class JudgeCounts:
    """How a judge did on answers that people labelled.

    true_positives of positives: answers that people call, say, a refusal, and how many of them the judge does too.
    true_negatives of negatives: the others, and how many of them the judge does not.

    Raises:
        MechrefusalError: a count below 0 or above its total, no positives, or no negatives.
    """

    true_positives: int
    positives: int
    true_negatives: int
    negatives: int

    def __post_init__(self) -> None:
        for name, hits, n in (
            ("positives", self.true_positives, self.positives),
            ("negatives", self.true_negatives, self.negatives),
        ):
            if n < 1 or not 0 <= hits <= n:
                raise MechrefusalError(
                    f"true_{name} {hits} of {name} {n}: give counts with 0 <= true_{name} <= {name}, "
                    f"and at least one of the {name}"
                )

    @property
    def sensitivity(self) -> float:
        """Share of the positives that the judge finds."""
        return self.true_positives / self.positives

    @property
    def specificity(self) -> float:
        """Share of the negatives that the judge leaves alone."""
        return self.true_negatives / self.negatives

    @property
    def of_negatives(self) -> "JudgeCounts":
        """The same judge seen as one that finds the negatives."""
        return JudgeCounts(self.true_negatives, self.negatives, self.true_positives, self.positives)


def counts_of(judged: Sequence[bool], labelled: Sequence[bool]) -> JudgeCounts:
    """What a judge said of answers, and what people said of the same answers in the same order.

    Raises:
        MechrefusalError: sequences of different lengths, or labels of one kind only.
    """
    verdicts, true = np.asarray(judged, bool), np.asarray(labelled, bool)
    if verdicts.shape != true.shape:
        raise MechrefusalError(f"{len(verdicts)} answers judged and {len(true)} labelled: give one label an answer")
    return JudgeCounts(
        int((verdicts & true).sum()), int(true.sum()), int((~verdicts & ~true).sum()), int((~true).sum())
    )


def corrected_rate(
    successes: int, n: int, judge: JudgeCounts, *, neither: int = 0, confidence: float = 0.95
) -> Estimate:
    """The true rate behind an apparent one, by the judge's sensitivity Se and specificity Sp.

    With the shares p of successes and o of the others, (p Sp - o (1 - Sp)) / (Se + Sp - 1), clipped to [0, 1]: where
    there is nothing else, o = 1 - p, this is (p + Sp - 1) / (Se + Sp - 1) (Rogan and Gladen 1978, American Journal of
    Epidemiology 107). The interval carries the uncertainty of p, o, Se and Sp (Lang and Reiczigel 2014, Preventive
    Veterinary Medicine 113, section 2, here for three kinds of answers): with z the normal quantile, p' and o' the
    shares of n + z^2 answers with z^2 / 2 added to the successes and to all else, Se' = (n_Se Se + 1) / (n_Se + 2), Sp'
    alike, R' the estimate from these and O' = p' + o' - R',

        R' + d +- z sqrt(v / (n + z^2) + R'^2 v_Se + O'^2 v_Sp) / (Se' + Sp' - 1),
        v = Sp'^2 p' + (1 - Sp')^2 o' - (p' Sp' - o' (1 - Sp'))^2, which is p' (1 - p') where o' = 1 - p',
        d = 2 z^2 (R' v_Se - O' v_Sp), v_Se = Se'(1 - Se')/(n_Se + 2), v_Sp alike, clipped to [0, 1].

    Args:
        neither: of the n, answers of a third kind (degenerate ones), which the judge tells without error.

    Returns:
        The estimate; n is that of the apparent rate. n = 0 gives NaN with the interval 0 to 1, and so have labels so
        few that with two more of each kind the judge might be no better than chance.

    Raises:
        MechrefusalError: counts outside 0..n, or a judge that is no better than chance (Se + Sp <= 1), whose verdicts
            say nothing of the true rate.
    """
    others = n - successes - neither
    if n < 0 or min(successes, neither, others) < 0:
        raise MechrefusalError(
            f"successes {successes} and neither {neither} of n {n}: give counts of 0 or more, n at most together"
        )
    if judge.sensitivity + judge.specificity <= 1:
        raise MechrefusalError(
            f"sensitivity {judge.sensitivity:.3f} and specificity {judge.specificity:.3f} sum to 1 or less: such a "
            "judge is no better than chance and its rates cannot be corrected; measure with another judge"
        )
    if n == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0)
    value = float(np.clip(_rogan_gladen(successes / n, others / n, judge.sensitivity, judge.specificity), 0, 1))
    z = float(stats.norm.ppf((1 + confidence) / 2))
    of_others = others / (others + neither) if others + neither else 1.0
    success_share = (successes + z**2 / 2) / (n + z**2)
    other_share = (others + of_others * z**2 / 2) / (n + z**2)
    sensitivity = (judge.true_positives + 1) / (judge.positives + 2)
    specificity = (judge.true_negatives + 1) / (judge.negatives + 2)
    better = sensitivity + specificity - 1
    if better <= 0:
        return Estimate(value, 0.0, 1.0, n)
    centre = _rogan_gladen(success_share, other_share, sensitivity, specificity)
    rest = success_share + other_share - centre
    of_sensitivity = sensitivity * (1 - sensitivity) / (judge.positives + 2)
    of_specificity = specificity * (1 - specificity) / (judge.negatives + 2)
    spread = specificity**2 * success_share + (1 - specificity) ** 2 * other_share - (better * centre) ** 2
    variance = spread / (n + z**2) + centre**2 * of_sensitivity + rest**2 * of_specificity
    half = z * float(np.sqrt(variance)) / better
    shift = 2 * z**2 * (centre * of_sensitivity - rest * of_specificity)
    low, high = (float(np.clip(centre + shift + side * half, 0, 1)) for side in (-1, 1))
    return Estimate(value, min(low, value), max(high, value), n)


def _rogan_gladen(successes: float, others: float, sensitivity: float, specificity: float) -> float:
    return (successes * specificity - others * (1 - specificity)) / (sensitivity + specificity - 1)
