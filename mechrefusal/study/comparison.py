"""All checkpoints of a run under comparison: what was measured at each, and the tables that set them side by side."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd

from mechrefusal import tables
from mechrefusal.geometry import Directions
from mechrefusal.models import Checkpoint
from mechrefusal.study import across, kinds
from mechrefusal.study.across import WhyApart
from mechrefusal.study.caching import Content, Made
from mechrefusal.study.crossing import crossing
from mechrefusal.study.depths import profiles
from mechrefusal.study.planning import Wanted, of_run
from mechrefusal.study.relocation import relocation
from mechrefusal.study.run import Run
from mechrefusal.study.selection import Asked
from mechrefusal.study.stages import Stage
from mechrefusal.study.transfers import transfers


class Comparison:
    """What was measured of all checkpoints. Each method is a stage and gives tables; `at_once`: processes for those
    that open models."""

    def __init__(self, run: Run, checkpoints: Sequence[Checkpoint], asked: Asked, *, at_once: int = 1) -> None:
        self.run, self.checkpoints, self.asked, self.at_once = run, list(checkpoints), asked, at_once
        self.given = run.recipe.checkpoints
        self._made: dict[Path, Content] = {}
        self._version = 1

    def make(self, stage: Stage) -> Made:
        """Take a stage."""
        self._made, self._version = {self._path(name): None for name in stage.gives}, stage.version
        stage.take(self)
        return Made(self._made)

    def add(self, name: str, table: pd.DataFrame) -> None:
        """Keep a table across checkpoints."""
        self._made[self._path(name)] = table

    def _path(self, name: str) -> Path:
        return self.run.measurements() / f"{name}.parquet"

    def each(self, name: str) -> dict[str, pd.DataFrame]:
        """Table `name` of each checkpoint, by its id."""
        return {c.id: tables.read(name, self.run.measurements(c)) for c in self.checkpoints}

    @cached_property
    def locked(self) -> dict[str, Directions]:
        """Directions of the same prompts at every checkpoint, by its id."""
        return across.read_directions(self.checkpoints, self.run.locked_directions)

    @cached_property
    def why_apart(self) -> WhyApart:
        """Why activations of two checkpoints cannot be compared."""
        return kinds.comparison(tables.read("checkpoints", self.run.measurements()))

    @property
    def n_layers(self) -> dict[str, int]:
        """Layers of each checkpoint's model, by its id."""
        return {name: len(found.values[0]) for name, found in self.locked.items()}

    def take_drift(self) -> None:
        """How far directions turn, table `drift`."""
        carriers = self.each("carriers")
        self.add(
            "drift",
            across.drift(self.checkpoints, self.locked, carriers, given=self.given, why_apart=self.why_apart),
        )

    def take_effective_rank(self) -> None:
        """How many dimensions directions take, table `effective_rank`."""
        self.add("effective_rank", across.effective_ranks(self.checkpoints, self.locked, self.each("carriers")))

    def take_tables(self) -> None:
        """Each checkpoint's tables, one below the other."""
        for name in tables.PER_CHECKPOINT:
            if parts := [part for part in self.each(name).values() if len(part)]:
                self.add(name, pd.concat(parts, ignore_index=True))

    def take_transfer(self) -> None:
        """Each checkpoint's direction at every checkpoint, table `transfer`."""
        if self.run.recipe.geometry.n_transferred:
            given = (self.run, self.checkpoints, self.asked)
            self.add("transfer", transfers(*given, at_once=self.at_once, version=self._version))

    def take_relocation(self) -> None:
        """Whether refusal's place moved, table `relocation`."""
        found = relocation(
            self.checkpoints,
            self.locked,
            self.each("carrier"),
            tables.read("transfer", self.run.measurements()),
            self.n_layers,
            profiles(self.run, self.checkpoints, self.asked.validation),
            given=self.given,
            why_apart=self.why_apart,
            admissible=self.run.recipe.measuring.admissible,
        )
        self.add("relocation", found)

    def take_power(self) -> None:
        """What this run could have told, table `power`."""
        self.add("power", of_run(self.run, self.checkpoints, self.asked, Wanted()))

    def take_crossing(self) -> None:
        """Which site of one checkpoint makes another refuse, table `cross_patching`."""
        if self.run.recipe.causal.n_crossed:
            given = (self.run, self.checkpoints, self.asked, self.n_layers)
            self.add("cross_patching", crossing(*given, why_apart=self.why_apart, version=self._version))
