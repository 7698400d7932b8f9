"""How much would tell: prompts for a difference of rates, a head's effect, a move; and what a number could tell.

Planning figures from normal approximations: two-sided tests of 5%, and by default a power of 90%.
"""

from math import ceil, isfinite, sqrt

import numpy as np
from scipy import optimize, stats

from mechrefusal.errors import MechrefusalError
from mechrefusal.statistics.depth import FEWEST
from mechrefusal.statistics.maps import ALPHA

POWER = 0.9
MOST = 1_000_000
"""Beyond this the answer is that no number does."""

NAN = float("nan")


def rate_power(difference: float, discordant: float, n: float) -> float:
    """Chance that McNemar's test tells a difference of paired rates (Connor, Biometrics 43, 1987, equation 3).

    Args:
        difference: of the two rates. discordant: share of prompts that answer differently at the two, at least
            |difference|. n: prompts.
    """
    difference = abs(difference)
    if not 0 < discordant <= 1 or difference > discordant:
        raise MechrefusalError(
            f"a difference of {difference:g} with {discordant:g} of the prompts discordant is impossible: "
            "give a share of discordant prompts from the difference to 1"
        )
    spread = sqrt(max(discordant - difference**2, 0.0))
    reach = difference * sqrt(n) - stats.norm.ppf(1 - ALPHA / 2) * sqrt(discordant)
    return float(stats.norm.cdf(reach / spread)) if spread else float(reach > 0)


def prompts_for_rates(difference: float, discordant: float, *, power: float = POWER) -> float:
    """Prompts at which a difference of paired rates becomes significant; NaN for no difference."""
    rate_power(difference, discordant, 1)
    z_a, z_b = stats.norm.ppf(1 - ALPHA / 2), stats.norm.ppf(power)
    if not difference:
        return NAN
    reach = z_a * sqrt(discordant) + z_b * sqrt(max(discordant - difference**2, 0.0))
    return _whole((reach / abs(difference)) ** 2)


def smallest_rate_difference(discordant: float, n: float, *, power: float = POWER) -> float:
    """The least difference of paired rates that n prompts tell; NaN where not even a difference of 1 would be.

    A difference of more than the discordant prompts has that many more of them, all one way.
    """

    def missing(difference: float) -> float:
        return rate_power(difference, max(discordant, difference), n) - power

    if n < 1 or not 0 < discordant <= 1 or missing(1.0) < 0:
        return NAN
    return float(optimize.brentq(missing, 1e-9, 1))


def smallest_effect(spread: float, critical: float, n: float, *, power: float = POWER) -> float:
    """The least mean effect that stands out, in the unit of `spread`.

    Args:
        spread: standard deviation of the effect between prompts.
        critical: |t| beyond which a cell is marked: `map_critical` for a map of many.
        n: prompts.
    """
    return float((critical + stats.norm.ppf(power)) * spread / sqrt(n)) if n >= 2 else NAN


def prompts_for_effect(effect: float, spread: float, critical: float, *, power: float = POWER) -> float:
    """Prompts at which a mean effect stands out (see `smallest_effect`); NaN for none."""
    return _whole(((critical + stats.norm.ppf(power)) * spread / abs(effect)) ** 2) if effect else NAN


def map_critical(values: np.ndarray, *, draws: int = 2000, seed: int = 0) -> float:
    """The |t| that the largest of a map of nothing exceeds in 5% of maps, for cells that move together as these do.

    The normal limit: maxima of the cells' correlated normal scores, from the changes around their means.

    Args:
        values: changes, (prompt or pair, cell).
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return NAN
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    scaled = centred[:, spread > 0] / spread[spread > 0]
    if not scaled.shape[1]:
        return NAN
    weights = np.random.default_rng(seed).normal(size=(draws, len(scaled))) / sqrt(len(scaled))
    return float(np.quantile(np.abs(weights @ scaled).max(axis=1), 1 - ALPHA))


def move_power(move: float, error: float, limit: float) -> float:
    """Chance that `depth.depth_verdict` says moved, for an estimate that is normal around `move` with this error.

    Args:
        move: layers. error: standard error of the estimate, layers. limit: what counts as the same depth, layers.
    """
    bound = max(limit, stats.norm.ppf(1 - ALPHA / 2) * error)
    if not error:
        return float(abs(move) > limit)
    return float(stats.norm.sf((bound - abs(move)) / error) + stats.norm.cdf((-bound - abs(move)) / error))


def prompts_for_move(move: float, error: float, limit: float, n: float, *, power: float = POWER) -> float:
    """Prompts at which a move would be significant, where n give this error and it falls as 1/√n.

    NaN within the tolerance.
    """
    if abs(move) <= limit or not isfinite(error):
        return NAN
    if not error:
        return float(n)
    z_a, z_b = stats.norm.ppf(1 - ALPHA / 2), stats.norm.ppf(power)
    needed = min((abs(move) - limit) / z_b if z_b > 0 else np.inf, abs(move) / (z_a + z_b))
    return _whole(max(FEWEST, n * (error / needed) ** 2))


def smallest_move(error: float, limit: float, *, power: float = POWER) -> float:
    """The least move that an error of this size tells, layers."""
    z_a, z_b = stats.norm.ppf(1 - ALPHA / 2), stats.norm.ppf(power)
    return float(max(limit + z_b * error, (z_a + z_b) * error)) if isfinite(error) else NAN


def _whole(n: float) -> float:
    return float(ceil(n - 1e-9)) if n <= MOST else NAN
