"""Whether refusal's place moved between two checkpoints: moved, not moved or cannot tell, by measure and overall."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

import pandas as pd

from mechrefusal import tables
from mechrefusal.geometry import Directions
from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.drift import Turn, turn, verdict
from mechrefusal.models import Checkpoint
from mechrefusal.statistics.choosing import PUBLISHED, Admissible
from mechrefusal.statistics.depth import Profile, Verdict, depth_difference, depth_needed, depth_verdict, same_depth
from mechrefusal.study.across import Pairs, layer_places
from mechrefusal.study.depths import scaled
from mechrefusal.study.move_verdicts import LOST, MoveVerdict, by_transfer, cannot_tell, for_turn
from mechrefusal.study.table_rows import best_place, carrier_place

DECIDING = ("carrier_layer", "transfer")
"""Measures that the row `overall` goes by: where the carrier is, and whether it still is one. The others are shown
beside: a direction can turn by what refusal does not hang on, the carriers' cosine mixes a turn with a change of layer,
and the principal angle takes in positions with little of the direction."""

OF_ACTIVATIONS = ("carrier_cosine", "direction_cosine", "principal_angle", "transfer")
"""Measures that need the two models' activations to be comparable."""


@dataclass(frozen=True)
class Measured:
    """The measurements that relocation is judged by.

    Fields:
        directions: by checkpoint id, of the same prompts at every checkpoint.
        carriers: table `carrier` of each checkpoint (one row), by id.
        transfers: table `transfer`, with the rows of each carrier at its own checkpoint.
        n_layers: layers of each checkpoint's model, by id.
        profiles: of each checkpoint, as `depths.profile` gives them, by id; None where there is none.
    """

    directions: Mapping[str, Directions]
    carriers: Mapping[str, pd.DataFrame]
    transfers: pd.DataFrame
    n_layers: Mapping[str, int]
    profiles: Mapping[str, Profile | None]


@dataclass(frozen=True)
class _Pair:
    """Two checkpoints, and of each the row of table `carrier`, the directions, the layers and the profile."""

    a: Checkpoint
    b: Checkpoint
    carriers: tuple[pd.Series, pd.Series]
    directions: tuple[Directions, Directions]
    n_layers: tuple[int, int]
    profiles: tuple[Profile | None, Profile | None]

    @classmethod
    def of(cls, measured: Measured, a: Checkpoint, b: Checkpoint) -> "_Pair":
        layers = measured.n_layers[a.id], measured.n_layers[b.id]
        return cls(
            a,
            b,
            (measured.carriers[a.id].iloc[0], measured.carriers[b.id].iloc[0]),
            (measured.directions[a.id], measured.directions[b.id]),
            layers,
            (measured.profiles.get(a.id), scaled(measured.profiles.get(b.id), n_layers=layers[1], to=layers[0])),
        )

    @property
    def places(self) -> tuple[Place, Place] | None:
        """Where the two carriers are; None where either has none."""
        here, there = (carrier_place(row) for row in self.carriers)
        return None if here is None or there is None else (here, there)

    @property
    def without_carrier(self) -> str:
        """Which of the two has no carrier, and why."""
        checkpoint, row = next(
            (c, row) for c, row in zip((self.a, self.b), self.carriers, strict=True) if carrier_place(row) is None
        )
        return f"no carrier at {checkpoint.id}" + (f": {row['reason']}" if row["reason"] else "")


