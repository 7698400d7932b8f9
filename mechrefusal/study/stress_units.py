"""Stress tests as units for workers: the attacks on a checkpoint, then the others' cases at a checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mechrefusal.attacks import GCGSettings
from mechrefusal.files import whole_file
from mechrefusal.models import Checkpoint, bytes_to_hook, load_tokenizer
from mechrefusal.progress import say
from mechrefusal.prompts import PromptSet
from mechrefusal.study.caching import fingerprint
from mechrefusal.study.stress_answers import NONE, Answers, ModelCache, Plan, Replies, curve_steps
from mechrefusal.workers import Around, Workers
from mechrefusal.workers import run as run_units


def answered(plan: Plan, checkpoints: Sequence[Checkpoint], workers: Workers | int = 1) -> Answers:
    """Attack each checkpoint and ask it its own cases, by step; then ask all of them the others' final ones.

    `workers`: who does it, a checkpoint at a time.
    """
    suffix = max((each.suffix_length for each in plan.methods.values() if isinstance(each, GCGSettings)), default=0)
    attacked = [plan.behaviours]
    if plan.twins and suffix:
        attacked.append(PromptSet.from_texts(plan.twins.name, list(plan.twins.prompts.values())))
        say(f"{len(plan.twins)} of {len(plan.behaviours)} behaviours have a harmless twin to put the suffix behind")
    for checkpoint in checkpoints:
        for each in attacked:
            plan.require_room(checkpoint, load_tokenizer(checkpoint), each, suffix=suffix)
    workers, collected = Workers.of(workers), Answers()
    workers.require()
    for kind in (Attacking, Replaying):
        run_units(kind(plan, checkpoints), workers, bytes_each=max(map(bytes_to_hook, checkpoints)))
    for target in checkpoints:
        collected.cases.update({(target.id, method): cases for method, cases in plan.cases(target).items()})
        collected.twins.update(_ask_own(plan, target, None, collected.replies))
        _ask_others(plan, target, checkpoints, None, collected.replies)
    return collected


def _ask_own(plan: Plan, target: Checkpoint, models: ModelCache | None, replies: dict[tuple[str, str, str], Replies]):
    """Answers to the behaviours and to the target's own cases, which are on disk; returns those to their twins."""
    own = plan.cases(target)
    replies[target.id, NONE, NONE] = plan.answer(models, target, plan.behaviours.texts)
    for method, settings in plan.methods.items():
        texts = [case.history_prompts[step] for step in curve_steps(settings.steps) for case in own[method]]
        replies[target.id, target.id, method] = plan.answer(models, target, texts, source=target, method=method)
    return plan.answer_twins(models, target, own)


def _ask_others(
    plan: Plan,
    target: Checkpoint,
    checkpoints: Sequence[Checkpoint],
    models: ModelCache | None,
    replies: dict[tuple[str, str, str], Replies],
) -> None:
    """Answers to the final prompts of the others' cases, which are on disk."""
    for source in checkpoints:
        for method, cases in plan.cases(source).items() if source.id != target.id else ():
            texts = [case.prompt for case in cases]
            replies[target.id, source.id, method] = plan.answer(models, target, texts, source=source, method=method)


@dataclass(frozen=True)
class Attacking:
    """The attacks on each checkpoint and its answers to them, as units for workers."""

    plan: Plan
    checkpoints: Sequence[Checkpoint]

    name = "attack"

    @property
    def folder(self) -> Path:
        """Where cases and answers are."""
        return self.plan.folder

    def _hangs_on(self, target: Checkpoint) -> list[Any]:
        plan, behaviours = self.plan, self.plan.behaviours.with_targets()
        methods = {name: asdict(settings) for name, settings in plan.methods.items()}
        asked = [behaviours.ids, behaviours.texts, behaviours.targets, list(plan.twins.prompts.items())]
        return [target.computed, asked, methods, plan.seed, plan.max_new_tokens]

    def _note(self, unit: str) -> Path:
        """The file that says that a unit is finished."""
        return self.folder / "answers" / unit / f"{self.name}.json"

    def left(self) -> dict[str, list[str]]:
        """Checkpoints without that note, or without a file that it names."""
        return {target.id: [] if self._is_finished(target) else [self.name] for target in self.checkpoints}

    def _is_finished(self, target: Checkpoint) -> bool:
        try:
            note = json.loads(self._note(target.id).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        there = all((self.folder / name).is_file() for name in note["files"])
        return note["stamp"] == fingerprint(self._hangs_on(target)) and there

    def take(self, unit: str, around: Around) -> None:
        """Do it, and note what was written."""
        [target] = [each for each in self.checkpoints if each.id == unit]
        with around(self.name):
            self._do(target, ModelCache())
        written = [
            *self.folder.glob(f"*-{target.weights}.parquet"),
            *(self.folder / "answers" / unit).rglob("*.parquet"),
        ]
        files = [str(path.relative_to(self.folder)) for path in written]
        with whole_file(self._note(unit)) as draft:
            draft.write_text(json.dumps({"stamp": fingerprint(self._hangs_on(target)), "files": files}), "utf-8")

    def _do(self, target: Checkpoint, models: ModelCache) -> None:
        self.plan.attack(models, target)
        _ask_own(self.plan, target, models, {})


@dataclass(frozen=True)
class Replaying(Attacking):
    """Each checkpoint's answers to the others' cases, all of which are made."""

    name = "replay"

    def _hangs_on(self, target: Checkpoint) -> list[Any]:
        return [*super()._hangs_on(target), [each.computed for each in self.checkpoints]]

    def _do(self, target: Checkpoint, models: ModelCache) -> None:
        _ask_others(self.plan, target, self.checkpoints, models, {})
