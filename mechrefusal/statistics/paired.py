"""Differences between two conditions that were asked the same prompts."""

from collections.abc import Hashable, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mechrefusal.statistics.intervals import Estimate, rate, ratio, skewed_mean

Units: TypeAlias = Sequence[Hashable] | np.ndarray | pd.Series


def rate_difference(
    first: Float[np.ndarray, " prompt"], second: Float[np.ndarray, " prompt"], units: Units | None = None
) -> Estimate:
    """Mean of `second` minus mean of `first`, outcomes of 0 and 1, with Newcombe's interval for paired proportions.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17 (1998), method 10: the two Wilson intervals, squared and added, less what the two rates
    have in common. It never leaves −1 to 1, and has a width where all prompts answer alike.

    Args:
        units: what stands or falls together, as for `mean_difference`. Counts are then divided by the design effect
            (Rao and Scott, 1992): the variance of the mean change between units, over that of prompts by themselves,
            not below 1; where no prompt changes, prompts per unit.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    n, codes = len(first), _codes(units, len(first))
    if codes.max(initial=-1) + 1 < 2:
        return Estimate(float((second - first).mean()) if n else float("nan"), float("nan"), float("nan"), n)
    size = n / _design_effect(second - first, codes)
    both, only_first, only_second = (
        float(np.mean(cell)) for cell in (first * second, first * (1 - second), (1 - first) * second)
    )
    neither = 1 - both - only_first - only_second
    ends = [_wilson(both + only, size) for only in (only_second, only_first)]
    (p_2, low_2, high_2), (p_1, low_1, high_1) = ends
    product = (both + only_second) * (only_first + neither) * (both + only_first) * (only_second + neither)
    common = both * neither - only_second * only_first
    if common > 0:  # Newcombe's correction for continuity, of counts
        common = max(common - 1 / (2 * size), 0.0)
    correlation = common / np.sqrt(product) if product > 0 else 0.0
    down, up = p_2 - low_2, high_2 - p_2
    other_down, other_up = p_1 - low_1, high_1 - p_1
    low = np.sqrt(down**2 - 2 * correlation * down * other_up + other_up**2)
    high = np.sqrt(up**2 - 2 * correlation * up * other_down + other_down**2)
    return Estimate(p_2 - p_1, p_2 - p_1 - float(low), p_2 - p_1 + float(high), n)


def mean_difference(changes: Float[np.ndarray, " prompt"], units: Units | None = None) -> Estimate:
    """Mean change with the interval of `skewed_mean`; with `units`, of the ratio of their sums to their sizes.

    Args:
        units: what stands or falls together (the two sides of a twin, cases of one behaviour), in the same order; a
            prompt without one (None, NaN) stands alone. Fewer than two units have no interval.
    """
    changes, codes = np.asarray(changes, float), _codes(units, len(changes))
    n_units = codes.max(initial=-1) + 1
    if n_units == len(changes):
        return skewed_mean(changes)
    estimate = ratio(np.bincount(codes, changes), np.bincount(codes))
    return Estimate(estimate.value, estimate.low, estimate.high, len(changes))


def _codes(units: Units | None, n: int) -> Int[np.ndarray, " prompt"]:
    """Number of the unit of every prompt."""
    if units is None:
        return np.arange(n)
    codes = np.array(pd.Series(list(units), dtype=object).factorize()[0])
    alone = codes < 0
    codes[alone] = codes.max(initial=-1) + 1 + np.arange(alone.sum())
    return codes


def _design_effect(changes: Float[np.ndarray, " prompt"], codes: Int[np.ndarray, " prompt"]) -> float:
    n, n_units = len(changes), int(codes.max()) + 1
    if n_units == n:
        return 1.0
    alone = changes.var(ddof=1) / n
    if not alone:
        return n / n_units
    sums, sizes = np.bincount(codes, changes), np.bincount(codes)
    together = n_units / (n_units - 1) * float(((sums - changes.mean() * sizes) ** 2).sum()) / n**2
    return max(1.0, float(together / alone))


def _wilson(share: float, n: float) -> tuple[float, float, float]:
    """A share with its Wilson interval, for a number of prompts that need not be whole."""
    if float(n).is_integer():
        interval = rate(round(share * n), int(n))
        return share, interval.low, interval.high
    z = 1.959963984540054
    centre, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return share, float((centre - half) / (1 + z * z / n)), float((centre + half) / (1 + z * z / n))
