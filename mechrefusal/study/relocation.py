"""Whether refusal's place moved between two checkpoints: moved, not moved or cannot tell, by measure and overall."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechrefusal.geometry import Directions
from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.drift import Turn, Verdict, depth_verdict, turn, verdict
from mechrefusal.models import Checkpoint
from mechrefusal.study import tables
from mechrefusal.study.across import layer_places, pairs

DECIDING = ("carrier_layer", "transfer", "direction_cosine")
"""Measures that the row `overall` goes by. The carriers' cosine mixes a turn with a change of layer, and the principal
angle takes in positions with little of the direction: these two are shown beside."""

LOST = 0.5
"""Ours: a carrier that lowers the refusal score by less than half of what it does at home no longer bypasses there."""

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


def relocation(
    checkpoints: Sequence[Checkpoint],
    directions: dict[str, Directions],
    carrier_rows: dict[str, pd.DataFrame],
    transfers: pd.DataFrame,
    n_layers: int,
) -> pd.DataFrame:
    """Table `relocation`: for each of `across.pairs`, a verdict by measure and one overall.

    carrier_layer: value = layers from the carrier at a to that at b, with the interval that the two bootstrap intervals
    allow; floor = the wider of the two; rule: `geometry.drift.depth_verdict`.
    carrier_cosine (at the places of the two carriers), direction_cosine (last position, a's reference layer, or the
    mean over layers where there is none) and principal_angle (mean, degrees, between the spans of all positions at that
    layer): value = between a half of the prompts at one and the other half at the other; floor = what that would be had
    nothing moved, from halves within each. So value and floor have the same noise, unlike a value of table `drift`;
    rule: `geometry.drift.verdict`.
    transfer: value = how far ablating a's carrier lowers the mean refusal score at b, as a share of what it does at a;
    floor = the same share for a random direction at b. Moved: below `LOST`, and the two intervals of the decrease
    exclude each other. Not moved: at least `HELD`, and its interval at b is clear of the random direction. Scores are
    in nats of each checkpoint's own refusal metric.
    overall: moved if any of `DECIDING` moved. Not moved if every one of them that could be taken says so and the depth
    or the transfer is among them. Otherwise cannot tell.

    Args:
        directions: by checkpoint id, of the same prompts at every checkpoint.
        carrier_rows: table `carrier` of each checkpoint (one row), by id.
        transfers: table `transfer`, with the rows of each carrier at its own checkpoint.
        n_layers: layers of the model.
    """
    rows: list[dict] = []
    for a, b in pairs(checkpoints):
        carriers = carrier_rows[a.id].iloc[0], carrier_rows[b.id].iloc[0]
        both = directions[a.id], directions[b.id]
        found = [
            _depth(a, b, *carriers, n_layers=n_layers),
            _carrier_cosine(a, b, both, *carriers),
            *_at_reference(both, carriers[0]),
            _transfer(a, b, transfers),
        ]
        found.append(_overall(found))
        pair = {"arm_a": a.arm, "step_a": a.step, "arm_b": b.arm, "step_b": b.step}
        rows += [{**pair, **vars(each)} for each in found]
    return tables.frame("relocation", rows)


def _depth(a: Checkpoint, b: Checkpoint, first: pd.Series, second: pd.Series, *, n_layers: int) -> _Found:
    if missing := _no_carrier(a, first) or _no_carrier(b, second):
        return _Found("carrier_layer", "cannot tell", missing)
    ends = [(float(row["layer_low"]), float(row["layer_high"])) for row in (first, second)]
    decided, reason = depth_verdict(*ends, n_layers=n_layers)
    return _Found(
        "carrier_layer",
        decided,
        reason,
        value=float(second["layer"] - first["layer"]),
        low=ends[1][0] - ends[0][1],
        high=ends[1][1] - ends[0][0],
        floor=max(high - low for low, high in ends),
    )


def _carrier_cosine(
    a: Checkpoint, b: Checkpoint, both: tuple[Directions, Directions], first: pd.Series, second: pd.Series
) -> _Found:
    if missing := _no_carrier(a, first) or _no_carrier(b, second):
        return _Found("carrier_cosine", "cannot tell", missing)
    places: tuple[list[Place], list[Place]] = (
        [(int(first["position"]), int(first["layer"]))],
        [(int(second["position"]), int(second["layer"]))],
    )
    return _turned("carrier_cosine", turn(*both, places=places, measure="cosine"), "at the two carriers")


def _at_reference(both: tuple[Directions, Directions], first: pd.Series) -> list[_Found]:
    if both[0].positions != both[1].positions:
        reason = "positions of the templates differ"
        return [_Found(name, "cannot tell", reason) for name in ("direction_cosine", "principal_angle")]
    if pd.isna(first["reference_layer"]):
        last, n_layers = both[0].positions[-1], both[0].values.shape[1]
        line: list[Place] = [(last, layer) for layer in range(n_layers)]
        found = turn(*both, places=(line, line), measure="cosine")
        return [
            _turned("direction_cosine", found, "mean over layers, as there is no reference layer"),
            _Found("principal_angle", "cannot tell", "no reference layer to take the span at"),
        ]
    layer = int(first["reference_layer"])
    span = layer_places(both[0], layer)
    return [
        _turned("direction_cosine", turn(*both, places=(span[-1:], span[-1:]), measure="cosine"), f"at layer {layer}"),
        _turned(
            "principal_angle", turn(*both, places=(span, span), measure="principal_angle_mean"), f"at layer {layer}"
        ),
    ]


def _turned(measure: str, found: Turn, where: str) -> _Found:
    decided, reason = verdict(found)
    return _Found(
        measure,
        decided,
        f"{where}: {reason}",
        value=found.cross.value,
        low=found.cross.low,
        high=found.cross.high,
        floor=found.expected,
    )


def _transfer(a: Checkpoint, b: Checkpoint, transfers: pd.DataFrame) -> _Found:
    effects = []
    for target in (a, b):
        row = _transferred(transfers, a, target)
        if row is None:
            return _Found("transfer", "cannot tell", f"the carrier of {a.id} was not applied at {target.id}")
        if row["kind"] != "carrier":
            return _Found("transfer", "cannot tell", f"no carrier at {a.id} to transfer")
        if pd.isna([row[name] for name in ("bypass", "bypass_low", "bypass_high", "baseline_harmful")]).any():
            why = f" ({row['reason']})" if row["reason"] else ""
            return _Found("transfer", "cannot tell", f"no effect with its interval of {a.id} at {target.id}{why}")
        effects.append(_Effect.of(row))
    home, away = effects
    numbers = f"ablating it lowers the refusal score by {away} nats at {b.id}, by {home} at {a.id}"
    if not home.clear:
        return _Found("transfer", "cannot tell", f"{numbers}: at home not clear of a random direction")
    share = away.value / home.value
    decided: Verdict = "cannot tell"
    if share < LOST and away.high < home.low:
        decided = "moved"
    elif share >= HELD and away.clear:
        decided = "not moved"
    # The least and the most that the two intervals allow; a negative decrease is largest over the smallest.
    ends = [end / other for end in (away.low, away.high) for other in (home.low, home.high)]
    return _Found(
        "transfer", decided, numbers, value=share, low=min(ends), high=max(ends), floor=away.random / home.value
    )


@dataclass(frozen=True)
class _Effect:
    """How far ablation lowers the mean refusal score, nats; `random`: that of a random direction."""

    value: float
    low: float
    high: float
    random: float

    @classmethod
    def of(cls, row: pd.Series) -> "_Effect":
        names = ("bypass", "bypass_high", "bypass_low", "random_bypass")
        return cls(*(float(row["baseline_harmful"] - row[name]) for name in names))

    @property
    def clear(self) -> bool:
        """Whether the whole interval is above zero and above a random direction's effect (where that is known)."""
        return bool(self.low > np.nanmax([0.0, self.random]))

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def _transferred(transfers: pd.DataFrame, source: Checkpoint, target: Checkpoint) -> pd.Series | None:
    same = pd.Series(True, index=transfers.index)
    for side, checkpoint in (("source", source), ("target", target)):
        same &= (transfers[f"arm_{side}"] == checkpoint.arm) & (transfers[f"step_{side}"] == checkpoint.step)
    return transfers[same].iloc[0] if same.any() else None


def _overall(found: Sequence[_Found]) -> _Found:
    deciding = {each.measure: each for each in found if each.measure in DECIDING}
    moved = [each for each in deciding.values() if each.verdict == "moved"]
    if moved:
        return _Found("overall", "moved", "; ".join(f"{each.measure} moved: {each.reason}" for each in moved))
    taken = [each for each in deciding.values() if not np.isnan(each.value)]
    still = [each.measure for each in taken if each.verdict == "not moved"]
    if len(still) == len(taken) and {"carrier_layer", "transfer"} & set(still):
        return _Found("overall", "not moved", f"{', '.join(still)} did not move")
    unclear = [each for each in deciding.values() if each.verdict == "cannot tell"]
    return _Found("overall", "cannot tell", "; ".join(f"{each.measure}: {each.reason}" for each in unclear))


def _no_carrier(checkpoint: Checkpoint, row: pd.Series) -> str:
    if not pd.isna(row["layer"]):
        return ""
    return f"no carrier at {checkpoint.id}" + (f": {row['reason']}" if row["reason"] else "")
