"""What a run begins with: a recipe that is checked, prompts that stay the same, and the models that it names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mechrefusal.attacks.gcg import start_all
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.paired import BASE
from mechrefusal.files import checkpoint_id
from mechrefusal.models import Checkpoint, context_length, fetch, load_tokenizer, require_supported
from mechrefusal.prompts import PromptSet, answer_room, end_of_turn_tokens, require_room, segments
from mechrefusal.study.caching import fingerprint
from mechrefusal.study.evaluation_of_run import require_evaluation
from mechrefusal.study.given import given
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.run import Run
from mechrefusal.study.selection import Asked, asked


def check(recipe: Recipe) -> Asked:
    """Everything that can be wrong with a recipe, before anything is written: prompts, model, chat template, lengths.

    Raises:
        MechrefusalError: whatever it is, named.
    """
    chosen = asked(recipe)
    pool = recipe.training.r2d2.pool_size
    if recipe.arms and pool > len(chosen.behaviours):
        raise MechrefusalError(
            f"training r2d2 pool_size is {pool}, but there are {len(chosen.behaviours)} behaviours; "
            "give a smaller pool_size, or 0 for all of them"
        )
    folders = [fetch(recipe.model)] if recipe.model else []
    folders += [fetch(each.source) for each in given(recipe.checkpoints)]
    for folder in folders:
        require_supported(folder)
    if recipe.arms:
        _check_training(recipe, chosen, folders[0])
    pressed = recipe.attack.n_cases > 0 and "gcg" in recipe.attack.methods
    measured = {**chosen.evaluation_sets(), **chosen.used(), **chosen.asked_besides()}
    for folder in folders:
        tokenizer, context = _asking(recipe, folder), context_length(folder)
        spare = answer_room(tokenizer, recipe.measuring.max_new_tokens)
        spare += recipe.attack.gcg.suffix_length if pressed else 0
        for name, each in measured.items():
            require_room(tokenizer, replace(each, name=name), limit=context, spare=spare, what="the model's context")
    require_evaluation(recipe)
    recipe.measuring.refusal_judge()
    return chosen


def _asking(recipe: Recipe, folder: Path):
    """The tokenizer of a folder as the recipe has it ask; a model whose answers have no end is refused here."""
    tokenizer = load_tokenizer(folder)
    recipe.chat.apply(tokenizer)
    end_of_turn_tokens(tokenizer)
    return tokenizer


def _check_training(recipe: Recipe, chosen: Asked, base: Path) -> None:
    """Whether all rows fit into the length that arms train with."""
    tokenizer = _asking(recipe, base)
    trained = {"behaviours": chosen.behaviours if recipe.training.warm_up else trained_on(recipe, chosen)}
    trained["instructions"] = chosen.instructions
    for name, each in trained.items():
        require_room(
            tokenizer, replace(each, name=name), limit=recipe.training.max_length, spare=1, what="training max_length"
        )
    if "r2d2" in recipe.arms:
        _check_pool(recipe, trained_on(recipe, chosen), base, tokenizer)
    if chosen.conversations is None:
        answered = chosen.instructions.take(recipe.prompts.n_conversations or len(chosen.instructions))
        spare, limit = answer_room(tokenizer, recipe.prompts.answer_tokens), context_length(base)
        require_room(tokenizer, answered, limit=limit, spare=spare, what="the model's context")


def _check_pool(recipe: Recipe, behaviours: PromptSet, folder: Path, tokenizer) -> None:
    """Whether every behaviour can be attacked and trained on: the suffix's length, and the model's context."""
    settings, limit = recipe.training, context_length(folder)
    for case in start_all(tokenizer, behaviours, settings.r2d2.gcg, source=""):
        for answer in (case.target, settings.refusal):
            n_tokens = len(segments(tokenizer, case.behaviour, attack=case.suffix, target=answer).ids)
            if n_tokens > limit:
                raise MechrefusalError(
                    f"behaviour '{case.id}' with suffix and answer takes {n_tokens} tokens, more than the model's "
                    f"context of {limit}; leave it out of the file, or shorten its target"
                )


def trained_on(recipe: Recipe, chosen: Asked) -> PromptSet:
    """The behaviours of every arm: as many as r2d2's pool holds, so that arms differ in the method alone."""
    return chosen.behaviours.take(recipe.training.r2d2.pool_size or len(chosen.behaviours))


def lock(run: Run, chosen: Asked) -> None:
    """Note the prompts of the run in the manifest, and refuse to go on with others.

    Raises:
        MechrefusalError: a set is not what it was when the run was started.
    """
    sets: dict[str, PromptSet] = {
        **({"behaviours": chosen.behaviours, "instructions": chosen.instructions} if chosen.trains else {}),
        "direction_harmful": chosen.direction.harmful,
        "direction_harmless": chosen.direction.harmless,
        "validation_harmful": chosen.validation.harmful,
        "validation_harmless": chosen.validation.harmless,
        "probe_harmful": chosen.probe.harmful,
        "probe_harmless": chosen.probe.harmless,
        **(
            {"pairs": chosen.pairs.harmful, "pairs_harmless": chosen.pairs.harmless} if chosen.pairs is not None else {}
        ),
        **chosen.evaluation_sets(),
    }
    found = {
        name: {"n": len(prompts), "sha256": fingerprint([prompts.ids, prompts.texts, targets_of(prompts)])}
        for name, prompts in sets.items()
    }
    known = run.manifest.get("prompts", {})
    if changed := [name for name in known if known[name] != found.get(name)]:
        raise MechrefusalError(
            f"the prompts of '{run.folder}' have changed since it was started ({', '.join(changed)}); "
            "restore the files, or start another run with --out"
        )
    left_out = [f"{row.set_b}: {row.id_b} (is {row.id_a} of {row.set_a})" for row in chosen.dropped.itertuples()]
    noted: dict[str, Any] = {"prompts": found, "left_out_as_leaks": left_out}
    if chosen.conversations is not None:
        noted["left_out_conversations"] = chosen.conversations.left_out.to_dict("records")
    run.update(noted)


def targets_of(prompts: PromptSet) -> list[str]:
    """What answers to the prompts are to begin with; empty where the set has no targets."""
    return prompts.table["target"].astype(str).tolist() if "target" in prompts.table else []


def open_given(run: Run) -> None:
    """Note the base, where there is one, and the checkpoints that the recipe gives in the manifest, where they lie."""
    known = run.manifest.get("checkpoints", {})
    if run.recipe.model:
        base_of(run)
    for each in given(run.recipe.checkpoints):
        if checkpoint_id(each.arm, each.step) not in known:
            found = Checkpoint.open(fetch(each.source), arm=each.arm, step=each.step, chat=run.recipe.chat)
            run.record(found, source=each.source)


def base_of(run: Run) -> Checkpoint:
    """The base model of a run, noted in its manifest."""
    known = run.manifest.get("checkpoints", {}).get(checkpoint_id(BASE, 0))
    if known is not None:
        return run.checkpoint("base", step=0)
    base = Checkpoint.open(fetch(run.recipe.model), chat=run.recipe.chat)
    run.record(base)
    return base
