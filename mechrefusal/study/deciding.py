"""How many prompts would decide a verdict that cannot be told, from intervals that narrow as 1/√n.

A planning figure, not a promise: it takes the estimates as they are, and asks when intervals of their present shape
would clear what they must.
"""

from math import ceil, inf, isfinite, nan

import numpy as np

from mechrefusal.geometry.drift import TURNED, Turn

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
