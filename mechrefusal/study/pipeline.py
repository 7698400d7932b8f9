"""The stages of a study, each of which can be run again: what is done already is read from disk, not made anew."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mechrefusal import tables, training
from mechrefusal.attacks import AttackCase, cost_table, make_cases, read_cases
from mechrefusal.attacks.gcg import start_all
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.paired import BASE
from mechrefusal.files import checkpoint_id, sweep, whole_folder
from mechrefusal.memory import given_back
from mechrefusal.models import (
    Checkpoint,
    bytes_to_hook,
    context_length,
    fetch,
    load_causal_lm,
    load_tokenizer,
    require_supported,
)
from mechrefusal.processes import Around, Job, alone, how_many
from mechrefusal.processes import run as run_jobs
from mechrefusal.progress import console
from mechrefusal.prompts import PromptSet, answer_room, end_of_turn_tokens, require_room, segments
from mechrefusal.study import across, evaluation_tables, kinds, labelling, probes
from mechrefusal.study.conversations import Conversation, own_answers
from mechrefusal.study.crossing import crossing
from mechrefusal.study.depths import profile, twins
from mechrefusal.study.evaluation_of_run import require_evaluation
from mechrefusal.study.given import given
from mechrefusal.study.measurement import N_STAGES
from mechrefusal.study.measurement import measure as measure_checkpoint
from mechrefusal.study.planning import Wanted, of_run
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.relocation import relocation
from mechrefusal.study.run import Run, fingerprint
from mechrefusal.study.selection import Asked, asked
from mechrefusal.study.transfers import transfers
from mechrefusal.training import WARM_UP, TrainingSettings

RULES = 10
"""Version of what is measured: counted up where the same settings would give other numbers."""


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
    trained = {"behaviours": chosen.behaviours if recipe.training.warm_up else _trained_on(recipe, chosen)}
    trained["instructions"] = chosen.instructions
    for name, each in trained.items():
        require_room(
            tokenizer, replace(each, name=name), limit=recipe.training.max_length, spare=1, what="training max_length"
        )
    if "r2d2" in recipe.arms:
        _check_pool(recipe, _trained_on(recipe, chosen), base, tokenizer)
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


def _trained_on(recipe: Recipe, chosen: Asked) -> PromptSet:
    """The behaviours of every arm: as many as r2d2's pool holds, so that arms differ in the method alone."""
    return chosen.behaviours.take(recipe.training.r2d2.pool_size or len(chosen.behaviours))


def train(run: Run) -> list[Checkpoint]:
    """Train every arm of the recipe and keep its anchors. An arm that is complete is not trained again.

    Checkpoints that the recipe gives are noted beside them, where they lie.
    """
    chosen, recipe = check(run.recipe), run.recipe
    sweep(run.folder)
    _lock(run, chosen)
    _open_given(run)
    if not recipe.arms:
        return run.checkpoints()
    base = _base(run)
    conversations = None
    start, settings = base, recipe.training
    if settings.warm_up:
        step = settings.warm_up
        if WARM_UP not in run.manifest.get("trained", {}):
            conversations = _conversations(recipe, base, chosen)
            _train(run, WARM_UP, base, conversations, chosen.behaviours, chosen, settings.of_warm_up(), steps=[step])
        start, settings = run.checkpoint(WARM_UP, step=step), settings.of_arm()
    for arm in recipe.arms:
        if arm not in run.manifest.get("trained", {}):
            conversations = conversations or _conversations(recipe, base, chosen)
            anchors = list(recipe.training.arm_anchors)
            _train(run, arm, start, conversations, _trained_on(recipe, chosen), chosen, settings, steps=anchors)
    return run.checkpoints()


