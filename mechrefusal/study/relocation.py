"""Whether refusal's place moved between two checkpoints: moved, not moved or cannot tell, by measure and overall."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from mechrefusal import tables
from mechrefusal.geometry import Directions
from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.drift import Turn, turn, verdict
from mechrefusal.models import Checkpoint
from mechrefusal.statistics.choosing import PUBLISHED, Admissible
from mechrefusal.statistics.depth import (
    DepthDifference,
    Profile,
    Verdict,
    depth_difference,
    depth_needed,
    depth_verdict,
    same_depth,
)
from mechrefusal.study import deciding
from mechrefusal.study.across import WhyApart, comparable, layer_places, pairs
from mechrefusal.study.depths import scaled
from mechrefusal.study.places import best_place, carrier_place

DECIDING = ("carrier_layer", "transfer")
"""Measures that the row `overall` goes by: where the carrier is, and whether it still is one. The others are shown
beside: a direction can turn by what refusal does not hang on, the carriers' cosine mixes a turn with a change of layer,
and the principal angle takes in positions with little of the direction."""

OF_ACTIVATIONS = ("carrier_cosine", "direction_cosine", "principal_angle", "transfer")
"""Measures that need the two models' activations to be comparable."""

LOST = 0.5
"""Ours: a carrier that lowers the refusal score by less than half of what b's own does no longer bypasses at b."""

HELD = 0.8
"""Ours: one that lowers it by at least 80% of that still does."""

NAN = float("nan")


@dataclass(frozen=True)
class _Found:
    """A row of the table `relocation`, less the pair."""

    measure: str
    verdict: Verdict
    reason: str
    value: float = NAN
    low: float = NAN
    high: float = NAN
    floor: float = NAN
    n_to_decide: float = NAN

    def told(self) -> "_Found":
        """With what would decide it in the reason, where it cannot be told."""
        if self.verdict != "cannot tell":
            return replace(self, n_to_decide=NAN)
        return replace(self, reason=f"{self.reason}; {deciding.said(self.n_to_decide)}")


def relocation(
    checkpoints: Sequence[Checkpoint],
    directions: dict[str, Directions],
    carrier_rows: dict[str, pd.DataFrame],
    transfers: pd.DataFrame,
    n_layers: Mapping[str, int],
    profiles: Mapping[str, Profile | None],
    *,
    given: Collection[str] = (),
    why_apart: WhyApart = comparable,
    admissible: Admissible = PUBLISHED,
) -> pd.DataFrame:
    """Table `relocation`: for each of `across.pairs`, a verdict by measure and one overall.

    carrier_layer: value = layers from the carrier at a to that at b, mean over bootstraps that choose both anew on the
    same prompts and with directions of other direction prompts (`statistics.depth_difference`), with its 95% interval;
    floor = what counts as the same depth; rule: `statistics.depth.depth_verdict`. Cannot tell where most bootstraps
    have no admissible candidate at either. Between models of unlike depth b's layers are counted as shares of a's.
    carrier_cosine (at the places of the two carriers), direction_cosine (last position, a's reference layer, or the
    mean over layers where there is none) and principal_angle (mean, degrees, between the spans of all positions at that
    layer): value = between a half of the prompts at one and the other half at the other; floor = what that would be had
    nothing moved, from halves within each. So value and floor have the same noise, unlike a value of table `drift`;
    rule: `geometry.drift.verdict`.
    transfer: value = how far ablating a's carrier lowers the mean refusal score at b, as a share of what b's own
    carrier does there: one model, one metric, the same prompts, so that neither a weaker refusal nor another metric is
    taken for a move. These prompts chose b's own and not a's, so that its own decrease is that of every prompt under
    what the other prompts choose (`decrease_held_out`), and that of its halves is less by the same; where that is not
    known the reason says that it is of the prompts that chose it. floor = the same share for a
    random direction at b. Moved: below `LOST`, the two intervals of the decrease exclude each other, and the decrease
    is less than what b's own place gives from either half of the direction prompts: those intervals are over validation
    prompts alone. Two halves are a check, not a bound, and the choice of a's place is not in it. Where halves are not
    known that is not asked, and the reason says so. Not moved: at least `HELD`, and its interval is clear of zero and
    of the random direction. Cannot tell where either has no carrier, or b's own does not clearly lower the score; nor
    is it a move where a's carrier does not clearly lower it at a.
    overall: `DECIDING` alone decide. Moved: one of the
    two moved, and the other does not say that nothing did. Not moved: the carrier's layer did not move, and the
    transfer does not say that it did. Otherwise, and where the two contradict each other, cannot tell. What the other
    measures say is in the reason, and decides nothing.

    Where it cannot be told, `n_to_decide` is how many prompts of each side would decide it if estimates stay and
    intervals narrow as 1/√n (see `deciding`), NaN where no number does: no carrier, or an estimate on a border.

    Args:
        directions: by checkpoint id, of the same prompts at every checkpoint.
        carrier_rows: table `carrier` of each checkpoint (one row), by id.
        transfers: table `transfer`, with the rows of each carrier at its own checkpoint.
        n_layers: layers of each checkpoint's model, by id.
        profiles: of each checkpoint, as `depths.profile` gives them, by id; None where there is none.
        admissible: what the carriers were chosen by.
        given: see `across.pairs`.
        why_apart: of pairs that it has a reason for only the depth is compared, which alone decides.
    """
    rows: list[dict] = []
    for a, b in pairs(checkpoints, given=given):
        carriers = carrier_rows[a.id].iloc[0], carrier_rows[b.id].iloc[0]
        both, layers = (directions[a.id], directions[b.id]), (n_layers[a.id], n_layers[b.id])
        first, second = profiles.get(a.id), scaled(profiles.get(b.id), n_layers=layers[1], to=layers[0])
        found = [_depth(a, b, *carriers, _between(first, second, admissible), n_layers=layers)]
        if apart := why_apart(a, b):
            found += [_Found(name, "cannot tell", f"not compared: {apart}") for name in OF_ACTIVATIONS]
        else:
            found += [
                _carrier_cosine(a, b, both, *carriers),
                *_at_reference(both, carriers[0]),
                _transfer(a, b, transfers),
            ]
        found.append(_overall(found))
        found = [each.told() for each in found]
        pair = {"arm_a": a.arm, "step_a": a.step, "arm_b": b.arm, "step_b": b.step}
        rows += [{**pair, **vars(each)} for each in found]
    return tables.frame("relocation", rows)


