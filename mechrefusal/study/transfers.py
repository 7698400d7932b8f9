"""The transfer matrix of a run: the carrier of every checkpoint at every checkpoint."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

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
from mechrefusal.prompts import Split
from mechrefusal.study import kinds
from mechrefusal.study.caching import Inputs, Made, file_hash
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts
from mechrefusal.study.table_rows import best_place
from mechrefusal.workers import LOADING, Around, alone

STAGE = "transfer"
"""Its units are a target each."""


@dataclass(frozen=True)
class _Source:
    """A checkpoint's direction, of `kind` carrier or best candidate, and those of two halves of its prompts."""

    checkpoint: Checkpoint
    direction: Direction
    halves: Tensor

    @classmethod
    def of(cls, run: Run, checkpoint: Checkpoint) -> "_Source | None":
        """As it was measured; None where no candidate was scored."""
        carrier = tables.read("carrier", run.measurements(checkpoint))
        if carrier.empty or (place := best_place(carrier.iloc[0])) is None:
            return None
        position, layer = place
        directions = Directions.load(run.directions(checkpoint), weights=checkpoint.weights)
        direction = replace(directions.at(position, layer), kind=str(carrier["reference_kind"].iloc[0]))
        return cls(checkpoint, direction, directions.of_positions([position]).halves[:, 0, layer])


def transfers(run: Run, checkpoints: list[Checkpoint], prompts: StudyPrompts, *, version: int = 1) -> pd.DataFrame:
    """Table `transfer`, target by target, each of which is kept by itself. `version`: of the stage.

    Sources are the carriers, or the best candidates where a checkpoint has no carrier (`kind`). All targets are asked
    the same validation prompts, whatever their metric calls refused. These chose the target's own direction, and no
    other: `decrease_held_out` is what it does to prompts that did not choose it. A carrier that means nothing at a
    target of another kind is a row that says why.
    """
    inputs = inputs_of_targets(run, checkpoints, prompts, version)
    if not inputs:
        return tables.frame("transfer", [])
    for target, of_target in inputs.items():
        take_target(run, target, checkpoints, prompts, of_target)
    return pd.concat([tables.read("transfer", run.measurements(each)) for each in checkpoints], ignore_index=True)


def inputs_of_targets(
    run: Run, checkpoints: Sequence[Checkpoint], prompts: StudyPrompts, version: int
) -> dict[str, Inputs]:
    """What the rows of each target hang on, by its id; nothing where no checkpoint has a direction to carry."""
    sources = _sources(run, checkpoints)
    return {target.id: _inputs(run, target, sources, prompts, version) for target in checkpoints if sources}


def take_target(
    run: Run,
    target: str,
    checkpoints: list[Checkpoint],
    prompts: StudyPrompts,
    inputs: Inputs,
    around: Around = alone,
) -> None:
    """Make the rows of a target, by its id, unless they are there."""
    if run.kept(STAGE, target, inputs) is not None:
        return
    [checkpoint] = [each for each in checkpoints if each.id == target]
    make = partial(_to_target, run, checkpoint, _sources(run, checkpoints), prompts, around)
    run.took(f"transfer to {target}", run.cached(STAGE, target, inputs, make).seconds)


def _sources(run: Run, checkpoints: Sequence[Checkpoint]) -> list[_Source]:
    return [source for checkpoint in checkpoints if (source := _Source.of(run, checkpoint)) is not None]


