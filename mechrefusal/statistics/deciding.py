"""How many prompts would decide what is undecided now, from intervals that narrow as 1/√n."""

from math import ceil, inf, isfinite, nan

MOST = 100_000
"""Beyond this the answer is that no number of prompts decides it."""


def prompts_needed(n: float, *needs: tuple[float, float]) -> float:
    """Prompts at which one of several ways to decide is open, NaN where none ever is.

    Args:
        n: prompts that the intervals are over now.
        needs: (how far an interval reaches towards what it must clear, how far away that is), one a way to decide.
    """
    factors = [(reach / gap) ** 2 for reach, gap in needs if isfinite(reach) and isfinite(gap) and gap > 0]
    needed = n * max(1.0, min(factors, default=inf))
    return float(ceil(needed)) if isfinite(needed) and needed <= MOST else nan