def _train(
    run: Run,
    name: str,
    start: Checkpoint,
    conversations: list[Conversation],
    behaviours: PromptSet,
    chosen: Asked,
    settings: TrainingSettings,
    *,
    steps: Sequence[int],
) -> None:
    """Train an arm, or the warm-up that all arms share, from `start`, and record its anchors."""
    after = f" after {start.id}" if start.step else ""
    console.print(f"training {name}: {settings.steps} steps{after}", highlight=False, soft_wrap=True)
    with run.timed(f"train {name}"):
        log = training.train(
            "sft" if name == WARM_UP else name,
            name=name,
            start=start.step,
            base=start,
            utility=conversations,
            behaviours=behaviours,
            out=run.folder / name,
            settings=settings,
            probe=probes.of(settings, chosen.probe, name, run.recipe.measuring.refusal_judge())
            if settings.n_probe
            else None,
        )
    folders = {step: run.folder / name / f"step-{step:05d}" for step in steps}
    chat = run.recipe.chat
    run.record(*(Checkpoint.open(path, arm=name, step=step, chat=chat) for step, path in folders.items()))
    _append(run, "training", log, name)
    for table in ("terms", "refreshes", "probes"):
        _append(run, table, training.read_log(run.folder / name, table), name)
    run.update({"trained": {name: True}})


def cases(run: Run) -> list[AttackCase]:
    """Fixed-source attack cases against the base model, or the first checkpoint where there is none; made once."""
    _open_given(run)
    return _cases(run, run.start(), asked(run.recipe))


def _cases(run: Run, base: Checkpoint, chosen: Asked) -> list[AttackCase]:
    settings = run.recipe.attack
    if settings.n_cases == 0 or not settings.methods:
        return []
    paths = {method: run.folder / "cases" / f"{method}-base.parquet" for method in settings.methods}
    finished = run.manifest.get("cases", {})
    if all(finished.get(method) == base.weights and path.is_file() for method, path in paths.items()):
        return [case for path in paths.values() for case in read_cases(path, source=base.weights)]
    made: list[AttackCase] = []
    with run.timed("attack cases"):
        model, tokenizer = load_causal_lm(base)
        behaviours = chosen.harmful.take(settings.n_cases)
        for method, path in paths.items():
            made += make_cases(
                model,
                tokenizer,
                behaviours,
                getattr(settings, method),
                seed=run.recipe.training.seed,
                source=base.weights,
                path=path,
            )
        attacking = PromptSet.from_texts("attack cases", list(dict.fromkeys(case.prompt for case in made)))
        answer = answer_room(tokenizer, run.recipe.measuring.max_new_tokens)
        require_room(tokenizer, attacking, limit=context_length(base.path), spare=answer, what="the model's context")
        del model
    given_back()
    tables.write(cost_table(made).assign(source=base.id), "cases", run.measurements())
    run.update({"cases": dict.fromkeys(paths, base.weights)})
    return made


def _require_room_for_cases(made: list[AttackCase], checkpoints: list[Checkpoint], recipe: Recipe) -> None:
    """Cases are made against one checkpoint and asked of all, whose contexts may be smaller."""
    texts = list(dict.fromkeys(case.prompt for case in made))
    for checkpoint in checkpoints if texts else []:
        tokenizer, limit = load_tokenizer(checkpoint), context_length(checkpoint.path)
        spare, what = answer_room(tokenizer, recipe.measuring.max_new_tokens), f"the context of {checkpoint.id}"
        require_room(tokenizer, PromptSet.from_texts("attack cases", texts), limit=limit, spare=spare, what=what)


