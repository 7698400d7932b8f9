"""The transfer matrix of a run: the carrier of every checkpoint at every checkpoint."""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch import Tensor

from mechrefusal import tables
from mechrefusal.causal.reference import HARMLESS
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Direction
from mechrefusal.geometry import CarrierScores, Directions
from mechrefusal.geometry.directions import dealt
from mechrefusal.geometry.held_out import Choice, Chosen, labels
from mechrefusal.geometry.transfer import transfer
from mechrefusal.models import Checkpoint, load_hooked
from mechrefusal.processes import LOADING, Around, Job, alone
from mechrefusal.processes import run as run_jobs
from mechrefusal.prompts import Split
from mechrefusal.study import kinds
from mechrefusal.study.places import best_place
from mechrefusal.study.run import Run, fingerprint
from mechrefusal.study.selection import Asked
from mechrefusal.study.selection import asked as select

VERSION = 5
"""Counted up where the numbers would change."""

_Sources = dict[Checkpoint, tuple[Direction, Tensor]]
"""Direction of each checkpoint that has one, its `kind` carrier or best candidate, and those of two halves."""


def transfers(run: Run, checkpoints: list[Checkpoint], asked: Asked, *, at_once: int = 1) -> pd.DataFrame:
    """Table `transfer`, target by target; a target that was measured with the same sources is not run again.

    Sources are the carriers, or the best candidates where a checkpoint has no carrier (`kind`). All targets are asked
    the same validation prompts, whatever their metric calls refused. These chose the target's own direction, and no
    other: `decrease_held_out` is what it does to prompts that did not choose it. `at_once`: targets, each in a process
    of its own. A carrier that means nothing at a target of another kind is a row that says why.
    """
    known = tables.read("transfer", run.measurements())
    if run.recipe.geometry.n_transferred == 0:
        return tables.frame("transfer", [])
    sources = _sources(run, checkpoints)
    found = {checkpoint.id: both for checkpoint, both in sources.items()}
    stamp = _stamp(checkpoints, found, _validation(run, asked), run.recipe.measuring.reference)
    done = run.manifest.get("transferred", {})
    parts: dict[str, pd.DataFrame] = {}
    for target in checkpoints:
        before = known[_is_of(known, target)]
        if done.get(target.id) == stamp and len(before) == len(found):
            parts[target.id] = before
    left = {target.id: target for target in checkpoints if target.id not in parts} if found else {}
    with closing(_to_targets(run, left, sources, asked, at_once)) as ended:
        for name, (rows, seconds) in ended:
            run.took(f"transfer to {name}", seconds)
            parts[name] = tables.frame("transfer", rows)
            others = known[~_is_of(known, left[name])]
            known = pd.concat([part for part in (others, parts[name]) if len(part)], ignore_index=True)
            tables.write(known, "transfer", run.measurements())
            run.update({"transferred": {name: stamp}})
    in_order = [parts[target.id] for target in checkpoints if target.id in parts]
    table = pd.concat(in_order, ignore_index=True) if in_order else tables.frame("transfer", [])
    tables.write(table, "transfer", run.measurements())
    return table


def _to_targets(
    run: Run, targets: dict[str, Checkpoint], sources: _Sources, asked: Asked, at_once: int
) -> Generator[tuple[str, tuple[pd.DataFrame, float]]]:
    """Rows of each target and the seconds they took, as they are made."""
    if min(at_once, len(targets)) <= 1:
        for name, target in targets.items():
            yield name, _to_target(run, target, sources, asked)
    else:
        jobs = [Job(name, _to_target_apart, (run.folder, each, list(sources)), 2) for name, each in targets.items()]
        yield from run_jobs(jobs, at_once=at_once, description="transfers")