def _between(first: Profile | None, second: Profile | None, admissible: Admissible) -> DepthDifference | None:
    if first is None or second is None:
        return None
    return depth_difference(first, second, admissible=admissible)


def _depth(
    a: Checkpoint,
    b: Checkpoint,
    first: pd.Series,
    second: pd.Series,
    found: DepthDifference | None,
    *,
    n_layers: tuple[int, int],
) -> _Found:
    here, there = carrier_place(first), carrier_place(second)
    if here is None or there is None:
        return _Found("carrier_layer", "cannot tell", _no_carrier(a, first) or _no_carrier(b, second))
    if found is None:
        return _Found("carrier_layer", "cannot tell", "the candidates' scores by prompt are not kept; measure again")
    decided, reason = depth_verdict(found, n_layers=n_layers[0])
    apart = f"carriers at layer {here[1]} ({a.id}) and {there[1]} ({b.id})"
    if n_layers[0] != n_layers[1]:
        apart = f"{apart}, of {n_layers[0]} and {n_layers[1]} layers: compared as shares, in layers of the former"
    of_directions = found.variance[1] / sum(found.variance) if sum(found.variance) else 0.0
    noise = f"{of_directions:.0%} of its variance from the direction prompts"
    return _Found(
        "carrier_layer",
        decided,
        f"{apart}; over bootstraps {reason}, {noise}",
        value=found.value,
        low=found.low,
        high=found.high,
        floor=same_depth(n_layers[0]),
        n_to_decide=depth_needed(found, n_layers=n_layers[0]),
    )


def _carrier_cosine(
    a: Checkpoint, b: Checkpoint, both: tuple[Directions, Directions], first: pd.Series, second: pd.Series
) -> _Found:
    here, there = carrier_place(first), carrier_place(second)
    if here is None or there is None:
        return _Found("carrier_cosine", "cannot tell", _no_carrier(a, first) or _no_carrier(b, second))
    found = turn(*both, places=([here], [there]), measure="cosine")
    return _turned("carrier_cosine", found, "at the two carriers", _n_prompts(both))


def _at_reference(both: tuple[Directions, Directions], first: pd.Series) -> list[_Found]:
    if both[0].positions != both[1].positions:
        reason = "positions of the templates differ"
        return [_Found(name, "cannot tell", reason) for name in ("direction_cosine", "principal_angle")]
    if (best := best_place(first)) is None:
        last, n_layers = both[0].positions[-1], both[0].values.shape[1]
        line: list[Place] = [(last, layer) for layer in range(n_layers)]
        found = turn(*both, places=(line, line), measure="cosine")
        return [
            _turned("direction_cosine", found, "mean over layers, as there is no reference layer", _n_prompts(both)),
            _Found("principal_angle", "cannot tell", "no reference layer to take the span at"),
        ]
    layer, n = best[1], _n_prompts(both)
    span, where = layer_places(both[0], layer), f"at layer {layer}"
    angle = turn(*both, places=(span, span), measure="principal_angle_mean")
    return [
        _turned("direction_cosine", turn(*both, places=(span[-1:], span[-1:]), measure="cosine"), where, n),
        _turned("principal_angle", angle, where, n),
    ]


def _n_prompts(both: tuple[Directions, Directions]) -> int:
    return min(n for each in both for n in (each.n_harmful, each.n_harmless))


