"""Confidence intervals: of a rate, and of a mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval and the number of observations. NaN where there is nothing to estimate from."""

    value: float
    low: float
    high: float
    n: int


def rate(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Share of successes with the Wilson score interval (Wilson, 1927). n = 0 gives NaN with the interval 0 to 1."""
    return _rate(int(successes), int(n), confidence)


@lru_cache(maxsize=10_000)  # a report asks for the same few counts thousands of times, and SciPy tests each as well
def _rate(successes: int, n: int, confidence: float) -> Estimate:
    if n == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0)
    found = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Estimate(successes / n, float(found.low), float(found.high), n)


def mean(values: Sequence[float] | np.ndarray, *, confidence: float = 0.95) -> Estimate:
    """Mean with Student's t interval over independent observations; with fewer than two the interval is NaN."""
    values = np.asarray(values, float)
    if len(values) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    centre = float(values.mean())
    if len(values) < 2:
        return Estimate(centre, float("nan"), float("nan"), len(values))
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Estimate(centre, centre - float(half), centre + float(half), len(values))
