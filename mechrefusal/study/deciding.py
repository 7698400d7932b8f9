"""How many prompts would decide a verdict that cannot be told, from intervals that narrow as 1/√n.

A planning figure, not a promise: it takes the estimates as they are, and asks when intervals of their present shape
would clear what they must.
"""

from dataclasses import dataclass, replace
from math import isfinite, nan

import numpy as np

from mechrefusal.geometry.drift import TURNED, Turn
from mechrefusal.statistics.deciding import prompts_needed
from mechrefusal.statistics.depth import Verdict

NAN = float("nan")


@dataclass(frozen=True)
class Found:
    """A row of the table `relocation`, less the pair."""

    measure: str
    verdict: Verdict
    reason: str
    value: float = NAN
    low: float = NAN
    high: float = NAN
    floor: float = NAN
    n_to_decide: float = NAN

    def told(self) -> "Found":
        """With what would decide it in the reason, where it cannot be told."""
        if self.verdict != "cannot tell":
            return replace(self, n_to_decide=NAN)
        return replace(self, reason=f"{self.reason}; {said(self.n_to_decide)}")


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