def _to_target(run: Run, target: Checkpoint, sources: list[_Source], prompts: StudyPrompts, around: Around) -> Made:
    """Rows of table `transfer` of one target."""
    why_apart = kinds.comparison(tables.read("checkpoints", run.measurements()))
    reasons = {source.checkpoint.id: why_apart(source.checkpoint, target) for source in sources}
    near = {source.checkpoint.id: source for source in sources if not reasons[source.checkpoint.id]}
    metric = RefusalMetric.from_json(tables.read("openings", run.measurements(target))["token_ids"].iloc[0])
    target_directions = None
    if run.recipe.measuring.reference == HARMLESS:
        target_directions = Directions.load(run.directions(target), weights=target.weights)
    with around(LOADING):
        model = load_hooked(target)
    with around("transfer"):
        mine = near.get(target.id)
        chosen = None if mine is None else _chosen(run, target, mine.direction, prompts, model.cfg.n_layers)
        rows = transfer(
            model,
            {name: source.direction for name, source in near.items()},
            _validation(run, prompts),
            metric,
            target_directions=target_directions,
            halves={name: source.halves for name, source in near.items()},
            chosen={} if chosen is None else {target.id: chosen},
            description=f"{target.id}: transfer",
        )
    nowhere = [
        {
            "source": source.checkpoint.id,
            "position": source.direction.position,
            "layer": source.direction.layer,
            "reason": f"not compared: {reasons[source.checkpoint.id]}",
        }
        for source in sources
        if reasons[source.checkpoint.id]
    ]
    measured = [name for name in tables.columns("transfer") if not name.startswith(("arm_", "step_", "kind"))]
    rows = pd.concat([rows, pd.DataFrame(nowhere)], ignore_index=True).reindex(columns=["source", *measured])
    by_id = {source.checkpoint.id: source for source in sources}
    of_rows = [by_id[name] for name in rows.pop("source")]
    rows = rows.assign(
        arm_source=[source.checkpoint.arm for source in of_rows],
        step_source=[source.checkpoint.step for source in of_rows],
        arm_target=target.arm,
        step_target=target.step,
        kind=[source.direction.kind for source in of_rows],
    )
    return Made({run.measurements(target) / "transfer.parquet": tables.frame("transfer", rows)})


def _validation(run: Run, prompts: StudyPrompts) -> Split:
    return prompts.validation.take(run.recipe.geometry.n_transferred)


def _chosen(
    run: Run, target: Checkpoint, direction: Direction, prompts: StudyPrompts, n_layers: int
) -> ChosenCandidate | None:
    """How validation prompts chose the target's direction; None where their scores were not kept, or chose another."""
    rows, split = tables.read("candidate_scores", run.measurements(target)), prompts.validation
    ids, (folds, _), names = (split.harmful.ids, split.harmless.ids), dealt(split), labels(split)
    scored = [set(rows.loc[rows["measure"] == measure, "prompt_id"]) for measure in ("bypass", "kl")]
    scored_rows = [[row for row, name in enumerate(ids[side]) if name in scored[side]] for side in (0, 1)]
    if not all(scored_rows):
        return None

    def of_kept(values: Sequence[Sequence[Any]]) -> tuple[list[Any], list[Any]]:
        first, second = ([values[side][row] for row in scored_rows[side]] for side in (0, 1))
        return first, second

    scores = CarrierScores.of_long(rows, *of_kept(ids))
    choice = Choice(scores, of_kept(folds), n_layers, run.recipe.measuring.admissible)
    whole = choice.held_out().whole
    place = direction.position, direction.layer
    if whole < 0 or tuple(scores.table.loc[whole, ["position", "layer"]].astype(int)) != place:
        return None
    return ChosenCandidate(choice, of_kept(names), names[0][: len(_validation(run, prompts).harmful)])


def _inputs(run: Run, target: Checkpoint, sources: list[_Source], prompts: StudyPrompts, version: int) -> Inputs:
    """What the rows of a target hang on: its weights and what was measured there, the sources, prompts and settings."""
    validation, measuring = _validation(run, prompts), run.recipe.measuring
    scored = [run.measurements(target) / f"{name}.parquet" for name in ("openings", "candidate_scores")]
    owners = {c.id: c for c in (target, *(source.checkpoint for source in sources))}
    return {
        "version": version,
        "settings": {"reference": measuring.reference, **asdict(measuring.admissible)},
        "target": [target.computed, *(file_hash(path) for path in scored if path.is_file())],
        "sources": {
            each.checkpoint.id: [
                each.checkpoint.weights, each.direction.kind, each.direction.position, each.direction.layer,
            ]
            for each in sources
        },
        "directions": {name: _hash_of(run, checkpoint) for name, checkpoint in owners.items()},
        "kinds": tables.read("checkpoints", run.measurements()).astype(str).to_numpy().tolist(),
        "prompts": [validation.harmful.texts, validation.harmless.texts],
    }  # fmt: skip


def _hash_of(run: Run, checkpoint: Checkpoint) -> str:
    """Hash of the numbers that a checkpoint's directions hold; their file's bytes are in no fixed order."""
    directions, sha = Directions.load(run.directions(checkpoint), weights=checkpoint.weights), hashlib.sha256()
    for tensor in (directions.values, directions.sums, directions.counts, directions.instruction):
        sha.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
