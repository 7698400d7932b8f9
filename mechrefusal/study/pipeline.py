"""The measuring of a run: attack cases, every checkpoint, and what sets them side by side."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from mechrefusal import tables
from mechrefusal.attacks import AttackCase, cost_table, make_cases, read_cases
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.paired import BASE
from mechrefusal.files import checkpoint_id, sweep
from mechrefusal.memory import given_back
from mechrefusal.models import Checkpoint, bytes_to_hook, context_length, load_causal_lm, load_tokenizer
from mechrefusal.processes import Around, Job, how_many
from mechrefusal.processes import run as run_jobs
from mechrefusal.progress import console
from mechrefusal.prompts import PromptSet, answer_room, require_room
from mechrefusal.study import evaluation_tables, kinds, labelling
from mechrefusal.study.caching import Made, Written
from mechrefusal.study.protocol import compare, left, timings
from mechrefusal.study.protocol import measure as measure_checkpoint
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.run import Run
from mechrefusal.study.selection import Asked, asked
from mechrefusal.study.stages import prompts_asked
from mechrefusal.study.starting import check, lock, open_given, targets_of


def cases(run: Run) -> list[AttackCase]:
    """Fixed-source attack cases against the base model, or the first checkpoint where there is none; made once."""
    open_given(run)
    return _cases(run, run.start(), asked(run.recipe))


def _cases(run: Run, base: Checkpoint, chosen: Asked) -> list[AttackCase]:
    settings, seed = run.recipe.attack, run.recipe.training.seed
    if settings.n_cases == 0 or not settings.methods:
        return []
    paths = {method: run.folder / "cases" / f"{method}-base.parquet" for method in settings.methods}
    behaviours = chosen.harmful.take(settings.n_cases)

    def make() -> Made:
        made: list[AttackCase] = []
        with run.timed("attack cases"):
            model, tokenizer = load_causal_lm(base)
            for method, path in paths.items():
                own = getattr(settings, method)
                made += make_cases(model, tokenizer, behaviours, own, seed=seed, source=base.weights, path=path)
            attacking = PromptSet.from_texts("attack cases", list(dict.fromkeys(case.prompt for case in made)))
            answer = answer_room(tokenizer, run.recipe.measuring.max_new_tokens)
            require_room(
                tokenizer, attacking, limit=context_length(base.path), spare=answer, what="the model's context"
            )
            del model
        given_back()
        costs = tables.frame("cases", cost_table(made).assign(source=base.id))
        return Made({**dict.fromkeys(paths.values(), Written()), run.measurements() / "cases.parquet": costs})

    inputs = {
        "version": 1,
        "weights": base.weights,
        "behaviours": [behaviours.ids, behaviours.texts, targets_of(behaviours.with_targets())],
        "settings": {method: asdict(getattr(settings, method)) for method in settings.methods},
        "seed": seed,
    }
    run.cached("attack cases", base.id, inputs, make)
    return [case for path in paths.values() for case in read_cases(path, source=base.weights)]


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
    lock(run, chosen)
    if not run.recipe.arms:
        open_given(run)
    start, checkpoints = run.start(), run.checkpoints()
    sources = {name: entry.get("source", "") for name, entry in run.manifest["checkpoints"].items()}
    if not run.recipe.arms and run.recipe.model:
        sources[checkpoint_id(BASE, 0)] = run.recipe.model
    tables.write(kinds.table(checkpoints, chosen.direction.harmful, sources), "checkpoints", run.measurements())
    made = _cases(run, start, chosen)
    _require_room_for_cases(made, checkpoints, run.recipe)
    prompts = prompts_asked(chosen, made)
    stages = {checkpoint.id: left(run, checkpoint, prompts) for checkpoint in checkpoints}
    todo = {checkpoint.id: checkpoint for checkpoint in checkpoints if stages[checkpoint.id]}
    at_once = _at_once(processes, list(todo.values()))
    if at_once == 1:
        for checkpoint in todo.values():
            number = f"({checkpoints.index(checkpoint) + 1} of {len(checkpoints)})"
            console.print(f"measuring {checkpoint.id} {number}", highlight=False, soft_wrap=True)
            measure_checkpoint(run, checkpoint, chosen, made)
            _note_measured(run, checkpoint, 1)
    else:
        n_stages = {name: len(some) + any(stage.opens for stage in some) for name, some in stages.items()}
        jobs = [Job(name, _measured_apart, (run.folder, one), n_stages[name]) for name, one in todo.items()]
        what = f"{len(todo)} of {len(checkpoints)} checkpoints, {at_once} at once"
        console.print(f"measuring {what}", highlight=False, soft_wrap=True)
        with closing(run_jobs(jobs, at_once=at_once, description="measuring")) as ended:
            for name, _ in ended:
                _note_measured(run, todo[name], at_once)
    _take_verdicts(run, checkpoints)
    compare(run, checkpoints, chosen, made, at_once=_at_once(processes, checkpoints))


def _at_once(processes: int, targets: Sequence[Checkpoint]) -> int:
    """Processes to measure these checkpoints in: what was asked for, or what is likely to be best."""
    if len(targets) < 2:
        return 1
    return min(processes, len(targets)) or how_many(len(targets), bytes_each=max(map(bytes_to_hook, targets)))


def _measured_apart(folder: Path, checkpoint: Checkpoint, around: Around) -> None:
    """A checkpoint measured in a process of its own, with the prompts and attack cases that the run has by now."""
    run = Run.open(folder)
    chosen = asked(run.recipe)
    measure_checkpoint(run, checkpoint, chosen, _cases(run, run.start(), chosen), around=around)


def _note_measured(run: Run, checkpoint: Checkpoint, at_once: int) -> None:
    run.took(f"measure {checkpoint.id}", float(timings(run, checkpoint)["seconds"].sum()))
    _take_verdicts(run, [checkpoint])
    run.update({"at_once": {checkpoint.id: at_once}})


def _take_verdicts(run: Run, checkpoints: list[Checkpoint]) -> None:
    """Take what measured checkpoints answered into the run's tables `verdicts` and `rates`, beside evaluations."""
    parts = [part for c in checkpoints if len(part := tables.read("verdicts", run.measurements(c)))]
    if parts:
        labels = labelling.labels_in(run.folder)
        evaluation_tables.keep(pd.concat(parts, ignore_index=True), run.measurements(), labels)
