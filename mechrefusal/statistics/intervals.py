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

    def columns(self, name: str, ends: str | None = None) -> dict[str, float]:
        """Columns of a table: `name`, and `ends` with low and high after it, by default `name` and an underscore."""
        ends = f"{name}_" if ends is None else ends
        return {name: self.value, f"{ends}low": self.low, f"{ends}high": self.high}


def rate(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Share of successes with the Wilson score interval (Wilson, 1927). n = 0 gives NaN with the interval 0 to 1."""
    return _rate(int(successes), int(n), confidence)


@lru_cache(maxsize=10_000)  # a report asks for the same few counts thousands of times, and SciPy tests each as well
def _rate(successes: int, n: int, confidence: float) -> Estimate:
    if n == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0)
    wilson = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Estimate(successes / n, float(wilson.low), float(wilson.high), n)


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


def ratio(
    parts: Sequence[float] | np.ndarray, wholes: Sequence[float] | np.ndarray, *, confidence: float = 0.95
) -> Estimate:
    """Σ parts / Σ wholes over paired observations, with the t interval of its linearisation.

    The ratio R has the standard error of the mean of parts − R · wholes, over |mean whole| (Cochran, "Sampling
    techniques", 1977, section 2.11): the noise of the whole is in it, and a part that is the whole has [1, 1]. NaN
    without observations or where the wholes sum to 0; with fewer than two observations the interval is NaN.
    """
    parts, wholes = np.asarray(parts, float), np.asarray(wholes, float)
    nothing, n = float("nan"), len(parts)
    total = wholes.mean() if n else 0.0
    if not total:
        return Estimate(nothing, nothing, nothing, n)
    value = float(parts.mean() / total)
    if n < 2:
        return Estimate(value, nothing, nothing, n)
    error = (parts - value * wholes).std(ddof=1) / abs(total) / np.sqrt(n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * error)
    return Estimate(value, value - half, value + half, n)


def skewed_mean(values: Sequence[float] | np.ndarray, *, confidence: float = 0.95) -> Estimate:
    """Mean of values that may be skewed, such as divergences, with Hall's transformed t interval.

    Hall, "On the removal of skewness by transformation", JRSS B 54 (1992), equation 2.3: the cubic
    g(W) = W + γW²/3 + γ²W³/27 + γ/(6n) of W = (mean − μ) / s, γ the sample's skewness, has Student's t distribution in
    place of W to second order; the ends are those of g's inverse. Where values are symmetric it is `mean`'s interval.
    What no value of the sample shows (one prompt in ten moves, and none of these ten did) no interval can know.
    """
    values = np.asarray(values, float)
    student = mean(values, confidence=confidence)
    n = len(values)
    if n < 3 or not np.isfinite(values).all():
        return student
    spread = values.std()
    if spread == 0:
        return student
    skewness = float(((values - student.value) ** 3).mean() / spread**3)
    t = float(stats.t.ppf((1 + confidence) / 2, n - 1)) / np.sqrt(n - 1)
    low, high = (student.value - spread * _untransformed(end, skewness, n) for end in (t, -t))
    return Estimate(student.value, float(low), float(high), n)


def _untransformed(value: float, skewness: float, n: int) -> float:
    """The W at which Hall's g is `value`."""
    a = skewness / 3
    if abs(a) < 1e-8:
        return value
    return float((np.cbrt(1 + 3 * a * (value - skewness / (6 * n))) - 1) / a)
