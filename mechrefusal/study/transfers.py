"""The transfer matrix of a run: the carrier of every checkpoint at every checkpoint."""

import pandas as pd

from mechrefusal.causal.reference import HARMLESS
from mechrefusal.geometry import Directions
from mechrefusal.geometry.transfer import Found, transfer
from mechrefusal.models import Checkpoint, RefusalMetric, load_hooked
from mechrefusal.prompts import Split
from mechrefusal.study import tables
from mechrefusal.study.run import Run, fingerprint
from mechrefusal.study.selection import Asked

VERSION = 4
"""Counted up where the numbers would change."""


def transfers(run: Run, checkpoints: list[Checkpoint], asked: Asked) -> pd.DataFrame:
    """Table `transfer`, target by target; a target that was measured with the same sources is not run again.

    Sources are the carriers, or the best candidates where a checkpoint has no carrier (`kind`). All targets are asked
    the same validation prompts, whatever their metric calls refused.
    """
    known = tables.read("transfer", run.measurements())
    if run.recipe.geometry.n_transferred == 0:
        return tables.frame("transfer", [])
    sources = {checkpoint: _found(run, checkpoint) for checkpoint in checkpoints}
    found = {checkpoint.id: one for checkpoint, (_, one) in sources.items() if one is not None}
    kinds = {checkpoint.id: kind for checkpoint, (kind, one) in sources.items() if one is not None}
    validation = asked.validation.take(run.recipe.geometry.n_transferred)
    stamp = _stamp(checkpoints, found, validation, run.recipe.measuring.reference)
    done = run.manifest.get("transferred", {})
    arms = {checkpoint.id: (checkpoint.arm, checkpoint.step) for checkpoint in checkpoints}
    parts: list[pd.DataFrame] = []
    for target in checkpoints:
        before = known[(known["arm_target"] == target.arm) & (known["step_target"] == target.step)]
        if done.get(target.id) == stamp and len(before) == len(found):
            parts.append(before)
            continue
        if not found:
            continue
        metric = RefusalMetric.from_json(tables.read("openings", run.measurements(target))["token_ids"].iloc[0])
        with run.timed(f"transfer to {target.id}"):
            own = None
            if run.recipe.measuring.reference == HARMLESS:
                own = Directions.load(run.directions(target), weights=target.weights)
            rows = transfer(
                load_hooked(target), found, validation, metric, own=own, description=f"{target.id}: transfer"
            )
        names = rows.pop("source")
        rows = rows.assign(
            arm_source=[arms[name][0] for name in names],
            step_source=[arms[name][1] for name in names],
            arm_target=target.arm,
            step_target=target.step,
            kind=[kinds[name] for name in names],
        )
        parts.append(tables.frame("transfer", rows))
        others = known[~((known["arm_target"] == target.arm) & (known["step_target"] == target.step))]
        known = pd.concat([part for part in (others, parts[-1]) if len(part)], ignore_index=True)
        tables.write(known, "transfer", run.measurements())
        run.update({"transferred": {target.id: stamp}})
    table = pd.concat(parts, ignore_index=True) if parts else tables.frame("transfer", [])
    tables.write(table, "transfer", run.measurements())
    return table


def _found(run: Run, checkpoint: Checkpoint) -> tuple[str, Found | None]:
    carrier = tables.read("carrier", run.measurements(checkpoint))
    row = carrier.iloc[0] if len(carrier) else None
    if row is None or pd.isna(row["reference_layer"]):
        return "none", None
    position, layer = int(row["reference_position"]), int(row["reference_layer"])
    directions = Directions.load(run.directions(checkpoint), weights=checkpoint.weights)
    direction = directions.at({"position": position, "layer": layer})
    halves = directions.of_positions([position]).halves[:, 0, layer]
    return str(row["reference_kind"]), Found(direction, position, layer, halves)


def _stamp(checkpoints: list[Checkpoint], found: dict[str, Found], validation: Split, reference: str) -> str:
    """Fingerprint of everything that the numbers of a target hang on, besides its own weights and metric."""
    told = {
        "version": VERSION,
        "reference": reference,
        "weights": {checkpoint.id: checkpoint.weights for checkpoint in checkpoints},
        "places": {name: [one.position, one.layer, one.direction.sum().item()] for name, one in found.items()},
        "halves": {name: one.halves.sum(1).tolist() for name, one in found.items() if one.halves is not None},
        "prompts": [validation.harmful.texts, validation.harmless.texts],
    }
    return fingerprint(told)
