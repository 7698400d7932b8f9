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
from mechrefusal.models import Checkpoint, bytes_to_hook, load_causal_lm, load_tokenizer
from mechrefusal.processes import Around, Job, how_many
from mechrefusal.processes import run as run_jobs
from mechrefusal.progress import say
from mechrefusal.prompts import PromptSet
from mechrefusal.study import evaluation_tables, kinds, labelling
from mechrefusal.study.caching import Made, Written, file_hash
from mechrefusal.study.checkpoints import require_room
from mechrefusal.study.protocol import Remaining, compare, remaining, timings
from mechrefusal.study.protocol import measure as measure_checkpoint
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts, choose_prompts
from mechrefusal.study.stages import LAST, prompts_asked
from mechrefusal.study.starting import check, lock, open_given


def cases(run: Run) -> list[AttackCase]:
    """Fixed-source attack cases against the base model, or the first checkpoint where there is none; made once."""
    open_given(run)
    return _cases(run, run.start(), choose_prompts(run.recipe))


def _cases(run: Run, base: Checkpoint, prompts: StudyPrompts) -> list[AttackCase]:
    settings, seed = run.recipe.attack, run.recipe.training.seed
    if settings.n_cases == 0 or not settings.methods:
        return []
    paths = {method: run.folder / "cases" / f"{method}-base.parquet" for method in settings.methods}
    behaviours = prompts.harmful.take(settings.n_cases)

    def make() -> Made:
        attacks: list[AttackCase] = []
        with run.timed("attack cases"):
            model, tokenizer = load_causal_lm(base)
            for method, path in paths.items():
                how = getattr(settings, method)
                attacks += make_cases(model, tokenizer, behaviours, how, seed=seed, source=base.weights, path=path)
            _require_room_for_cases(run, attacks, base, "the model's context")
            del model
        given_back()
        costs = tables.frame("cases", cost_table(attacks).assign(source=base.id))
        return Made({**dict.fromkeys(paths.values(), Written()), run.measurements() / "cases.parquet": costs})

    inputs = {
        "version": 1,
        "weights": base.computed,
        "behaviours": [behaviours.ids, behaviours.texts, behaviours.with_targets().targets],
        "settings": {method: asdict(getattr(settings, method)) for method in settings.methods},
        "seed": seed,
    }
    run.cached("attack cases", base.id, inputs, make)
    return [case for path in paths.values() for case in read_cases(path, source=base.weights)]


def _require_room_for_cases(run: Run, attacks: Sequence[AttackCase], checkpoint: Checkpoint, what: str) -> None:
    """Cases are made against one checkpoint and asked of all, whose contexts may be smaller."""
    if texts := list(dict.fromkeys(case.prompt for case in attacks)):
        prompts, n = PromptSet.from_texts("attack cases", texts), run.recipe.measuring.max_new_tokens
        require_room(checkpoint.path, load_tokenizer(checkpoint), prompts, max_new_tokens=n, what=what)