def measure(run: Run, *, processes: int = 1) -> None:
    """Measure every checkpoint that has not been, then compare them.

    Args:
        processes: that measure at once, each a checkpoint; 0: as many as are likely to be faster and fit into memory
            (see `processes.how_many`). With more than one, a script must guard its start (`if __name__ == "__main__"`),
            as Python's multiprocessing asks. What is measured does not hang on it but for rounding.
    """
    if processes < 0:
        raise MechrefusalError(f"processes is {processes}; give how many measure at once, or 0 to have it chosen")
    chosen = check(run.recipe)
    labelling.labels_in(run.folder)  # a faulty sheet is named before anything is measured
    sweep(run.folder)
    _lock(run, chosen)
    if not run.recipe.arms:
        _open_given(run)
    start, checkpoints = run.start(), run.checkpoints()
    sources = {name: entry.get("source", "") for name, entry in run.manifest["checkpoints"].items()}
    if not run.recipe.arms and run.recipe.model:
        sources[checkpoint_id(BASE, 0)] = run.recipe.model
    tables.write(kinds.table(checkpoints, chosen.direction.harmful, sources), "checkpoints", run.measurements())
    made = _cases(run, start, chosen)
    _require_room_for_cases(made, checkpoints, run.recipe)
    left = [checkpoint for checkpoint in checkpoints if not _is_measured(run, checkpoint)]
    at_once = _at_once(processes, left)
    if at_once == 1:
        for checkpoint in left:
            number = f"({checkpoints.index(checkpoint) + 1} of {len(checkpoints)})"
            console.print(f"measuring {checkpoint.id} {number}", highlight=False, soft_wrap=True)
            _note_measured(run, checkpoint, _measured(run, checkpoint, chosen, made), 1)
    else:
        by_id = {checkpoint.id: checkpoint for checkpoint in left}
        jobs = [Job(name, _measured_apart, (run.folder, one), N_STAGES) for name, one in by_id.items()]
        what = f"{len(left)} of {len(checkpoints)} checkpoints, {at_once} at once"
        console.print(f"measuring {what}", highlight=False, soft_wrap=True)
        with closing(run_jobs(jobs, at_once=at_once, description="measuring")) as ended:
            for name, seconds in ended:
                _note_measured(run, by_id[name], seconds, at_once)
    _compare(run, checkpoints, chosen, processes)


def _at_once(processes: int, targets: Sequence[Checkpoint]) -> int:
    """Processes to measure these checkpoints in: what was asked for, or what is likely to be best."""
    if len(targets) < 2:
        return 1
    return min(processes, len(targets)) or how_many(len(targets), bytes_each=max(map(bytes_to_hook, targets)))


def _measured(run: Run, checkpoint: Checkpoint, chosen: Asked, made: list[AttackCase], around: Around = alone) -> float:
    """Measure a checkpoint and write its tables and directions; the seconds it took."""
    started = time.perf_counter()
    found = measure_checkpoint(checkpoint, chosen, run.recipe, made, around=around)
    with whole_folder(run.measurements(checkpoint)) as draft:
        for name, table in found.tables.items():
            tables.write(table, name, draft)
    found.directions.save(run.directions(checkpoint))
    found.locked.save(run.locked_directions(checkpoint))
    if found.harmfulness is not None:
        found.harmfulness.save(run.harmfulness_directions(checkpoint))
    return time.perf_counter() - started


def _measured_apart(folder: Path, checkpoint: Checkpoint, around: Around) -> float:
    """`_measured` in a process of its own, with the prompts and attack cases that the run has by now."""
    run = Run.open(folder)
    chosen = asked(run.recipe)
    return _measured(run, checkpoint, chosen, _cases(run, run.start(), chosen), around)


def _note_measured(run: Run, checkpoint: Checkpoint, seconds: float, at_once: int) -> None:
    run.took(f"measure {checkpoint.id}", seconds)
    _take_verdicts(run, [checkpoint])
    run.update({"measured": {checkpoint.id: _stamp(run, checkpoint)}, "at_once": {checkpoint.id: at_once}})


def _take_verdicts(run: Run, checkpoints: list[Checkpoint]) -> None:
    """Take what measured checkpoints answered into the run's tables `verdicts` and `rates`, beside evaluations."""
    parts = [part for c in checkpoints if len(part := tables.read("verdicts", run.measurements(c)))]
    if parts:
        labels = labelling.labels_in(run.folder)
        evaluation_tables.keep(pd.concat(parts, ignore_index=True), run.measurements(), labels)


def _is_measured(run: Run, checkpoint: Checkpoint) -> bool:
    """Whether these weights were measured by these rules and settings; otherwise they are measured again."""
    return run.manifest.get("measured", {}).get(checkpoint.id) == _stamp(run, checkpoint)


