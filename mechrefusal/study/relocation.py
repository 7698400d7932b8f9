"""Whether refusal's place moved between two checkpoints: moved, not moved or cannot tell, by measure and overall."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from mechrefusal import tables
from mechrefusal.geometry import Directions
from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.drift import Turn, turn, verdict
from mechrefusal.models import Checkpoint
from mechrefusal.statistics.choosing import PUBLISHED, Admissible
from mechrefusal.statistics.depth import (
    Profile,
    Verdict,
    depth_difference,
    depth_needed,
    depth_verdict,
    same_depth,
)
from mechrefusal.study import deciding
from mechrefusal.study.across import WhyApart, comparable, layer_places, pairs
from mechrefusal.study.carried import LOST, by_transfer
from mechrefusal.study.deciding import NAN, Found
from mechrefusal.study.depths import scaled
from mechrefusal.study.places import best_place, carrier_place

DECIDING = ("carrier_layer", "transfer")
"""Measures that the row `overall` goes by: where the carrier is, and whether it still is one. The others are shown
beside: a direction can turn by what refusal does not hang on, the carriers' cosine mixes a turn with a change of layer,
and the principal angle takes in positions with little of the direction."""

OF_ACTIVATIONS = ("carrier_cosine", "direction_cosine", "principal_angle", "transfer")
"""Measures that need the two models' activations to be comparable."""


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
        found = [_depth(a, b, carriers, (first, second), admissible, n_layers=layers)]
        if apart := why_apart(a, b):
            found += [Found(name, "cannot tell", f"not compared: {apart}") for name in OF_ACTIVATIONS]
        else:
            found += [
                _carrier_cosine(a, b, both, *carriers),
                *_at_reference(both, carriers[0]),
                by_transfer(a, b, transfers),
            ]
        found.append(_overall(found))
        found = [each.told() for each in found]
        pair = {"arm_a": a.arm, "step_a": a.step, "arm_b": b.arm, "step_b": b.step}
        rows += [{**pair, **vars(each)} for each in found]
    return tables.frame("relocation", rows)


def _depth(
    a: Checkpoint,
    b: Checkpoint,
    carriers: tuple[pd.Series, pd.Series],
    profiles: tuple[Profile | None, Profile | None],
    admissible: Admissible,
    *,
    n_layers: tuple[int, int],
) -> Found:
    first, second = carriers
    here, there = carrier_place(first), carrier_place(second)
    if here is None or there is None:
        return Found("carrier_layer", "cannot tell", _no_carrier(a, first) or _no_carrier(b, second))
    of_a, of_b = profiles
    assert of_a is not None
    assert of_b is not None  # there is no carrier without candidates
    found = depth_difference(of_a, of_b, admissible=admissible)
    decided, reason = depth_verdict(found, n_layers=n_layers[0])
    apart = f"carriers at layer {here[1]} ({a.id}) and {there[1]} ({b.id})"
    if n_layers[0] != n_layers[1]:
        apart = f"{apart}, of {n_layers[0]} and {n_layers[1]} layers: compared as shares, in layers of the former"
    of_directions = found.variance[1] / sum(found.variance) if sum(found.variance) else 0.0
    noise = f"{of_directions:.0%} of its variance from the direction prompts"
    return Found(
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
) -> Found:
    here, there = carrier_place(first), carrier_place(second)
    if here is None or there is None:
        return Found("carrier_cosine", "cannot tell", _no_carrier(a, first) or _no_carrier(b, second))
    found = turn(*both, places=([here], [there]), measure="cosine")
    return _turned("carrier_cosine", found, "at the two carriers", _n_prompts(both))


def _at_reference(both: tuple[Directions, Directions], first: pd.Series) -> list[Found]:
    if both[0].positions != both[1].positions:
        reason = "positions of the templates differ"
        return [Found(name, "cannot tell", reason) for name in ("direction_cosine", "principal_angle")]
    if (best := best_place(first)) is None:
        last, n_layers = both[0].positions[-1], both[0].values.shape[1]
        line: list[Place] = [(last, layer) for layer in range(n_layers)]
        found = turn(*both, places=(line, line), measure="cosine")
        return [
            _turned("direction_cosine", found, "mean over layers, as there is no reference layer", _n_prompts(both)),
            Found("principal_angle", "cannot tell", "no reference layer to take the span at"),
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


def _turned(measure: str, found: Turn, where: str, n: int) -> Found:
    decided, reason = verdict(found)
    return Found(
        measure,
        decided,
        f"{where}: {reason}",
        value=found.cross.value,
        low=found.cross.low,
        high=found.cross.high,
        floor=found.expected,
        n_to_decide=deciding.for_turn(found, n),
    )


def _overall(found: Sequence[Found]) -> Found:
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
    return Found("overall", decided, f"{reason} (beside: {beside})", n_to_decide=needed)


_SAID: dict[Verdict, str] = {"moved": "moved", "not moved": "did not move", "cannot tell": "cannot tell"}


def _no_carrier(checkpoint: Checkpoint, row: pd.Series) -> str:
    if carrier_place(row) is not None:
        return ""
    return f"no carrier at {checkpoint.id}" + (f": {row['reason']}" if row["reason"] else "")
