"""Verdicts on whether refusal's place moved: what one is, how many prompts would decide it, and what a transfer says.

`n_to_decide` is a planning figure, not a promise: it takes the estimates as they are, and asks when intervals of their
present shape, which narrow as 1/√n, would clear what they must.
"""

from dataclasses import dataclass, field, replace
from math import isfinite, nan

import numpy as np
import pandas as pd

from mechrefusal.geometry.drift import TURNED, Turn
from mechrefusal.models import Checkpoint
from mechrefusal.statistics.deciding import prompts_needed
from mechrefusal.statistics.depth import Verdict

LOST = 0.5
"""Ours: a carrier that lowers the refusal score by less than half of what b's own does no longer bypasses at b."""
HELD = 0.8
"""Ours: one that lowers it by at least 80% of that still does."""


@dataclass(frozen=True)
class MoveVerdict:
    """A row of the table `relocation`, less the pair."""

    measure: str
    verdict: Verdict
    reason: str
    value: float = nan
    low: float = nan
    high: float = nan
    floor: float = nan
    n_to_decide: float = nan

    def explained(self) -> "MoveVerdict":
        """The verdict; where it is "cannot tell", its reason also says what would decide it."""
        if self.verdict != "cannot tell":
            return replace(self, n_to_decide=nan)
        return replace(self, reason=f"{self.reason}; {what_decides(self.n_to_decide)}")


def cannot_tell(measure: str, reason: str, *, n_to_decide: float = nan) -> MoveVerdict:
    """A verdict without a value."""
    return MoveVerdict(measure, "cannot tell", reason, n_to_decide=n_to_decide)


def what_decides(n: float) -> str:
    """The end of a reason: how many prompts would decide it."""
    if not isfinite(n):
        return "no number of prompts decides it as things stand"
    return f"about {int(n)} prompts of each side would decide it"


def for_turn(turn: Turn, n: float) -> float:
    """How many prompts decide `drift.verdict`: an excess clear of 0, or a corrected cosine clear of `TURNED`."""
    if turn.reason or not np.isfinite([turn.excess.low, turn.corrected.low]).all():
        return nan
    if turn.corrected.value >= TURNED:
        return prompts_needed(n, (turn.corrected.value - turn.corrected.low, turn.corrected.value - TURNED))
    return prompts_needed(n, (turn.excess.value - turn.excess.low, turn.excess.value))


def by_transfer(a: Checkpoint, b: Checkpoint, transfers: pd.DataFrame) -> MoveVerdict:
    """What the table `transfer` says of a move from a to b; the rule is told at `relocation.relocation`."""
    effects, n = [], nan
    for source in (a, b):
        row = _transferred(transfers, source, b)
        if row is None:
            return cannot_tell("transfer", f"the carrier of {source.id} was not applied at {b.id}")
        if row["kind"] != "carrier":
            why = "transfer" if source is a else "compare with"
            return cannot_tell("transfer", f"no carrier at {source.id} to {why}")
        if pd.isna([row[name] for name in ("decrease", "decrease_low", "decrease_high")]).any():
            why = f" ({row['reason']})" if row["reason"] else ""
            return cannot_tell("transfer", f"no effect with its interval of {source.id} at {b.id}{why}")
        effects.append(_Effect.of(row))
        n = float(row["n_harmful"])
    of_a, of_b = effects
    numbers = (
        f"at {b.id}, ablating the carrier of {a.id} lowers the refusal score by {of_a} nats, its own by {of_b}"
        f"{of_b.from_halves}{of_b.on_its_own}"
    )
    if not of_b.clear:
        needed = prompts_needed(n, (of_b.value - of_b.low, of_b.value - np.nanmax([0.0, of_b.random])))
        why = f"{numbers}: its own is not clear of zero and of a random direction"
        return cannot_tell("transfer", why, n_to_decide=needed)
    share = of_a.value / of_b.value
    decided: Verdict = "cannot tell"
    if share < LOST and of_a.high < of_b.low:
        decided = "moved"
        if (row := _transferred(transfers, a, a)) is not None and _Effect.of(row).unclear:
            decided, n = "cannot tell", nan  # the intervals are apart already: others than these are in the way
            numbers = f"{numbers}: but it is not clear of zero and of a random direction at {a.id} either"
        elif of_a.value >= of_b.half_low:  # never where halves are not known
            decided, n = "cannot tell", nan
            numbers = f"{numbers}: but the noise of the direction prompts does as much"
    elif share >= HELD and of_a.clear:
        decided = "not moved"
    # The least and the most that the two intervals allow; a negative decrease is largest over the smallest.
    ends = [end / other for end in (of_a.low, of_a.high) for other in (of_b.low, of_b.high)]
    apart = ((of_b.value - of_b.low) + (of_a.high - of_a.value), of_b.value - of_a.value if share < LOST else nan)
    clear = of_a.value - np.nanmax([0.0, of_a.random])
    margin = (of_a.value - of_a.low, clear if share >= HELD else nan)
    return MoveVerdict(
        "transfer",
        decided,
        numbers,
        value=share,
        low=min(ends),
        high=max(ends),
        floor=of_a.random / of_b.value,
        n_to_decide=prompts_needed(n, apart, margin),
    )


