"""What a run begins with: a recipe that is checked, prompts that stay the same, and the models that it names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mechrefusal.attacks import GCGSettings
from mechrefusal.attacks.gcg import start_all
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.paired import BASE
from mechrefusal.files import checkpoint_id
from mechrefusal.models import Checkpoint, context_length, fetch, load_tokenizer, require_supported
from mechrefusal.prompts import PromptSet, end_of_turn_tokens, segments
from mechrefusal.prompts import require_room as require_tokens
from mechrefusal.study.caching import fingerprint
from mechrefusal.study.checkpoints import require_room
from mechrefusal.study.evaluation_of_run import require_evaluation
from mechrefusal.study.given import given
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts, choose_prompts


def check(recipe: Recipe) -> StudyPrompts:
    """Everything that can be wrong with a recipe, before anything is written: prompts, model, chat template, lengths.

    Raises:
        MechrefusalError: whatever it is, named.
    """
    prompts = choose_prompts(recipe)
    n = recipe.training.n_behaviours
    if recipe.arms and n > len(prompts.behaviours):
        raise MechrefusalError(
            f"training n_behaviours is {n}, but there are {len(prompts.behaviours)} behaviours; give fewer, "
            "or 0 for all of them"
        )
    for arm in recipe.planned_arms:
        if arm.method.check is not None:
            arm.method.check(arm.settings, arm.training, trained_on(recipe, prompts))
    folders = [fetch(recipe.model)] if recipe.model else []
    folders += [fetch(each.source) for each in given(recipe.checkpoints)]
    for folder in folders:
        require_supported(folder)
    if recipe.arms:
        _check_training(recipe, prompts, folders[0])
    attacked = recipe.attack.n_cases > 0 and "gcg" in recipe.attack.methods
    suffix = recipe.attack.gcg.suffix_length if attacked else 0
    measured = {**prompts.evaluation_sets(), **prompts.used(), **prompts.asked_besides()}
    for folder in folders:
        tokenizer, n = _asking(recipe, folder), recipe.measuring.max_new_tokens
        for name, each in measured.items():
            require_room(folder, tokenizer, replace(each, name=name), max_new_tokens=n, suffix=suffix)
    require_evaluation(recipe)
    recipe.measuring.refusal_judge()
    return prompts


def _asking(recipe: Recipe, folder: Path):
    """The tokenizer of a folder as the recipe has it ask; a model whose answers have no end is refused here."""
    tokenizer = load_tokenizer(folder, told=recipe.chat)
    end_of_turn_tokens(tokenizer)
    return tokenizer


def _check_training(recipe: Recipe, prompts: StudyPrompts, base: Path) -> None:
    """Whether all rows fit into the length that arms train with, and own answers into the context."""
    tokenizer, behaviours = _asking(recipe, base), trained_on(recipe, prompts)
    all_trained = prompts.behaviours if recipe.training.warm_up else behaviours
    for name, each in (("behaviours", all_trained), ("instructions", prompts.instructions)):
        limit, what = recipe.training.max_length, "training max_length"
        require_tokens(tokenizer, replace(each, name=name), limit=limit, spare=1, what=what)
    for arm in recipe.planned_arms:
        if (suffixed := getattr(arm.settings, "gcg", None)) is not None:
            _check_pool(recipe, suffixed, behaviours, base, tokenizer)
    if prompts.conversations is None:
        instructions = prompts.instructions.take(recipe.prompts.n_conversations or len(prompts.instructions))
        require_room(base, tokenizer, instructions, max_new_tokens=recipe.prompts.answer_tokens)


def _check_pool(recipe: Recipe, gcg: GCGSettings, behaviours: PromptSet, folder: Path, tokenizer) -> None:
    """Whether every behaviour can be attacked and trained on: the suffix's length, and the model's context."""
    limit = context_length(folder)
    for case in start_all(tokenizer, behaviours, gcg, source=""):
        for answer in (case.target, recipe.training.refusal):
            n_tokens = len(segments(tokenizer, case.behaviour, attack=case.suffix, target=answer).ids)
            if n_tokens > limit:
                raise MechrefusalError(
                    f"behaviour '{case.id}' with suffix and answer takes {n_tokens} tokens, more than the model's "
                    f"context of {limit}; leave it out of the file, or shorten its target"
                )


def trained_on(recipe: Recipe, prompts: StudyPrompts) -> PromptSet:
    """The behaviours of every arm, so that arms differ in the method alone."""
    return prompts.behaviours.take(recipe.training.n_behaviours or len(prompts.behaviours))


def lock(run: Run, prompts: StudyPrompts) -> None:
    """Note the prompts of the run in the manifest, and refuse to go on with others.

    Raises:
        MechrefusalError: a set is not what it was when the run was started.
    """
    sets = {**prompts.used(), "probe_harmful": prompts.probe.harmful, "probe_harmless": prompts.probe.harmless}
    if prompts.pairs is not None:
        sets |= {"pairs": prompts.pairs.harmful, "pairs_harmless": prompts.pairs.harmless}
    stamps = {
        name: {"n": len(each), "sha256": fingerprint([each.ids, each.texts, each.targets])}
        for name, each in {**sets, **prompts.evaluation_sets()}.items()
    }
    known = run.manifest.get("prompts", {})
    if changed := [name for name in known if known[name] != stamps.get(name)]:
        raise MechrefusalError(
            f"the prompts of '{run.folder}' have changed since it was started ({', '.join(changed)}); "
            "restore the files, or start another run with --out"
        )
    left_out = [f"{row.set_b}: {row.id_b} (is {row.id_a} of {row.set_a})" for row in prompts.dropped.itertuples()]
    noted: dict[str, Any] = {"prompts": stamps, "left_out_as_leaks": left_out}
    if prompts.conversations is not None:
        noted["left_out_conversations"] = prompts.conversations.left_out.to_dict("records")
    run.update(noted)


def open_given(run: Run) -> None:
    """Note the base, where there is one, and the checkpoints that the recipe gives in the manifest, where they lie."""
    known = run.manifest.get("checkpoints", {})
    if run.recipe.model:
        base_of(run)
    for each in given(run.recipe.checkpoints):
        if checkpoint_id(each.arm, each.step) not in known:
            checkpoint = Checkpoint.open(fetch(each.source), arm=each.arm, step=each.step, **run.recipe.opened)
            run.record(checkpoint, source=each.source)


def base_of(run: Run) -> Checkpoint:
    """The base model of a run, noted in its manifest."""
    known = run.manifest.get("checkpoints", {}).get(checkpoint_id(BASE, 0))
    if known is not None:
        return run.checkpoint("base", step=0)
    base = Checkpoint.open(fetch(run.recipe.model), **run.recipe.opened)
    run.record(base)
    return base