def _stamp(run: Run, checkpoint: Checkpoint) -> str:
    """The weights, and a fingerprint of what else a measurement hangs on: its settings and the version of its rules."""
    recipe = run.recipe.as_dict()
    judge = run.recipe.measuring.refusal_judge().name
    told = {"version": RULES, "judge": judge, **{name: recipe[name] for name in ("measuring", "geometry", "causal")}}
    return f"{checkpoint.weights}-{fingerprint(told)}"


def _compare(run: Run, checkpoints: list[Checkpoint], chosen: Asked, processes: int) -> None:
    locked = across.read_directions(checkpoints, run.locked_directions)
    apart = kinds.comparison(tables.read("checkpoints", run.measurements()))
    carriers = {c.id: tables.read("carriers", run.measurements(c)) for c in checkpoints}
    given_arms = run.recipe.checkpoints
    drift = across.drift(checkpoints, locked, carriers, given=given_arms, why_apart=apart)
    tables.write(drift, "drift", run.measurements())
    tables.write(across.effective_ranks(checkpoints, locked, carriers), "effective_rank", run.measurements())
    for name in tables.PER_CHECKPOINT:
        parts = [part for c in checkpoints if len(part := tables.read(name, run.measurements(c)))]
        if parts:
            tables.write(pd.concat(parts, ignore_index=True), name, run.measurements())
    _take_verdicts(run, checkpoints)
    moved = transfers(run, checkpoints, chosen, at_once=_at_once(processes, checkpoints))
    rows = {c.id: tables.read("carrier", run.measurements(c)) for c in checkpoints}
    n_layers = {name: len(found.values[0]) for name, found in locked.items()}
    units = twins(chosen.validation.harmful, chosen.validation.harmless)
    profiles = {}
    for c in checkpoints:
        candidates, halves = (tables.read(name, run.measurements(c)) for name in ("candidate_scores", "half_scores"))
        profiles[c.id] = profile(candidates, halves, units)
    relocated = relocation(
        checkpoints,
        locked,
        rows,
        moved,
        n_layers,
        profiles,
        given=given_arms,
        why_apart=apart,
        admissible=run.recipe.measuring.admissible,
    )
    tables.write(relocated, "relocation", run.measurements())
    tables.write(of_run(run, checkpoints, chosen, Wanted()), "power", run.measurements())
    crossing(run, checkpoints, chosen, n_layers, why_apart=apart)


def _lock(run: Run, chosen: Asked) -> None:
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
        name: {"n": len(prompts), "sha256": fingerprint([prompts.ids, prompts.texts, _targets(prompts)])}
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


def _targets(prompts: PromptSet) -> list[str]:
    return prompts.table["target"].astype(str).tolist() if "target" in prompts.table else []


def _open_given(run: Run) -> None:
    """Note the base, where there is one, and the checkpoints that the recipe gives in the manifest, where they lie."""
    known = run.manifest.get("checkpoints", {})
    if run.recipe.model:
        _base(run)
    for each in given(run.recipe.checkpoints):
        if checkpoint_id(each.arm, each.step) not in known:
            found = Checkpoint.open(fetch(each.source), arm=each.arm, step=each.step, chat=run.recipe.chat)
            run.record(found, source=each.source)


def _base(run: Run) -> Checkpoint:
    known = run.manifest.get("checkpoints", {}).get(checkpoint_id(BASE, 0))
    if known is not None:
        return run.checkpoint("base", step=0)
    base = Checkpoint.open(fetch(run.recipe.model), chat=run.recipe.chat)
    run.record(base)
    return base


def _conversations(recipe: Recipe, base: Checkpoint, chosen: Asked) -> list[Conversation]:
    if chosen.conversations is not None:
        return chosen.conversations
    wanted = recipe.prompts
    asked = chosen.instructions.take(wanted.n_conversations or len(chosen.instructions))
    return own_answers(base, asked, max_new_tokens=wanted.answer_tokens, judge=recipe.measuring.refusal_judge())


def _append(run: Run, name: str, table: pd.DataFrame, arm: str) -> None:
    before = tables.read(name, run.measurements())
    parts = [part for part in (before[before["arm"] != arm], table) if len(part)]
    if parts:
        tables.write(pd.concat(parts, ignore_index=True), name, run.measurements())
