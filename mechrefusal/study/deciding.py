"""How many prompts would decide a verdict that cannot be told, from intervals that narrow as 1/√n.

A planning figure, not a promise: it takes the estimates as they are, and asks when intervals of their present shape
would clear what they must.
"""

from math import ceil, inf, isfinite, nan

import numpy as np

from mechrefusal.geometry.drift import SAME_DEPTH, TURNED, Turn

MOST = 100_000
"""Beyond this the answer is that no number of prompts decides it."""


def prompts_needed(n: float, *needs: tuple[float, float]) -> float:
    """Prompts at which one of several ways to decide is open, NaN where none ever is.

    Args:
        n: prompts that the intervals are over now.
        needs: (how far an interval reaches towards what it must clear, how far away that is), one a way to decide.
    """
    factors = [(reach / gap) ** 2 for reach, gap in needs if isfinite(reach) and isfinite(gap) and gap > 0]
    found = n * max(1.0, min(factors, default=inf))
    return float(ceil(found)) if isfinite(found) and found <= MOST else nan


def for_depth(
    values: tuple[float, float], ends: tuple[tuple[float, float], tuple[float, float]], *, n_layers: int, n: float
) -> float:
    """For `drift.depth_verdict`: intervals of the layer that part, or that together span next to nothing."""
    (a, (low_a, high_a)), (b, (low_b, high_b)) = sorted(zip(values, ends, strict=True))
    distance, limit = b - a, max(1.0, SAME_DEPTH * n_layers)
    ways = [((high_a - a) + (b - low_b), distance)]
    if distance < limit:
        # From every lower end to every upper end: as far as they reach, and what the limit leaves them.
        shares = (
            ((a - low_a) + (high_b - b)) / (limit - distance),
            ((b - low_b) + (high_a - a)) / (limit + distance),
            (high_a - low_a) / limit,
            (high_b - low_b) / limit,
        )
        ways.append((float(np.max(shares)), 1.0))
    return prompts_needed(n, *ways)


def for_halves(n: float) -> float:
    """For a half of the direction prompts that has no carrier, where all `n` of a side have one: of twice as many, each
    half is as large as all are now."""
    return prompts_needed(2 * n, (0.0, 1.0))


def for_turn(found: Turn, n: float) -> float:
    """For `drift.verdict`: an excess clear of 0, or a corrected cosine clear of `TURNED`."""
    if found.reason or not np.isfinite([found.excess.low, found.corrected.low]).all():
        return nan
    if found.corrected.value >= TURNED:
        return prompts_needed(n, (found.corrected.value - found.corrected.low, found.corrected.value - TURNED))
    return prompts_needed(n, (found.excess.value - found.excess.low, found.excess.value))


def said(n: float) -> str:
    """The end of a reason."""
    if not isfinite(n):
        return "no number of prompts decides it as things stand"
    return f"about {int(n)} prompts of each side would decide it"