def relocation(pairs: Pairs, measured: Measured, *, admissible: Admissible = PUBLISHED) -> pd.DataFrame:
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
        pairs: what is compared; of a pair that cannot be, only the depth is, which then decides alone.
        admissible: what the carriers were chosen by.
    """
    rows: list[dict] = []
    for a, b in pairs:
        pair = _Pair.of(measured, a, b)
        verdicts = [_depth(pair, admissible)]
        if apart := pairs.why_apart(a, b):
            verdicts += [cannot_tell(name, f"not compared: {apart}") for name in OF_ACTIVATIONS]
        else:
            verdicts += [_carrier_cosine(pair), *_at_reference(pair), by_transfer(a, b, measured.transfers)]
        verdicts.append(_overall(verdicts))
        ends = {"arm_a": a.arm, "step_a": a.step, "arm_b": b.arm, "step_b": b.step}
        rows += [{**ends, **vars(each.explained())} for each in verdicts]
    return tables.frame("relocation", rows)


def _depth(pair: _Pair, admissible: Admissible) -> MoveVerdict:
    if pair.places is None:
        return cannot_tell("carrier_layer", pair.without_carrier)
    (_, here), (_, there) = pair.places
    first, second = pair.profiles
    assert first is not None
    assert second is not None  # there is no carrier without candidates
    difference = depth_difference(first, second, admissible=admissible)
    n_layers, others = pair.n_layers
    decided, reason = depth_verdict(difference, n_layers=n_layers)
    apart = f"carriers at layer {here} ({pair.a.id}) and {there} ({pair.b.id})"
    if n_layers != others:
        apart = f"{apart}, of {n_layers} and {others} layers: compared as shares, in layers of the former"
    variance = sum(difference.variance)
    of_directions = difference.variance[1] / variance if variance else 0.0
    noise = f"{of_directions:.0%} of its variance from the direction prompts"
    return MoveVerdict(
        "carrier_layer",
        decided,
        f"{apart}; over bootstraps {reason}, {noise}",
        value=difference.value,
        low=difference.low,
        high=difference.high,
        floor=same_depth(n_layers),
        n_to_decide=depth_needed(difference, n_layers=n_layers),
    )


def _carrier_cosine(pair: _Pair) -> MoveVerdict:
    if pair.places is None:
        return cannot_tell("carrier_cosine", pair.without_carrier)
    here, there = pair.places
    return _turned(
        "carrier_cosine",
        pair,
        turn(*pair.directions, places=([here], [there]), measure="cosine"),
        "at the two carriers",
    )


def _at_reference(pair: _Pair) -> list[MoveVerdict]:
    first, second = pair.directions
    if first.positions != second.positions:
        reason = "positions of the templates differ"
        return [cannot_tell(name, reason) for name in ("direction_cosine", "principal_angle")]
    if (best := best_place(pair.carriers[0])) is None:
        line: list[Place] = [(first.positions[-1], layer) for layer in range(first.values.shape[1])]
        mean = turn(first, second, places=(line, line), measure="cosine")
        return [
            _turned("direction_cosine", pair, mean, "mean over layers, as there is no reference layer"),
            cannot_tell("principal_angle", "no reference layer to take the span at"),
        ]
    span, where = layer_places(first, best[1]), f"at layer {best[1]}"
    cosine = turn(first, second, places=(span[-1:], span[-1:]), measure="cosine")
    angle = turn(first, second, places=(span, span), measure="principal_angle_mean")
    return [_turned("direction_cosine", pair, cosine, where), _turned("principal_angle", pair, angle, where)]


def _turned(measure: str, pair: _Pair, turned: Turn, where: str) -> MoveVerdict:
    decided, reason = verdict(turned)
    n = min(n for each in pair.directions for n in (each.n_harmful, each.n_harmless))
    return MoveVerdict(
        measure,
        decided,
        f"{where}: {reason}",
        value=turned.cross.value,
        low=turned.cross.low,
        high=turned.cross.high,
        floor=turned.expected,
        n_to_decide=for_turn(turned, n),
    )


def _overall(verdicts: Sequence[MoveVerdict]) -> MoveVerdict:
    deciding = [each for each in verdicts if each.measure in DECIDING]
    by_name = {each.measure: each.verdict for each in deciding}
    decided: Verdict = "cannot tell"
    contradicting = {"moved", "not moved"} <= set(by_name.values())
    if not contradicting and "moved" in by_name.values():
        decided = "moved"
        deciding = [each for each in deciding if each.verdict == "moved"]
    elif not contradicting and by_name["carrier_layer"] == "not moved":
        decided = "not moved"
    reason = "; ".join(f"{each.measure} {_IN_WORDS[each.verdict]}: {each.reason}" for each in deciding)
    if contradicting:
        reason = f"these two contradict each other: {reason}"
    beside = ", ".join(f"{each.measure} {_IN_WORDS[each.verdict]}" for each in verdicts if each.measure not in DECIDING)
    # A transfer decides alone only where it would say that the carrier moved.
    alone = [each for each in deciding if each.measure == "carrier_layer" or each.value < LOST]
    needs = [each.n_to_decide for each in alone if each.verdict == "cannot tell" and isfinite(each.n_to_decide)]
    needed = nan if contradicting else min(needs, default=nan)
    return MoveVerdict("overall", decided, f"{reason} (beside: {beside})", n_to_decide=needed)


_IN_WORDS: dict[Verdict, str] = {"moved": "moved", "not moved": "did not move", "cannot tell": "cannot tell"}