def _to_target(
    run: Run, target: Checkpoint, sources: _Sources, asked: Asked, around: Around = alone
) -> tuple[pd.DataFrame, float]:
    """Rows of table `transfer` of one target, and the seconds they took."""
    started = time.perf_counter()
    by_id = {checkpoint.id: (checkpoint, one.kind) for checkpoint, (one, _) in sources.items()}
    found = {checkpoint.id: one for checkpoint, (one, _) in sources.items()}
    apart = kinds.comparison(tables.read("checkpoints", run.measurements()))
    reasons = {checkpoint.id: why for checkpoint in sources if (why := apart(checkpoint, target))}
    elsewhere = {name: found.pop(name) for name in reasons}
    metric = RefusalMetric.from_json(tables.read("openings", run.measurements(target))["token_ids"].iloc[0])
    own = None
    if run.recipe.measuring.reference == HARMLESS:
        own = Directions.load(run.directions(target), weights=target.weights)
    with around(LOADING):
        model = load_hooked(target)
    with around("transfer"):
        description = f"{target.id}: transfer"
        validation, chosen = _validation(run, asked), {}
        if target.id in found and (mine := _chosen(run, target, found[target.id], asked, model.cfg.n_layers)):
            chosen[target.id] = mine
        halves = {checkpoint.id: both for checkpoint, (_, both) in sources.items() if checkpoint.id in found}
        rows = transfer(
            model, found, validation, metric, own=own, halves=halves, chosen=chosen, description=description
        )
    nowhere = [
        {"source": name, "position": one.position, "layer": one.layer, "reason": f"not compared: {reasons[name]}"}
        for name, one in elsewhere.items()
    ]
    wanted = [name for name in tables.columns("transfer") if not name.startswith(("arm_", "step_")) and name != "kind"]
    rows = pd.concat([rows, pd.DataFrame(nowhere)], ignore_index=True).reindex(columns=["source", *wanted])
    names = rows.pop("source")
    rows = rows.assign(
        arm_source=[by_id[name][0].arm for name in names],
        step_source=[by_id[name][0].step for name in names],
        arm_target=target.arm,
        step_target=target.step,
        kind=[by_id[name][1] for name in names],
    )
    return rows, time.perf_counter() - started


def _to_target_apart(
    folder: Path, target: Checkpoint, checkpoints: list[Checkpoint], around: Around
) -> tuple[pd.DataFrame, float]:
    """`_to_target` in a process of its own, with the directions that the run has by now."""
    run = Run.open(folder)
    return _to_target(run, target, _sources(run, checkpoints), select(run.recipe), around)


def _is_of(known: pd.DataFrame, target: Checkpoint) -> pd.Series:
    return (known["arm_target"] == target.arm) & (known["step_target"] == target.step)


def _validation(run: Run, asked: Asked) -> Split:
    return asked.validation.take(run.recipe.geometry.n_transferred)


def _sources(run: Run, checkpoints: list[Checkpoint]) -> _Sources:
    found = {checkpoint: _found(run, checkpoint) for checkpoint in checkpoints}
    return {checkpoint: both for checkpoint, both in found.items() if both is not None}


def _found(run: Run, checkpoint: Checkpoint) -> tuple[Direction, Tensor] | None:
    carrier = tables.read("carrier", run.measurements(checkpoint))
    row = carrier.iloc[0] if len(carrier) else None
    if row is None or (place := best_place(row)) is None:
        return None
    position, layer = place
    directions = Directions.load(run.directions(checkpoint), weights=checkpoint.weights)
    halves = directions.of_positions([position]).halves[:, 0, layer]
    return replace(directions.at(position, layer), kind=str(row["reference_kind"])), halves


def _chosen(run: Run, target: Checkpoint, one: Direction, asked: Asked, n_layers: int) -> Chosen | None:
    """How validation prompts chose the target's direction; None where their scores were not kept, or chose another."""
    rows = tables.read("candidate_scores", run.measurements(target))
    (folds, _), names = dealt(asked.validation), labels(asked.validation)
    ids = asked.validation.harmful.ids, asked.validation.harmless.ids
    told = [set(rows.loc[rows["measure"] == measure, "prompt_id"]) for measure in ("bypass", "kl")]
    kept = [[row for row, name in enumerate(side) if name in some] for side, some in zip(ids, told, strict=True)]
    if not all(kept):
        return None
    first, second = ([names[side][row] for row in kept[side]] for side in (0, 1))
    scores = CarrierScores.of_long(rows, *([ids[side][row] for row in kept[side]] for side in (0, 1)))
    choice = Choice(
        scores,
        ([folds[0][row] for row in kept[0]], [folds[1][row] for row in kept[1]]),
        n_layers,
        run.recipe.measuring.admissible,
    )
    whole = choice.held_out().whole
    if whole < 0 or tuple(scores.table.loc[whole, ["position", "layer"]].astype(int)) != (one.position, one.layer):
        return None
    return Chosen(choice, (first, second), names[0][: len(_validation(run, asked).harmful)])


def _stamp(
    checkpoints: list[Checkpoint], found: dict[str, tuple[Direction, Tensor]], validation: Split, reference: str
) -> str:
    """Fingerprint of everything that the numbers of a target hang on, besides its own weights and metric."""
    told = {
        "version": VERSION,
        "reference": reference,
        "weights": {checkpoint.id: checkpoint.weights for checkpoint in checkpoints},
        "places": {name: [one.position, one.layer, one.vector.sum().item()] for name, (one, _) in found.items()},
        "halves": {name: halves.sum(1).tolist() for name, (_, halves) in found.items()},
        "prompts": [validation.harmful.texts, validation.harmless.texts],
    }
    return fingerprint(told)
