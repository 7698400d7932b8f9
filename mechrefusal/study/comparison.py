"""Stages over all checkpoints of a run: the tables that set them side by side."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd

from mechrefusal import tables
from mechrefusal.attacks import read_cases
from mechrefusal.geometry import Directions
from mechrefusal.models import Checkpoint
from mechrefusal.study import across, kinds, planning, relocation
from mechrefusal.study.caching import Inputs
from mechrefusal.study.crossing import crossing
from mechrefusal.study.depths import profiles
from mechrefusal.study.method_differences import method_differences
from mechrefusal.study.methods import OF_EACH, Methods, methods
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts
from mechrefusal.study.stages import Results, Rows
from mechrefusal.study.transfers import transfers


class Comparison:
    """What was measured of all checkpoints. Stages are functions of it; `inputs`: of the stage that is being taken."""

    def __init__(self, run: Run, checkpoints: Sequence[Checkpoint], prompts: StudyPrompts) -> None:
        self.run, self.checkpoints, self.prompts = run, list(checkpoints), prompts
        self.inputs: Inputs = {}

    def path(self, name: str) -> Path:
        """File of a table across checkpoints."""
        return self.run.measurements() / f"{name}.parquet"

    def table(self, name: str, rows: Rows) -> pd.DataFrame:
        """Rows as a table across checkpoints."""
        return tables.frame(name, rows)

    def each(self, name: str) -> dict[str, pd.DataFrame]:
        """Table `name` of each checkpoint, by its id."""
        return {c.id: tables.read(name, self.run.measurements(c)) for c in self.checkpoints}

    @cached_property
    def locked(self) -> dict[str, Directions]:
        """Directions of the same prompts at every checkpoint, by its id."""
        paths = {c: self.run.locked_directions(c) for c in self.checkpoints}
        return {c.id: Directions.load(path, weights=c.weights) for c, path in paths.items()}

    @cached_property
    def pairs(self) -> across.Pairs:
        """Which checkpoints are compared, and why activations of two cannot be."""
        why_apart = kinds.comparison(tables.read("checkpoints", self.run.measurements()))
        return across.Pairs(self.checkpoints, given=tuple(self.run.recipe.checkpoints), why_apart=why_apart)

    @property
    def n_layers(self) -> dict[str, int]:
        """Layers of each checkpoint's model, by its id."""
        return {name: len(directions.values[0]) for name, directions in self.locked.items()}


def drift(subject: Comparison) -> Results:
    """How far directions turn, table `drift`."""
    yield "drift", across.drift(subject.pairs, subject.locked, subject.each("carriers"))


def effective_rank(subject: Comparison) -> Results:
    """How many dimensions directions take, table `effective_rank`."""
    yield "effective_rank", across.effective_ranks(subject.checkpoints, subject.locked, subject.each("carriers"))


def stacked_tables(subject: Comparison) -> Results:
    """Each checkpoint's tables, one below the other."""
    for name in tables.PER_CHECKPOINT:
        if parts := [part for part in subject.each(name).values() if len(part)]:
            yield name, pd.concat(parts, ignore_index=True)


def transfer(subject: Comparison) -> Results:
    """Each checkpoint's direction at every checkpoint, table `transfer`."""
    if subject.run.recipe.geometry.n_transferred:
        version = subject.inputs["version"]
        yield "transfer", transfers(subject.run, subject.checkpoints, subject.prompts, version=version)


def relocate(subject: Comparison) -> Results:
    """Whether refusal's place moved, table `relocation`."""
    run, admissible = subject.run, subject.run.recipe.measuring.admissible
    measured = relocation.Measured(
        subject.locked,
        subject.each("carrier"),
        tables.read("transfer", run.measurements()),
        subject.n_layers,
        profiles(run, subject.checkpoints, subject.prompts.validation),
    )
    yield "relocation", relocation.relocation(subject.pairs, measured, admissible=admissible)


def power(subject: Comparison) -> Results:
    """What this run could have told, table `power`."""
    yield "power", planning.of_run(subject.run, subject.checkpoints, subject.prompts, planning.EffectSizes())


def cross_patching(subject: Comparison) -> Results:
    """Which site of one checkpoint makes another refuse, table `cross_patching`."""
    if (run := subject.run).recipe.causal.n_crossed:
        version = subject.inputs["version"]
        yield "cross_patching", crossing(run, subject.pairs, subject.prompts, subject.n_layers, version=version)


def compare_methods(subject: Comparison) -> Results:
    """What each method gave and where it puts refusal, tables `methods` and `method_differences`."""
    run, attack = subject.run, subject.run.recipe.attack
    attacks = attack.methods if attack.n_cases else ()
    each = {name: subject.each(name) for name in OF_EACH}
    ranks, transferred = (tables.read(name, run.measurements()) for name in ("effective_rank", "transfer"))
    measured = Methods(
        subject.checkpoints, run.recipe.planned_arms, attacks, each, ranks, transferred, subject.n_layers
    )
    yield "methods", methods(measured)
    paths = [run.folder / "cases" / f"{name}-base.parquet" for name in attacks]
    behaviours = {case.id: case.behaviour for path in paths for case in read_cases(path, source=None)}
    scores = profiles(run, subject.checkpoints, subject.prompts.validation)
    admissible = run.recipe.measuring.admissible
    yield "method_differences", method_differences(measured, subject.pairs, scores, behaviours, admissible)
