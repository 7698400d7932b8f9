"""The transfer matrix of a run: the carrier of every checkpoint at every checkpoint."""

import hashlib
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pandas as pd
from torch import Tensor

from mechrefusal import tables
from mechrefusal.causal.reference import HARMLESS
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Direction
from mechrefusal.geometry import CarrierScores, Directions
from mechrefusal.geometry.contrast import dealt, labels
from mechrefusal.geometry.held_out import Choice, ChosenCandidate
from mechrefusal.geometry.transfers import transfer
from mechrefusal.models import Checkpoint, load_hooked
from mechrefusal.processes import LOADING, Around, Job, alone
from mechrefusal.processes import run as run_jobs
from mechrefusal.prompts import Split
from mechrefusal.study import kinds
from mechrefusal.study.caching import Inputs, Made, file_hash
from mechrefusal.study.places import best_place
from mechrefusal.study.run import Run
from mechrefusal.study.selection import Asked
from mechrefusal.study.selection import asked as select

STAGE = "transfer"
"""Its units are a target each."""

_Sources = dict[Checkpoint, tuple[Direction, Tensor]]
"""Direction of each checkpoint that has one, its `kind` carrier or best candidate, and those of two halves."""


def transfers(
    run: Run, checkpoints: list[Checkpoint], asked: Asked, *, at_once: int = 1, version: int = 1
) -> pd.DataFrame:
    """Table `transfer`, target by target, each of which is kept by itself. `version`: of the stage.

    Sources are the carriers, or the best candidates where a checkpoint has no carrier (`kind`). All targets are asked
    the same validation prompts, whatever their metric calls refused. These chose the target's own direction, and no
    other: `decrease_held_out` is what it does to prompts that did not choose it. `at_once`: targets, each in a process
    of its own. A carrier that means nothing at a target of another kind is a row that says why.
    """
    sources = _sources(run, checkpoints)
    if not sources:
        return tables.frame("transfer", [])
    given = {target.id: _inputs(run, target, sources, asked, version) for target in checkpoints}
    left = [target for target in checkpoints if run.kept(STAGE, target.id, given[target.id]) is None]
    if min(at_once, len(left)) > 1:
        jobs = [
            Job(target.id, _to_target_apart, (run.folder, target, list(sources), given[target.id]), 2)
            for target in left
        ]
        with closing(run_jobs(jobs, at_once=at_once, description="transfers")) as ended:
            for name, _ in ended:
                _took(run, name)
    parts = []
    for target in checkpoints:
        make = partial(_to_target, run, target, sources, asked)
        parts.append(run.cached(STAGE, target.id, given[target.id], make).table("transfer"))
        if target in left and min(at_once, len(left)) <= 1:
            _took(run, target.id)
    return pd.concat(parts, ignore_index=True)


def _took(run: Run, name: str) -> None:
    if (found := run.finished(STAGE, name)) is not None:
        run.took(f"transfer to {name}", found.seconds)


def _to_target(run: Run, target: Checkpoint, sources: _Sources, asked: Asked, around: Around = alone) -> Made:
    """Rows of table `transfer` of one target."""
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
            model,
            found,
            validation,
            metric,
            target_directions=own,
            halves=halves,
            chosen=chosen,
            description=description,
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
    return Made({run.measurements(target) / "transfer.parquet": tables.frame("transfer", rows)})


def _to_target_apart(
    folder: Path, target: Checkpoint, checkpoints: list[Checkpoint], given: Inputs, around: Around
) -> None:
    """`_to_target` in a process of its own, with the directions that the run has by now."""
    run = Run.open(folder)
    make = partial(_to_target, run, target, _sources(run, checkpoints), select(run.recipe), around)
    run.cached(STAGE, target.id, given, make)


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


def _chosen(run: Run, target: Checkpoint, one: Direction, asked: Asked, n_layers: int) -> ChosenCandidate | None:
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
    return ChosenCandidate(choice, (first, second), names[0][: len(_validation(run, asked).harmful)])


def _inputs(run: Run, target: Checkpoint, sources: _Sources, asked: Asked, version: int) -> Inputs:
    """What the rows of a target hang on: its weights and what was measured there, the sources, prompts and settings."""
    validation, measuring = _validation(run, asked), run.recipe.measuring
    scored = [run.measurements(target) / f"{name}.parquet" for name in ("openings", "candidate_scores")]
    return {
        "version": version,
        "settings": {"reference": measuring.reference, **asdict(measuring.admissible)},
        "target": [target.weights, *(file_hash(path) for path in scored if path.is_file())],
        "sources": {c.id: [c.weights, one.kind, one.position, one.layer] for c, (one, _) in sources.items()},
        "directions": {c.id: _hash_of(run, c) for c in {target: None, **sources}},
        "kinds": tables.read("checkpoints", run.measurements()).astype(str).to_numpy().tolist(),
        "prompts": [validation.harmful.texts, validation.harmless.texts],
    }


def _hash_of(run: Run, checkpoint: Checkpoint) -> str:
    """Hash of the numbers that a checkpoint's directions hold; their file's bytes are in no fixed order."""
    found, told = Directions.load(run.directions(checkpoint), weights=checkpoint.weights), hashlib.sha256()
    for tensor in (found.values, found.sums, found.counts, found.instruction):
        told.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
    return told.hexdigest()[:16]
