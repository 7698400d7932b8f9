"""The units of a run that workers take: attack cases, checkpoints, and what is measured between checkpoints.

Whether a stage of a unit is finished says the manifest, by the stamp of what it hangs on. A unit opens its models once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

from mechrefusal import tables
from mechrefusal.attacks import AttackCase, cost_table, make_cases, read_cases
from mechrefusal.memory import given_back
from mechrefusal.models import Checkpoint, load_causal_lm, load_tokenizer
from mechrefusal.prompts import PromptSet
from mechrefusal.study import transfers
from mechrefusal.study.caching import Inputs, Made, Written, fingerprint
from mechrefusal.study.checkpoints import require_room
from mechrefusal.study.comparison import Comparison
from mechrefusal.study.protocol import ACROSS_CHECKPOINTS, AT_A_CHECKPOINT, Remaining
from mechrefusal.study.protocol import measure as measure_checkpoint
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts
from mechrefusal.study.stages import Stage
from mechrefusal.workers import Around

Wanted = Mapping[str, Mapping[str, Inputs]]
"""What each stage of each unit hangs on: by the unit, then by (stage, and what it is of in the manifest)."""
CASES_STAGE = "attack cases"
BETWEEN = tuple(stage for stage in ACROSS_CHECKPOINTS if stage.opens)
"""Stages over all checkpoints that open models. None of them comes after another."""


@dataclass(frozen=True)
class _OfRun:
    """Units of a run. `wanted`: inputs of each unit's stages, those of one that is of the whole run too."""

    run: Run
    prompts: StudyPrompts
    wanted: Wanted

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.run.folder

    def key(self, unit: str, stage: str) -> str:
        """What the unit's stage is of, in the manifest."""
        return unit

    @cached_property
    def _stamps(self) -> dict[str, dict[str, tuple[str, str]]]:
        """What each stage of each unit is called in the manifest, and its stamp there when it is finished."""
        return {
            unit: {name: (Run.unit(name, self.key(unit, name)), fingerprint(inputs)) for name, inputs in stages.items()}
            for unit, stages in self.wanted.items()
        }

    def left(self) -> dict[str, list[str]]:
        """Stages of each unit that the manifest does not have, made from these inputs."""
        known = self.run.entries()
        return {
            unit: [name for name, (called, stamp) in stages.items() if (known.get(called) or {}).get("stamp") != stamp]
            for unit, stages in self._stamps.items()
        }

    def require_whole(self) -> None:
        """Take from the manifest what has a file that is missing or not what was written. It is made again then."""
        for unit, stages in self.wanted.items():
            for name, inputs in stages.items():
                key = self.key(unit, name)
                if self.run.finished(name, key) is not None and self.run.kept(name, key, inputs) is None:
                    self.run.clear(name, key, fingerprint(inputs))


@dataclass(frozen=True)
class AttackCases(_OfRun):
    """Fixed-source attack cases against `base`: one unit."""

    base: Checkpoint

    name = CASES_STAGE

    @classmethod
    def of(cls, run: Run, base: Checkpoint, prompts: StudyPrompts) -> "AttackCases":
        """Those of a run; without any there is no unit."""
        settings = run.recipe.attack
        if settings.n_cases == 0 or not settings.methods:
            return cls(run, prompts, {}, base)
        behaviours = prompts.harmful.take(settings.n_cases)
        inputs = {
            "version": 1,
            "weights": base.computed,
            "behaviours": [behaviours.ids, behaviours.texts, behaviours.with_targets().targets],
            "settings": {method: asdict(getattr(settings, method)) for method in settings.methods},
            "seed": run.recipe.training.seed,
        }
        return cls(run, prompts, {base.id: {CASES_STAGE: inputs}}, base)

    @property
    def paths(self) -> dict[str, Path]:
        """The file of each method's cases."""
        methods = self.run.recipe.attack.methods if self.wanted else ()
        return {method: self.run.folder / "cases" / f"{method}-base.parquet" for method in methods}

    def read(self) -> list[AttackCase]:
        """The cases, which are there."""
        return [case for path in self.paths.values() for case in read_cases(path, source=self.base.weights)]

    def take(self, unit: str, around: Around) -> None:
        """Make them."""
        with around(CASES_STAGE):
            self.run.cached(CASES_STAGE, unit, self.wanted[unit][CASES_STAGE], self._make)

    def _make(self) -> Made:
        run, base, attacks = self.run, self.base, list[AttackCase]()
        model, tokenizer = load_causal_lm(base)
        behaviours, seed = self.prompts.harmful.take(run.recipe.attack.n_cases), run.recipe.training.seed
        for method, path in self.paths.items():
            how = getattr(run.recipe.attack, method)
            attacks += make_cases(model, tokenizer, behaviours, how, seed=seed, source=base.weights, path=path)
        self.require_room(attacks, base, "the model's context")
        del model
        given_back()
        costs = tables.frame("cases", cost_table(attacks).assign(source=base.id))
        written = dict.fromkeys(self.paths.values(), Written())
        return Made({**written, run.measurements() / "cases.parquet": costs})

    def require_room(self, attacks: Sequence[AttackCase], checkpoint: Checkpoint, what: str) -> None:
        """Cases are made against one checkpoint and asked of all, whose contexts may be smaller."""
        if texts := list(dict.fromkeys(case.prompt for case in attacks)):
            prompts, n = PromptSet.from_texts("attack cases", texts), self.run.recipe.measuring.max_new_tokens
            require_room(checkpoint.path, load_tokenizer(checkpoint), prompts, max_new_tokens=n, what=what)