def measure(run: Run, *, processes: int = 1) -> None:
    """Measure every checkpoint that has not been, then compare them.

    Args:
        processes: that measure at once, each a checkpoint; 0: as many as are likely to be faster and fit into memory
            (see `processes.how_many`). With more than one, a script must guard its start (`if __name__ == "__main__"`),
            as Python's multiprocessing asks. What is measured does not hang on it but for rounding.
    """
    if processes < 0:
        raise MechrefusalError(f"processes is {processes}; give how many measure at once, or 0 to have it chosen")
    prompts = check(run.recipe)
    labelling.labels_in(run.folder)  # a faulty sheet is named before anything is measured
    sweep(run.folder)
    lock(run, prompts)
    if not run.recipe.arms:
        open_given(run)
    start, checkpoints = run.start(), run.checkpoints()
    sources = {name: entry.get("source", "") for name, entry in run.manifest["checkpoints"].items()}
    if not run.recipe.arms and run.recipe.model:
        sources[checkpoint_id(BASE, 0)] = run.recipe.model
    tables.write(kinds.table(checkpoints, prompts.direction.harmful, sources), "checkpoints", run.measurements())
    attacks = _cases(run, start, prompts)
    for checkpoint in checkpoints:
        _require_room_for_cases(run, attacks, checkpoint, f"the context of {checkpoint.id}")
    stamps = prompts_asked(prompts, attacks)
    work = {checkpoint: remaining(run, checkpoint, stamps) for checkpoint in checkpoints}
    todo = [checkpoint for checkpoint in checkpoints if work[checkpoint].stages]
    at_once = _at_once(processes, todo)
    if at_once == 1:
        for checkpoint in todo:
            number = f"({checkpoints.index(checkpoint) + 1} of {len(checkpoints)})"
            say(f"measuring {checkpoint.id} {number}")
            measure_checkpoint(run, checkpoint, prompts, attacks, todo=work[checkpoint])
            _note_measured(run, checkpoint, checkpoints, at_once)
    else:
        by_id = {checkpoint.id: checkpoint for checkpoint in todo}
        jobs = [
            Job(c.id, _measured_apart, (run.folder, c, left), len(left.stages) + any(s.opens for s in left.stages))
            for c, left in work.items()
            if left.stages
        ]
        what = f"{len(todo)} of {len(checkpoints)} checkpoints, {at_once} at once"
        say(f"measuring {what}")
        with closing(run_jobs(jobs, at_once=at_once, description="measuring")) as ended:
            for name, _ in ended:
                _note_measured(run, by_id[name], checkpoints, at_once)
    _take_verdicts(run, checkpoints)
    needed = {checkpoint.id: each.inputs for checkpoint, each in work.items()}
    compare(run, checkpoints, prompts, stamps, needed, at_once=_at_once(processes, checkpoints))


def _at_once(processes: int, targets: Sequence[Checkpoint]) -> int:
    """Processes to measure these checkpoints in: what was asked for, or what is likely to be best."""
    if len(targets) < 2:
        return 1
    return min(processes, len(targets)) or how_many(len(targets), bytes_each=max(map(bytes_to_hook, targets)))


def _measured_apart(folder: Path, checkpoint: Checkpoint, todo: Remaining, around: Around) -> None:
    """A checkpoint measured in a process of its own, with the prompts and attack cases that the run has by now."""
    run = Run.open(folder)
    prompts = choose_prompts(run.recipe)
    attacks = _cases(run, run.start(), prompts)
    measure_checkpoint(run, checkpoint, prompts, attacks, todo=todo, around=around)


def _note_measured(run: Run, checkpoint: Checkpoint, checkpoints: list[Checkpoint], at_once: int) -> None:
    run.took(f"measure {checkpoint.id}", float(timings(run, checkpoint)["seconds"].sum()))
    _take_verdicts(run, checkpoints)
    run.update({"at_once": {checkpoint.id: at_once}})


def _take_verdicts(run: Run, checkpoints: list[Checkpoint]) -> None:
    """Take what measured checkpoints answered into the run's tables `verdicts` and `rates`, beside evaluations."""
    measured = {c: unit.stamp for c in checkpoints if (unit := run.finished(LAST, c.id)) is not None}

    def make() -> Made:
        parts = [part for c in measured if len(part := tables.read("verdicts", run.measurements(c)))]
        if parts:
            labels = labelling.labels_in(run.folder)
            evaluation_tables.keep(pd.concat(parts, ignore_index=True), run.measurements(), labels)
        names = ("verdicts", "rates") if parts else ()
        return Made({run.measurements() / f"{name}.parquet": Written(shared=True) for name in names})

    sheet = run.folder / labelling.FILE
    stamps = {checkpoint.id: [checkpoint.weights, stamp] for checkpoint, stamp in measured.items()}
    labels = file_hash(sheet) if sheet.is_file() else None
    run.cached("verdicts and rates", "", {"version": 1, "measured": stamps, "labels": labels}, make)
