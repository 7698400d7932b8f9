"""From which layer on a rate lies on the one side, and no more on the other: where a behaviour changes sides."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from jaxtyping import Float

from mechrefusal.statistics.intervals import Estimate
from mechrefusal.statistics.paired import rate_difference

DRAWS = 2000
GONE_OFTEN = 0.05
"""Ours: where more than this share of the bootstraps has no gap of that sign between the two sides, there is none."""


@dataclass(frozen=True)
class SideChange:
    """The first of the measured layers from which on the rate is nearer to the one side than to the other.

    Fields:
        depth: that layer, with the 95% percentile interval of a bootstrap over prompts; `beyond` where it never is. NaN
            where the two sides do not differ, and `reason` says so.
        gap: rate of the one side minus that of the other, paired.
        missing: share of the bootstraps in which they do not differ in that direction.
    """

    depth: Estimate
    gap: Estimate
    missing: float
    reason: str


def side_change(
    by_layer: Float[np.ndarray, "prompt layer"],
    there: Float[np.ndarray, " prompt"],
    here: Float[np.ndarray, " prompt"],
    *,
    layers: Sequence[int],
    beyond: int,
    draws: int = DRAWS,
    seed: int = 0,
) -> SideChange:
    """Where outcomes of 0 and 1 change from those of `here` to those of `there`, by layer in ascending order.

    With r(l) the rate at a layer, the share of the way is (r(l) − r(here)) / (r(there) − r(here)); the depth is the
    first layer from which on it is a half or more. Prompts without an outcome on either side are left out; one that
    lacks a layer is left out there. The depth is no smooth function of the rates: for what its interval covers see
    docs/calibration.md.
    """
    known = ~(np.isnan(there) | np.isnan(here))
    by_layer, there, here = (np.asarray(values, float)[known] for values in (by_layer, there, here))
    gap, n = rate_difference(here, there), int(known.sum())
    nothing = Estimate(nan, nan, nan, n)
    if n < 2:
        return SideChange(nothing, gap, nan, f"{n} prompts have an outcome on both sides: two are needed")
    if not (gap.low > 0 or gap.high < 0):
        numbers = f"{gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"
        return SideChange(nothing, gap, nan, f"the two sides differ by {numbers}: there is no side to change to")
    random = np.random.default_rng(seed)
    weights = random.multinomial(n, np.full(n, 1 / n), size=draws).astype(float)
    depths = _depths(weights, by_layer, there, here, layers, beyond, np.sign(gap.value))
    value = _depths(np.ones((1, n)), by_layer, there, here, layers, beyond, np.sign(gap.value))[0]
    missing = float(np.isnan(depths).mean())
    if missing > GONE_OFTEN or np.isnan(value):
        reason = f"the sides do not differ in {missing:.0%} of the bootstraps"
        return SideChange(Estimate(float(value), nan, nan, n), gap, missing, reason)
    low, high = np.nanquantile(depths, [0.025, 0.975], method="closest_observation")
    return SideChange(Estimate(float(value), float(low), float(high), n), gap, missing, "")


def _depths(
    weights: Float[np.ndarray, "draw prompt"],
    by_layer: Float[np.ndarray, "prompt layer"],
    there: Float[np.ndarray, " prompt"],
    here: Float[np.ndarray, " prompt"],
    layers: Sequence[int],
    beyond: int,
    sign: float,
) -> Float[np.ndarray, " draw"]:
    """Depth of every draw; NaN where the gap has not that sign."""
    total = weights.sum(1)
    r_there, r_here = (weights @ values / total for values in (there, here))
    seen = ~np.isnan(by_layer)
    counted = weights @ seen
    rates = weights @ np.where(seen, by_layer, 0.0) / np.where(counted > 0, counted, nan)
    gap = r_there - r_here
    has_side = gap * sign > 0
    share = (rates - r_here[:, None]) / np.where(has_side, gap, nan)[:, None]
    across = np.nan_to_num(share, nan=0.0) >= 0.5 - 1e-9  # half is half, however it was rounded
    stays = np.logical_and.accumulate(across[:, ::-1], axis=1)[:, ::-1]
    places = np.append(np.asarray(layers, float), float(beyond))
    first = np.where(stays.any(1), stays.argmax(1), len(layers))
    return np.where(has_side, places[first], nan)