@dataclass(frozen=True)
class Measuring(_OfRun):
    """The stages of the protocol at each checkpoint. `at_once`: how many are measured at once, which times hang on."""

    checkpoints: Sequence[Checkpoint]
    attacks: Sequence[AttackCase]
    at_once: int = 1

    name = "measure"

    def take(self, unit: str, around: Around) -> None:
        """Measure a checkpoint."""
        names = self.left()[unit]
        todo = Remaining(self.wanted[unit], tuple(stage for stage in AT_A_CHECKPOINT if stage.name in names))
        [checkpoint] = [each for each in self.checkpoints if each.id == unit]
        self.run.update({"at_once": {unit: self.at_once}})
        measure_checkpoint(self.run, checkpoint, self.prompts, self.attacks, todo=todo, around=around)


@dataclass(frozen=True)
class Between(_OfRun):
    """What opens several checkpoints: the transfers to each, and every other such stage as a whole.

    Fields:
        across: what all stages over the checkpoints hang on.
    """

    checkpoints: Sequence[Checkpoint]
    across: Mapping[str, Inputs]

    name = "compare"

    @classmethod
    def of(
        cls, run: Run, prompts: StudyPrompts, checkpoints: Sequence[Checkpoint], across: Mapping[str, Inputs]
    ) -> "Between":
        """The units of stages that are not finished."""
        todo = [stage for stage in BETWEEN if run.kept(stage.name, "", across[stage.name]) is None]
        wanted: dict[str, dict[str, Inputs]] = {}
        for stage in todo:
            if stage.name != transfers.STAGE:
                wanted[stage.name] = {stage.name: across[stage.name]}
            elif run.recipe.geometry.n_transferred:
                version = across[stage.name]["version"]
                inputs = transfers.inputs_of_targets(run, checkpoints, prompts, version)
                wanted |= {target: {transfers.STAGE: each} for target, each in inputs.items()}
        return cls(run, prompts, wanted, checkpoints, across)

    def key(self, unit: str, stage: str) -> str:
        """A target's id, or nothing for a stage of the whole run."""
        return "" if unit == stage else unit

    def take(self, unit: str, around: Around) -> None:
        """Take the transfers to a checkpoint, or a stage."""
        checkpoints = list(self.checkpoints)
        if unit not in self.across:
            transfers.take_target(self.run, unit, checkpoints, self.prompts, self.wanted[unit][transfers.STAGE], around)
            return
        subject = Comparison(self.run, checkpoints, self.prompts)
        with around(unit):
            _take(subject, next(stage for stage in BETWEEN if stage.name == unit), self.across)


@dataclass(frozen=True)
class SideBySide(_OfRun):
    """All stages over the checkpoints, of which those that open models are finished: one unit."""

    checkpoints: Sequence[Checkpoint]

    name = "tables"

    @classmethod
    def of(
        cls, run: Run, prompts: StudyPrompts, checkpoints: Sequence[Checkpoint], across: Mapping[str, Inputs]
    ) -> "SideBySide":
        """The unit."""
        return cls(run, prompts, {"all checkpoints": across}, checkpoints)

    def key(self, unit: str, stage: str) -> str:
        """The whole run's."""
        return ""

    def take(self, unit: str, around: Around) -> None:
        """Take the stages in their order."""
        subject = Comparison(self.run, list(self.checkpoints), self.prompts)
        for stage in ACROSS_CHECKPOINTS:
            with around(stage.name):
                _take(subject, stage, self.wanted[unit])


def _take(subject: Comparison, stage: Stage, across: Mapping[str, Inputs]) -> None:
    subject.run.cached(stage.name, "", across[stage.name], partial(stage.make, subject, across[stage.name]))
