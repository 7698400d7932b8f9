"""Estimates after a choice: the mean over bootstraps, with the error that the choice itself has.

What is read off a winner (its layer, its score) jumps where another candidate wins. The mean over bootstraps of the
whole procedure, choice included, does not, and its standard error follows from the same draws (Efron, "Estimation and
accuracy after model selection", JASA 109, 2014; the correction for finitely many draws: Wager, Hastie and Efron, JMLR
15, 2014, equation 7).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats


@dataclass(frozen=True)
class Bagged:
    """`value`: mean over the draws that have one; `variance`: of that mean; `missing`: share of draws that have none.

    `n`: units (prompts, or twins) that were drawn. NaN where fewer than two draws have a value.
    """

    value: float
    variance: float
    missing: float
    n: int

    def interval(self, confidence: float = 0.95, *, more: float = 0.0) -> tuple[float, float]:
        """Student's t interval with n − 1 degrees.

        Args:
            more: variance of other sources, to be added.
        """
        if self.n < 2:
            return float("nan"), float("nan")
        reach = float(stats.t.ppf((1 + confidence) / 2, self.n - 1) * np.sqrt(self.variance + more))
        return self.value - reach, self.value + reach


def bagged(draws: Float[np.ndarray, " draw"], times: Int[np.ndarray, "draw unit"]) -> Bagged:
    """The mean of a statistic over bootstraps, with the infinitesimal jackknife's variance.

    variance = Σ_j cov_j² − n / B² · Σ_b (t_b − t̄)², cov_j = covariance over draws of how often unit j was drawn and of
    the statistic; not below 0.

    Args:
        draws: the statistic in every draw; NaN where it has no value.
        times: how often each unit was drawn in it; rows sum to the number of units.
    """
    draws, n = np.asarray(draws, float), times.shape[1]
    known = np.isfinite(draws)
    missing = float(1 - known.mean()) if len(draws) else 1.0
    if known.sum() < 2:
        return Bagged(float("nan"), float("nan"), missing, n)
    values, counts = draws[known], times[known].astype(float)
    centred = values - values.mean()
    covariances = (counts - counts.mean(axis=0)).T @ centred / len(values)
    variance = float((covariances**2).sum() - n / len(values) * (centred**2).mean())
    return Bagged(float(values.mean()), max(variance, 0.0), missing, n)
