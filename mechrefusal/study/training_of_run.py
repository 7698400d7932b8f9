"""The training of a run: every arm of its recipe, from the base or from the warm-up that they share."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import pandas as pd

from mechrefusal import tables, training
from mechrefusal.files import sweep
from mechrefusal.models import Checkpoint
from mechrefusal.progress import console
from mechrefusal.prompts import PromptSet
from mechrefusal.study import probes
from mechrefusal.study.caching import Made, Written
from mechrefusal.study.conversations import Conversation, own_answers
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.run import Run
from mechrefusal.study.selection import Asked
from mechrefusal.study.starting import base_of, check, lock, open_given, targets_of, trained_on
from mechrefusal.training import WARM_UP, TrainingSettings


def train(run: Run) -> list[Checkpoint]:
    """Train every arm of the recipe and keep its anchors. An arm that is complete is not trained again.

    Checkpoints that the recipe gives are noted beside them, where they lie.
    """
    chosen, recipe = check(run.recipe), run.recipe
    sweep(run.folder)
    lock(run, chosen)
    open_given(run)
    if not recipe.arms:
        return run.checkpoints()
    base, settings = base_of(run), recipe.training
    conversations = cache(partial(_conversations, recipe, base, chosen))
    if settings.warm_up:
        given = (chosen.behaviours, chosen, settings.of_warm_up())
        _train(run, WARM_UP, base, conversations, *given, steps=[settings.warm_up])
        base = run.checkpoint(WARM_UP, step=settings.warm_up)
        settings = settings.of_arm()
    for arm in recipe.arms:
        given = (trained_on(recipe, chosen), chosen, settings)
        _train(run, arm, base, conversations, *given, steps=recipe.training.arm_anchors)
    return run.checkpoints()


def _train(
    run: Run,
    name: str,
    start: Checkpoint,
    conversations: Callable[[], list[Conversation]],
    behaviours: PromptSet,
    chosen: Asked,
    settings: TrainingSettings,
    *,
    steps: Sequence[int],
) -> None:
    """Train an arm, or the warm-up that all arms share, from `start`, and record its anchors."""
    recipe = run.recipe

    def make() -> Made:
        after = f" after {start.id}" if start.step else ""
        console.print(f"training {name}: {settings.steps} steps{after}", highlight=False, soft_wrap=True)
        judge = recipe.measuring.refusal_judge()
        utility = conversations()
        with run.timed(f"train {name}"):
            log = training.train(
                "sft" if name == WARM_UP else name,
                name=name,
                start=start.step,
                base=start,
                utility=utility,
                behaviours=behaviours,
                out=run.folder / name,
                settings=settings,
                probe=probes.of(settings, chosen.probe, name, judge) if settings.n_probe else None,
            )
        folders = {step: run.folder / name / f"step-{step:05d}" for step in steps}
        run.record(*(Checkpoint.open(path, arm=name, step=step, chat=recipe.chat) for step, path in folders.items()))
        logs = {"training": log}
        logs |= {table: training.read_log(run.folder / name, table) for table in ("terms", "refreshes", "probes")}
        written = [_append(run, table, found, name) for table, found in logs.items()]
        return Made(dict.fromkeys(filter(None, written), Written(shared=True)))

    # Weights are checked where they are opened: what was changed by others is refused, not trained again.
    inputs = {
        "version": 1,
        "start": start.weights,
        "steps": [start.step, *steps],
        "settings": recipe.as_dict()["training"],
        "behaviours": [behaviours.ids, behaviours.texts, targets_of(behaviours)],
        "conversations": [getattr(recipe.prompts, name) for name in ("conversations", "n_conversations")],
        "answers": [recipe.prompts.answer_tokens, recipe.measuring.refusal_judge().name],
    }
    run.cached("train", name, inputs, make)


def _conversations(recipe: Recipe, base: Checkpoint, chosen: Asked) -> list[Conversation]:
    if chosen.conversations is not None:
        return chosen.conversations
    wanted = recipe.prompts
    asked = chosen.instructions.take(wanted.n_conversations or len(chosen.instructions))
    return own_answers(base, asked, max_new_tokens=wanted.answer_tokens, judge=recipe.measuring.refusal_judge())


def _append(run: Run, name: str, table: pd.DataFrame, arm: str) -> Path | None:
    """Put the rows of an arm in place of those it has; the table's file, where there are any."""
    before = tables.read(name, run.measurements())
    parts = [part for part in (before[before["arm"] != arm], table) if len(part)]
    return tables.write(pd.concat(parts, ignore_index=True), name, run.measurements()) if parts else None