@dataclass(frozen=True)
class _Effect:
    """How far ablation lowers the mean refusal score, nats; `random`: that of a random direction.

    `half_low`, `half_high`: those of the directions of two halves of the direction prompts. `selected`: the prompts it
    is measured on chose it.
    """

    value: float
    low: float
    high: float
    random: float
    half_low: float
    half_high: float
    selected: bool = field(default=False, kw_only=True)

    @classmethod
    def of(cls, row: pd.Series) -> "_Effect":
        """Of a checkpoint's own carrier what it does to prompts that did not choose it, where that is known."""
        names = ("decrease", "decrease_low", "decrease_high", "random_decrease")
        half_low, half_high = float(row["decrease_half_low"]), float(row["decrease_half_high"])
        value, low, high, random = (float(row[name]) for name in names)
        same = (row["arm_source"], row["step_source"]) == (row["arm_target"], row["step_target"])
        held_out, *ends = (float(row[f"decrease_held_out{end}"]) for end in ("", "_low", "_high"))
        if not same or np.isnan([held_out, *ends]).any():
            return cls(value, low, high, random, half_low, half_high, selected=same)
        lucky = value - held_out
        return cls(held_out, ends[0], ends[1], random, half_low - lucky, half_high - lucky)

    @property
    def clear(self) -> bool:
        """Whether the whole interval is above zero and above a random direction's effect (where that is known)."""
        return bool(self.low > np.nanmax([0.0, self.random]))

    @property
    def unclear(self) -> bool:
        """Whether it is known, and not `clear`."""
        return bool(np.isfinite(self.low) and not self.clear)

    @property
    def on_its_own(self) -> str:
        """What is said where the prompts that chose it favour it."""
        return ", all of its own on the prompts that chose it" if self.selected else ""

    @property
    def from_halves(self) -> str:
        """What is said of the halves after the effect itself."""
        if np.isnan([self.half_low, self.half_high]).any():
            return " (the noise of the direction prompts is not in it)"
        return f", its own from halves of the direction prompts by {self.half_low:.2f} and {self.half_high:.2f}"

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def _transferred(transfers: pd.DataFrame, source: Checkpoint, target: Checkpoint) -> pd.Series | None:
    same = pd.Series(True, index=transfers.index)
    for side, checkpoint in (("source", source), ("target", target)):
        same &= (transfers[f"arm_{side}"] == checkpoint.arm) & (transfers[f"step_{side}"] == checkpoint.step)
    return transfers[same].iloc[0] if same.any() else None