def _turned(measure: str, found: Turn, where: str, n: int) -> _Found:
    decided, reason = verdict(found)
    return _Found(
        measure,
        decided,
        f"{where}: {reason}",
        value=found.cross.value,
        low=found.cross.low,
        high=found.cross.high,
        floor=found.expected,
        n_to_decide=deciding.for_turn(found, n),
    )


def _transfer(a: Checkpoint, b: Checkpoint, transfers: pd.DataFrame) -> _Found:
    effects, n = [], NAN
    for source in (a, b):
        row = _transferred(transfers, source, b)
        if row is None:
            return _Found("transfer", "cannot tell", f"the carrier of {source.id} was not applied at {b.id}")
        if row["kind"] != "carrier":
            why = "transfer" if source is a else "compare with"
            return _Found("transfer", "cannot tell", f"no carrier at {source.id} to {why}")
        if pd.isna([row[name] for name in ("decrease", "decrease_low", "decrease_high")]).any():
            why = f" ({row['reason']})" if row["reason"] else ""
            return _Found("transfer", "cannot tell", f"no effect with its interval of {source.id} at {b.id}{why}")
        effects.append(_Effect.of(row))
        n = float(row["n_harmful"])
    moved, own = effects
    numbers = (
        f"at {b.id}, ablating the carrier of {a.id} lowers the refusal score by {moved} nats, its own by {own}"
        f"{own.from_halves}{own.on_its_own}"
    )
    if not own.clear:
        needed = deciding.prompts_needed(n, (own.value - own.low, own.value - np.nanmax([0.0, own.random])))
        why = f"{numbers}: its own is not clear of zero and of a random direction"
        return _Found("transfer", "cannot tell", why, n_to_decide=needed)
    share = moved.value / own.value
    decided: Verdict = "cannot tell"
    if share < LOST and moved.high < own.low:
        decided = "moved"
        if (row := _transferred(transfers, a, a)) is not None and _Effect.of(row).unclear:
            decided, n = "cannot tell", NAN  # the intervals are apart already: others than these are in the way
            numbers = f"{numbers}: but it is not clear of zero and of a random direction at {a.id} either"
        elif moved.value >= own.half_low:  # never where halves are not known
            decided, n = "cannot tell", NAN
            numbers = f"{numbers}: but the noise of the direction prompts does as much"
    elif share >= HELD and moved.clear:
        decided = "not moved"
    # The least and the most that the two intervals allow; a negative decrease is largest over the smallest.
    ends = [end / other for end in (moved.low, moved.high) for other in (own.low, own.high)]
    apart = ((own.value - own.low) + (moved.high - moved.value), own.value - moved.value if share < LOST else NAN)
    clear = moved.value - np.nanmax([0.0, moved.random])
    held = (moved.value - moved.low, clear if share >= HELD else NAN)
    return _Found(
        "transfer",
        decided,
        numbers,
        value=share,
        low=min(ends),
        high=max(ends),
        floor=moved.random / own.value,
        n_to_decide=deciding.prompts_needed(n, apart, held),
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
        own = (row["arm_source"], row["step_source"]) == (row["arm_target"], row["step_target"])
        held_out, *ends = (float(row[f"decrease_held_out{end}"]) for end in ("", "_low", "_high"))
        if not own or np.isnan([held_out, *ends]).any():
            return cls(value, low, high, random, half_low, half_high, selected=own)
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


def _overall(found: Sequence[_Found]) -> _Found:
    asked = [each for each in found if each.measure in DECIDING]
    by_name = {each.measure: each.verdict for each in asked}
    decided: Verdict = "cannot tell"
    contradicting = {"moved", "not moved"} <= set(by_name.values())
    if not contradicting and "moved" in by_name.values():
        decided = "moved"
        asked = [each for each in asked if each.verdict == "moved"]
    elif not contradicting and by_name["carrier_layer"] == "not moved":
        decided = "not moved"
    reason = "; ".join(f"{each.measure} {_SAID[each.verdict]}: {each.reason}" for each in asked)
    if contradicting:
        reason = f"these two contradict each other: {reason}"
    beside = ", ".join(f"{each.measure} {_SAID[each.verdict]}" for each in found if each.measure not in DECIDING)
    # A transfer decides alone only where it would say that the carrier moved.
    alone = [each for each in asked if each.measure == "carrier_layer" or each.value < LOST]
    open_ones = [each.n_to_decide for each in alone if each.verdict == "cannot tell" and not np.isnan(each.n_to_decide)]
    needed = NAN if contradicting else min(open_ones, default=NAN)
    return _Found("overall", decided, f"{reason} (beside: {beside})", n_to_decide=needed)


_SAID: dict[Verdict, str] = {"moved": "moved", "not moved": "did not move", "cannot tell": "cannot tell"}


def _no_carrier(checkpoint: Checkpoint, row: pd.Series) -> str:
    if carrier_place(row) is not None:
        return ""
    return f"no carrier at {checkpoint.id}" + (f": {row['reason']}" if row["reason"] else "")
