"""The measuring of a run: attack cases, every checkpoint, and what sets them side by side."""

from dataclasses import replace

import pandas as pd

from mechrefusal import tables
from mechrefusal.attacks import AttackCase
from mechrefusal.evaluation.paired import BASE
from mechrefusal.files import checkpoint_id, one_at_a_time, sweep
from mechrefusal.models import Checkpoint, bytes_to_hook
from mechrefusal.progress import say
from mechrefusal.study import evaluation_tables, kinds, labelling
from mechrefusal.study.caching import Made, Written, file_hash
from mechrefusal.study.protocol import inputs_across, inputs_of, timings
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts, choose_prompts
from mechrefusal.study.stages import LAST, prompts_asked
from mechrefusal.study.starting import check, lock, open_given
from mechrefusal.study.units import CASES_STAGE, AttackCases, Between, Measuring, SideBySide
from mechrefusal.workers import Workers
from mechrefusal.workers import run as run_units
from mechrefusal.workers.coordinator import at_once
from mechrefusal.workers.settings import DEBUG


def cases(run: Run) -> list[AttackCase]:
    """Fixed-source attack cases against the base model, or the first checkpoint where there is none; made once."""
    open_given(run)
    return _cases(run, choose_prompts(run.recipe), Workers()).read()


def _cases(run: Run, prompts: StudyPrompts, workers: Workers) -> AttackCases:
    """The attack cases, which are made if they are not there."""
    work = AttackCases.of(run, run.start(), prompts)
    work.require_whole()
    run_units(work, workers, on_finished=lambda unit: _note_time(run, CASES_STAGE, unit, CASES_STAGE))
    return work


def measure(run: Run, *, workers: Workers | int = 1) -> None:
    """Measure every checkpoint that has not been, then compare them.

    Args:
        workers: who measures: `Workers("slurm", 8, {"gpus_per_node": 1})`, or so many of this machine; 0: as many as
            are likely to be faster and fit into memory. With more than one on this machine, a script must guard its
            start (`if __name__ == "__main__"`), as Python's multiprocessing asks. What is measured does not hang on it
            but for rounding. Whoever gives the same call on another machine that has the folder joins.

    Raises:
        MechrefusalError: what is wrong with the run, before anything begins; units that failed, when all others are
            finished (`workers.run`).
    """
    workers = Workers.of(workers)
    workers.require()
    prompts = check(run.recipe)
    labelling.labels_in(run.folder)  # a faulty sheet is named before anything is measured
    sweep(run.folder)
    with one_at_a_time(run.folder / "start"):
        lock(run, prompts)
        if not run.recipe.arms:
            open_given(run)
    run.start()
    checkpoints = run.checkpoints()
    sources = {name: entry.get("source", "") for name, entry in run.manifest["checkpoints"].items()}
    if not run.recipe.arms and run.recipe.model:
        sources[checkpoint_id(BASE, 0)] = run.recipe.model
    tables.write(kinds.table(checkpoints, prompts.direction.harmful, sources), "checkpoints", run.measurements())
    cases_of_run = _cases(run, prompts, workers)
    attacks = cases_of_run.read()
    for checkpoint in checkpoints:
        cases_of_run.require_room(attacks, checkpoint, f"the context of {checkpoint.id}")
    stamps = prompts_asked(prompts, attacks)
    needed = {checkpoint.id: inputs_of(run, checkpoint, stamps) for checkpoint in checkpoints}
    bytes_each = max(map(bytes_to_hook, checkpoints))
    work = Measuring(run, prompts, needed, checkpoints, attacks)
    work.require_whole()
    if n := sum(map(bool, work.left().values())):
        work = replace(work, at_once=at_once(workers, n, bytes_each=bytes_each))
        beside = f", {work.at_once} at once" if work.at_once > 1 else ""
        say(f"measuring {n} of {len(checkpoints)} checkpoints{beside}")
    by_id = {checkpoint.id: checkpoint for checkpoint in checkpoints}
    noting = lambda unit: _note_measured(run, by_id[unit], checkpoints)  # noqa: E731
    run_units(work, workers, bytes_each=bytes_each, on_finished=noting)
    for checkpoint in checkpoints:
        if f"measure {checkpoint.id}" not in run.manifest.get("stages", {}):  # finished by a job, and nobody watched
            _note_measured(run, checkpoint, checkpoints)
    _take_verdicts(run, checkpoints)
    across = inputs_across(run, checkpoints, stamps, needed)
    between = Between.of(run, prompts, checkpoints, across)
    between.require_whole()
    run_units(between, workers, bytes_each=bytes_each)
    tables_of_all = SideBySide.of(run, prompts, checkpoints, across)
    tables_of_all.require_whole()
    run_units(tables_of_all, workers if workers.executor == DEBUG else Workers(retries=0))


def _note_measured(run: Run, checkpoint: Checkpoint, checkpoints: list[Checkpoint]) -> None:
    run.took(f"measure {checkpoint.id}", float(timings(run, checkpoint)["seconds"].sum()))
    _take_verdicts(run, checkpoints)


def _note_time(run: Run, stage: str, key: str, told: str) -> None:
    if (unit := run.finished(stage, key)) is not None:
        run.took(told, unit.seconds)


def _take_verdicts(run: Run, checkpoints: list[Checkpoint]) -> None:
    """Take what measured checkpoints answered into the run's tables `verdicts` and `rates`, beside evaluations."""
    with one_at_a_time(run.measurements() / "verdicts.parquet"):  # others may do the same, and have seen less
        _take_verdicts_alone(run, checkpoints)


def _take_verdicts_alone(run: Run, checkpoints: list[Checkpoint]) -> None:
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
