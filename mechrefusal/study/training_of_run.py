"""The training of a run: every arm of its recipe, from the base or from the warm-up that they share."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from mechrefusal import tables, training
from mechrefusal.attacks import AttackCase
from mechrefusal.evaluation import Judge, complete
from mechrefusal.evaluation.judges import RULES, refuses
from mechrefusal.files import sweep
from mechrefusal.models import Checkpoint
from mechrefusal.progress import say
from mechrefusal.prompts import PromptSet, Split, builtin
from mechrefusal.prompts.conversations import Conversation
from mechrefusal.statistics import intervals
from mechrefusal.study.arms import PlannedArm, planned_arm
from mechrefusal.study.caching import Made, Written
from mechrefusal.study.own_answers import own_answers
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts
from mechrefusal.study.starting import base_of, check, lock, open_given, trained_on
from mechrefusal.training import WARM_UP, TrainingSettings
from mechrefusal.training.guide_settings import RESEMBLES


@dataclass(frozen=True)
class _Line:
    """An arm, or the warm-up that all arms share: where it starts, what it trains on, and the steps that are kept."""

    name: str
    start: Checkpoint
    behaviours: PromptSet
    settings: TrainingSettings
    steps: Sequence[int]
    planned: PlannedArm


def train(run: Run) -> list[Checkpoint]:
    """Train every arm of the recipe and keep its anchors. An arm that is complete is not trained again.

    Checkpoints that the recipe gives are noted beside them, where they lie.
    """
    prompts, recipe = check(run.recipe), run.recipe
    sweep(run.folder)
    lock(run, prompts)
    open_given(run)
    if not recipe.arms:
        return run.checkpoints()
    start, settings = base_of(run), recipe.training
    conversations = cache(partial(_conversations, recipe, start, prompts))
    if settings.warm_up:
        plain = planned_arm("sft", None, settings)
        warm_up = _Line(WARM_UP, start, prompts.behaviours, settings.of_warm_up(), [settings.warm_up], plain)
        _train(run, warm_up, prompts.probe, conversations)
        start = run.checkpoint(WARM_UP, step=settings.warm_up)
    for arm in recipe.planned_arms:
        own = arm.training.of_arm() if settings.warm_up else arm.training
        line = _Line(arm.name, start, trained_on(recipe, prompts), own, settings.arm_anchors, arm)
        _train(run, line, prompts.probe, conversations)
    return run.checkpoints()


def _train(run: Run, line: _Line, prompts: Split, conversations: Callable[[], list[Conversation]]) -> None:
    """Train a line and record its anchors; `prompts`: those that it is probed with."""
    recipe, name, start, settings = run.recipe, line.name, line.start, line.settings
    judge = recipe.measuring.refusal_judge()

    def make() -> Made:
        after = f" after {start.id}" if start.step else ""
        say(f"training {name}: {settings.steps} steps{after}")
        utility = conversations()
        with run.timed(f"train {name}"):
            log = training.train(
                line.planned.method,
                name=name,
                start=start.step,
                base=start,
                utility=utility,
                behaviours=line.behaviours,
                out=run.folder / name,
                settings=settings,
                arm_settings=line.planned.settings,
                guide=line.planned.guide,
                probe=probe_of(settings, prompts, name, judge) if settings.n_probe else None,
            )
        folders = {step: run.folder / name / f"step-{step:05d}" for step in line.steps}
        run.record(*(Checkpoint.open(path, arm=name, step=step, **recipe.opened) for step, path in folders.items()))
        logs = {"training": log}
        logs |= {table: training.read_log(run.folder / name, table) for table in ("terms", "refreshes", "probes")}
        written = [_append(run, table, rows, name) for table, rows in logs.items()]
        return Made(dict.fromkeys(filter(None, written), Written(shared=True)))

    # Weights are checked where they are opened: what was changed by others is refused, not trained again.
    inputs = {
        "version": 2,
        "start": start.weights,
        "steps": [start.step, *line.steps],
        "settings": [line.planned.as_dict(), asdict(settings)],
        "behaviours": [line.behaviours.ids, line.behaviours.texts, line.behaviours.targets],
        "conversations": [getattr(recipe.prompts, key) for key in ("conversations", "n_conversations")],
        "answers": [recipe.prompts.answer_tokens, judge.name],
    }
    run.cached("train", name, inputs, make)


def _conversations(recipe: Recipe, base: Checkpoint, prompts: StudyPrompts) -> list[Conversation]:
    if prompts.conversations is not None:
        return prompts.conversations
    settings = recipe.prompts
    instructions = prompts.instructions.take(settings.n_conversations or len(prompts.instructions))
    judge = recipe.measuring.refusal_judge()
    conversations = own_answers(base, instructions, max_new_tokens=settings.answer_tokens, judge=judge)
    built = builtin()
    resembling = {*built.train.harmless.texts, *built.pool.harmless.texts}
    return [{**turn, RESEMBLES: True} if turn["prompt"] in resembling else turn for turn in conversations]


def _append(run: Run, name: str, table: pd.DataFrame, arm: str) -> Path | None:
    """Put the rows of an arm in place of those it has; the table's file, where there are any."""
    before = tables.read(name, run.measurements())
    parts = [part for part in (before[before["arm"] != arm], table) if len(part)]
    return tables.write(pd.concat(parts, ignore_index=True), name, run.measurements()) if parts else None


def probe_of(settings: TrainingSettings, prompts: Split, arm: str, judge: Judge = RULES) -> "training.Probe":
    """A probe of `settings.n_probe` prompts a set: harmful and harmless ones, and the pool's cases with their suffixes.

    It gives rows of the table `probes` (without arm and step), and says the rates on the console.

    Args:
        prompts: those to ask, which no arm trains on.
        judge: of refusal.
    """
    n = settings.n_probe

    def probe(model, tokenizer, cases: Sequence[AttackCase], *, step: int) -> list[dict[str, Any]]:
        sets = {"harmful": prompts.harmful.take(n).texts, "harmless": prompts.harmless.take(n).texts}
        if cases:
            sets["attacked"] = [case.prompt for case in list(cases)[:n]]
        texts = [text for chosen in sets.values() for text in chosen]
        answers = complete(
            model, texts, tokenizer=tokenizer, max_new_tokens=settings.probe_tokens, description=f"{arm}: probes"
        )
        refused = iter([refuses(label) for label in judge.judge(texts, list(answers.texts))["label"]])
        rows, counts = [], []
        for name, chosen in sets.items():
            n_refused = sum(next(refused) for _ in chosen)
            rate = intervals.rate(n_refused, len(chosen))
            rows.append({"set": name, "metric": "any_refusal", "judge": judge.name, **vars(rate)})
            counts.append(f"{name} {n_refused} of {len(chosen)}")
        say(f"{arm}, step {step}: refused {', '.join(counts)}")
        return rows

    return probe
