"""Whether what is chosen among layers lies at the same depth in two conditions that were asked the same prompts."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from mechrefusal.statistics.bagging import bagged
from mechrefusal.statistics.choosing import PUBLISHED, Admissible, Candidates, lowest
from mechrefusal.statistics.deciding import prompts_needed

Verdict = Literal["moved", "not moved", "cannot tell"]

SAME_DEPTH = 0.1
"""Ours: depths that differ by at most this share of the layers are the same."""

DRAWS = 2000
FEWEST = 4
"""Fewer prompts than this (of both sides, twins as one) have no interval."""

NONE_OFTEN = 0.5
"""Ours: where more than this share of the bootstraps has no admissible candidate, the depth is that of the few that
have one, and says nothing."""


@dataclass(frozen=True)
class Profile:
    """Candidates of one condition, in the order in which ties are decided, with their scores prompt by prompt.

    depths: layer of each. bypass: score of the harmful prompts, the lower the better. induce, kl: of the harmless
    prompts, which must be at least, and at most, a threshold on the mean. harmful, harmless: for each prompt what it
    stands or falls with; a prompt and its twin have the same label, and so has a prompt in another condition. shifts:
    what the mean bypass, induce and kl change by when the directions are taken from other direction prompts, one row a
    way to draw them, to be added or taken away; zero for a candidate where it was not asked.
    """

    depths: Float[np.ndarray, " candidate"]
    bypass: Float[np.ndarray, "candidate harmful"]
    induce: Float[np.ndarray, "candidate harmless"]
    kl: Float[np.ndarray, "candidate harmless"]
    harmful: Sequence[Hashable]
    harmless: Sequence[Hashable]
    shifts: Float[np.ndarray, "split 3 candidate"]

    def __post_init__(self) -> None:
        n = len(self.depths)
        assert self.bypass.shape == (n, len(self.harmful))
        assert self.induce.shape == self.kl.shape == (n, len(self.harmless))
        assert self.shifts.shape[1:] == (3, n)


@dataclass(frozen=True)
class DepthDifference:
    """Layers from the carrier of a to that of b, mean over bootstraps, with its 95% and 90% intervals.

    `variance`: of the validation prompts (infinitesimal jackknife) and of the direction prompts. `missing`: share of
    bootstraps without an admissible candidate at a, and at b. `n`: prompts, twins as one.
    """

    value: float
    low: float
    high: float
    low_90: float
    high_90: float
    variance: tuple[float, float]
    missing: tuple[float, float]
    n: int


def depth_difference(
    a: Profile,
    b: Profile,
    *,
    admissible: Admissible = PUBLISHED,
    n_draws: int = DRAWS,
    seed: int = 0,
) -> DepthDifference:
    """How many layers lie between the carriers of two conditions, from a paired bootstrap of both choices.

    A draw takes prompts anew, whole twins at a time and the same at a and b, and directions from other direction
    prompts (`Profile.shifts`, the same split and sign at both), and chooses at each the admissible candidate with the
    lowest bypass. The estimate is the mean over draws, its error that of `bagging.bagged` plus what the splits of the
    direction prompts do to it: mean over splits of ((d₊ − d₋)/2)², d± the mean of the draws with that split and sign.
    """
    units: dict[Hashable, int] = {}
    for label in (*a.harmful, *a.harmless, *b.harmful, *b.harmless):
        units.setdefault(label, len(units))
    n = len(units)
    if n < FEWEST or not len(a.depths) or not len(b.depths):
        none = (float(not len(a.depths)), float(not len(b.depths)))
        return DepthDifference(nan, nan, nan, nan, nan, (nan, nan), none, n)
    random = np.random.default_rng(seed)
    times = random.multinomial(n, np.full(n, 1 / n), size=n_draws)
    n_splits = max(len(a.shifts), len(b.shifts))
    split = random.integers(n_splits, size=n_draws) if n_splits else np.zeros(n_draws, int)
    sign = random.choice([-1.0, 1.0], size=n_draws)
    chosen = [_chosen(each, units, times, split, sign, admissible) for each in (a, b)]
    draws = chosen[1] - chosen[0]
    estimate = bagged(draws, times)
    of_directions = _of_splits(draws, split, sign, n_splits)
    low, high = estimate.interval(0.95, more=of_directions)
    low_90, high_90 = estimate.interval(0.90, more=of_directions)
    missing = float(np.isnan(chosen[0]).mean()), float(np.isnan(chosen[1]).mean())
    return DepthDifference(estimate.value, low, high, low_90, high_90, (estimate.variance, of_directions), missing, n)


def same_depth(n_layers: int) -> float:
    """Layers that depths may differ by and be the same: `SAME_DEPTH` of all, one at least."""
    return max(1.0, SAME_DEPTH * n_layers)


def depth_verdict(difference: DepthDifference, *, n_layers: int) -> tuple[Verdict, str]:
    """Moved, not moved or cannot tell; the tolerance (`SAME_DEPTH` of the layers, one at least) comes first.

    Moved: the estimate lies outside the tolerance, and the 95% interval does not contain 0. Not moved: the 90% interval
    lies inside the tolerance (two one-sided tests of 5%, Schuirmann 1987). A move of just the tolerance is on the
    border of both. False alarms and power: docs/calibration.md.
    """
    limit = same_depth(n_layers)
    if not isfinite(difference.low):
        return "cannot tell", f"no interval of the depths' difference from {difference.n} prompts"
    interval = f"{difference.value:+.1f} layers [{difference.low:+.1f}, {difference.high:+.1f}]"
    numbers = f"{interval} of {n_layers}, {limit:g} are the same depth"
    if max(difference.missing) > NONE_OFTEN:
        often = " and ".join(f"{share:.0%}" for share in difference.missing if share > NONE_OFTEN)
        return "cannot tell", f"no admissible candidate in {often} of the bootstraps over prompts; {numbers}"
    if abs(difference.value) > limit and (difference.low > 0 or difference.high < 0):
        return "moved", numbers
    if -limit <= difference.low_90 and difference.high_90 <= limit:
        return "not moved", numbers
    return "cannot tell", numbers


def depth_needed(difference: DepthDifference, *, n_layers: int) -> float:
    """Prompts of a side at which `depth_verdict` would decide, were the estimate to stay and its error to fall as 1/√n.

    NaN where no number would: no interval, hardly a carrier, or an estimate on the border.
    """
    limit = same_depth(n_layers)
    if not isfinite(difference.low) or max(difference.missing) > NONE_OFTEN:
        return nan
    outside = abs(difference.value) > limit
    reach = difference.high - difference.value if outside else difference.high_90 - difference.value
    gap = abs(difference.value) if outside else limit - abs(difference.value)
    return prompts_needed(difference.n, (reach, gap))


def _chosen(
    profile: Profile,
    units: dict[Hashable, int],
    times: Int[np.ndarray, "draw unit"],
    split: Int[np.ndarray, " draw"],
    sign: Float[np.ndarray, " draw"],
    admissible: Admissible,
) -> Float[np.ndarray, " draw"]:
    """Depth of the winner of every draw; NaN where no candidate is admissible, or no prompt of a side was drawn."""
    shifts = np.zeros((len(times), 3, len(profile.depths)))
    if len(profile.shifts):
        shifts = profile.shifts[split % len(profile.shifts)] * sign[:, None, None]
    weights = [times[:, [units[label] for label in labels]] for labels in (profile.harmful, profile.harmless)]
    candidates = Candidates(profile.bypass, profile.induce, profile.kl, admissible)
    winners = lowest(candidates.ranked(weights[0], weights[1], shifts=shifts))
    return np.where(winners >= 0, profile.depths[winners], nan)


def _of_splits(
    draws: Float[np.ndarray, " draw"],
    split: Int[np.ndarray, " draw"],
    sign: Float[np.ndarray, " draw"],
    n_splits: int,
) -> float:
    """Variance of the mean that comes from the direction prompts."""
    halves = []
    for number in range(n_splits):
        ways = [draws[(split == number) & (sign == way) & np.isfinite(draws)] for way in (1.0, -1.0)]
        if all(map(len, ways)):
            halves.append((ways[0].mean() - ways[1].mean()) / 2)
    return float(np.mean(np.square(halves))) if halves else 0.0
