"""Lockstep patching between where an arm starts and its last checkpoint, both ways: the depth of the behaviour."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pandas as pd

from mechrefusal import tables
from mechrefusal.durability import Lockstep, patch_in_lockstep
from mechrefusal.durability.settings import LockstepSettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge
from mechrefusal.models import Checkpoint, load_hooked
from mechrefusal.prompts import PromptSet
from mechrefusal.study.across import SHARED, Pairs
from mechrefusal.study.pairwise import by_pair
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts

STAGE = "lockstep patching"
"""Its units are a pair of checkpoints each."""
TABLES = ("lockstep", "lockstep_depth", "lockstep_prompts")


def locksteps(run: Run, pairs: Pairs, prompts: StudyPrompts, *, version: int = 1) -> dict[str, pd.DataFrame]:
    """Tables `lockstep`, `lockstep_depth`, `lockstep_prompts`: where each arm starts, and its end, in each other.

    On harmful and on as many harmless evaluation prompts; the control is of the harmful ones. Each pair is kept by
    itself, and one that cannot be patched has rows that say why. `version`: of the stage.
    """
    settings, judge = run.recipe.durability.lockstep, run.recipe.measuring.refusal_judge()
    n = settings.n_prompts
    sets = {"harmful": prompts.harmful.take(n), "harmless": prompts.harmless.take(n)}
    asked = {name: [chosen.ids, chosen.texts] for name, chosen in sets.items()}
    ends = [(first, second) for first, second in pairs.ends() if first.arm in (*SHARED, second.arm)]
    found = (_Both(*each, settings, judge, pairs.why_apart(*each)) for each in ends)
    shared = {"version": version, "prompts": asked}
    return by_pair(run, STAGE, TABLES, found, partial(_rows, sets=sets), doing="lockstep between", shared=shared)


@dataclass(frozen=True)
class _Both:
    """Two checkpoints that are patched into each other; `apart`: why they cannot be, if so."""

    first: Checkpoint
    second: Checkpoint
    settings: LockstepSettings
    judge: Judge
    apart: str

    @property
    def name(self) -> str:
        return f"{self.first.id} and {self.second.id}"

    @property
    def inputs(self) -> dict[str, Any]:
        """All but the prompts that the numbers hang on."""
        weights = [self.first.weights, self.second.weights]
        return {"weights": weights, "settings": asdict(self.settings), "judge": self.judge.name, "apart": self.apart}

    def found(self, sets: Mapping[str, PromptSet]) -> Iterator[tuple[dict[str, Any], Lockstep | None, str]]:
        """(whose rows, what was found, why nothing was), both ways, on every set of prompts."""
        apart, opened = self.apart, {}
        try:
            opened = {} if apart else {each.id: load_hooked(each) for each in (self.first, self.second)}
        except MechrefusalError as error:
            apart = str(error)
        for source, target in ((self.first, self.second), (self.second, self.first)):
            for name, chosen in sets.items():
                owner = {"arm_source": source.arm, "step_source": source.step, "set": name, "judge": self.judge.name}
                owner |= {"arm_target": target.arm, "step_target": target.step}
                rotations = self.settings.n_rotations if name == "harmful" else 0
                settings = LockstepSettings(**{**asdict(self.settings), "n_rotations": rotations})
                try:
                    if apart:
                        raise MechrefusalError(f"not compared: {apart}")
                    models = opened[source.id], opened[target.id]
                    yield owner, patch_in_lockstep(*models, chosen.texts, self.judge, settings), ""
                except MechrefusalError as error:
                    yield owner, None, str(error)


def _rows(both: _Both, sets: Mapping[str, PromptSet]) -> dict[str, list[dict[str, Any]]]:
    """The rows of one pair."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for owner, found, why in both.found(sets):
        rows["lockstep"] += _by_layer(owner, found, why)
        rows["lockstep_depth"].append(_depth(owner, found, why))
        rows["lockstep_prompts"] += [] if found is None else _by_prompt(owner, found, sets[owner["set"]].ids)
    return rows


def _by_layer(owner: dict[str, Any], found: Lockstep | None, why: str) -> list[dict[str, Any]]:
    if found is None:
        nothing = dict.fromkeys(tables.columns("lockstep")) | {"layer": -1, "n": 0, "n_draws": 0}
        return [nothing | owner | {"reason": why}]
    return [owner | row | {"reason": ""} for row in found.table.to_dict("records")]


def _depth(owner: dict[str, Any], found: Lockstep | None, why: str) -> dict[str, Any]:
    known = {name: owner[name] for name in owner if name != "judge"}
    if found is None:
        nothing = dict.fromkeys(tables.columns("lockstep_depth")) | {"n_layers": 0, "n": 0}
        return nothing | known | {"reason": why}
    change = found.depth
    values = {**change.depth.columns("depth"), **change.gap.columns("gap")}
    ends = {"n_layers": found.n_layers, "missing": change.missing, "n": change.depth.n}
    return known | values | ends | {"reason": change.reason}


def _by_prompt(owner: dict[str, Any], found: Lockstep, ids: Sequence[str]) -> list[dict[str, Any]]:
    known = {name: owner[name] for name in owner if name != "judge"}
    rows = []
    for answers, outcomes in (("source", found.source), ("target", found.target)):
        own = known | {"answers": answers, "layer": -1, "draw": -1, "degenerate": float("nan")}
        rows += [own | {"prompt_id": i, "refused": float(each)} for i, each in zip(ids, outcomes, strict=True)]
    for place, cell in found.observations.cells.iterrows():
        patched = known | {"answers": "patched", "layer": int(cell["layer"]), "draw": int(cell["draw"])}
        columns = found.observations.values[:, place], found.degenerate.values[:, place]
        for i, refused, degenerate in zip(ids, *columns, strict=True):
            rows.append(patched | {"prompt_id": i, "refused": float(refused), "degenerate": float(degenerate)})
    return rows
