"""Checkpoints on benchmarks: answers, judges' verdicts, rates with intervals, and what changed between checkpoints.

In a notebook:

    import mechrefusal as mr
    suites = [mr.evaluation.read_suite("xstest=xstest_prompts.csv"), mr.evaluation.read_suite("builtin")]
    evaluated = mr.study.evaluate("checkpoints/demo", suites, intervene=["ablate:best"])
    evaluated.rates                                      # by suite, side, category, judge; n and 95% intervals
    evaluated.differences                                # between checkpoints, on the same prompts

It measures: nothing here changes or writes weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from mechrefusal import causal, prompts, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, judged
from mechrefusal.evaluation.metrics import NONE
from mechrefusal.evaluation.suites import Suite, require_distinct
from mechrefusal.files import one_at_a_time, require_writable
from mechrefusal.models import Checkpoint, Placed, bytes_to_hook
from mechrefusal.progress import say
from mechrefusal.prompts import ChatSettings
from mechrefusal.study import evaluation_tables, labelling
from mechrefusal.study.checkpoints import Source, checkpoints_of, refusal_judge
from mechrefusal.study.interventions import NamedIntervention
from mechrefusal.study.run import Run
from mechrefusal.study.selection import choose_prompts
from mechrefusal.study.suite_answers import FOLDER, Asking
from mechrefusal.study.table_rows import SIDES
from mechrefusal.workers import Workers
from mechrefusal.workers import run as run_units
from mechrefusal.workers.settings import SLURM


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation gave: tables `verdicts`, `rates`, `suite_differences`, `answer_losses`, `judge_agreement` and
    `leaks` of the study (see `mechrefusal.tables`), and the checkpoints that could not be intervened on, with the
    reason. `verdicts` and `rates` hold what was judged before too, the study's own suites among it.
    """

    verdicts: pd.DataFrame
    rates: pd.DataFrame
    differences: pd.DataFrame
    losses: pd.DataFrame
    agreement: pd.DataFrame
    leaks: pd.DataFrame
    skipped: tuple[str, ...] = ()


def evaluate(
    source: Source,
    suites: Sequence[Suite],
    *,
    judges: Sequence[Judge] = (),
    intervene: Sequence[str] = (),
    checkpoints: Sequence[str] = (),
    max_new_tokens: int = 128,
    out: Path | str | None = None,
    strict: bool = False,
    seed: int = 0,
    chat: ChatSettings | None = None,
    workers: Workers | int = 1,
    placed: Placed | None = None,
) -> Evaluated:
    """Answer every suite at every checkpoint, judge the answers, and compare the checkpoints.

    Answers are greedy, and kept in `<out>/evaluations/` batch by batch: a killed evaluation continues, another judge
    does not ask again. Tables are kept in `<out>/measurements/`, where verdicts of other suites stay.

    Args:
        source: a run or its folder (all its checkpoints), one checkpoint of a run (RUN/sft/step-00050), any model.
        judges: by default the judge of refusal that the run measures by. Judges of harm may stand beside it.
        intervene: also answer under these, one after another: `ablate:carrier`, `ablate:best` (the best candidate where
            there is no carrier), `ablate:random`, `ablate:FILE`, and `add:DIRECTION:COEFFICIENT`, at the direction's
            layer; see `NamedIntervention`. A checkpoint without such a direction is left out of that intervention, and
            named.
        checkpoints: ids of a run's checkpoints (`base-step-00000`, ...); none: all.
        max_new_tokens: longest answer.
        out: folder; by default that of the run. Without a run and without it nothing is kept.
        strict: refuse to evaluate on prompts that the run trained on or chose its directions by.
        chat: how a model is asked that belongs to no run (`prompts.ChatSettings`): thinking or not, and for how long.
        workers: who answers, a checkpoint at a time, as in `pipeline.measure`. This process judges.
        placed: where models lie and in which numbers, fields of a `models.Placement`; by default
            as the run's recipe says.

    Raises:
        MechrefusalError: no suite, a name of a suite or judge twice, a suite with the name of one that measurements
            ask, judges of harm without a harmful prompt, an unknown checkpoint or intervention, a run without
            checkpoints; with `strict`, leaked prompts; a prompt that does not fit the context. Nothing is answered
            then.
    """
    require_distinct(list(suites))
    if taken := [suite.name for suite in suites if suite.name in SIDES]:
        raise MechrefusalError(f"suite '{taken[0]}' has the name of one that measurements ask: give it another name")
    workers = Workers.of(workers)
    workers.require()
    if max_new_tokens < 1:
        raise MechrefusalError(f"max_new_tokens is {max_new_tokens}; give 1 at least")
    run, chosen = checkpoints_of(source, checkpoints, chat, placed)
    interventions = [NamedIntervention.parse(spec) for spec in dict.fromkeys(intervene)]
    judges = list(judges) or [refusal_judge(run)]
    evaluation_tables.require_judges(judges, suites)
    leaks = _leaks(run, suites, strict=strict)
    folder = Path(out).expanduser() if out is not None else run.folder if run is not None else None
    if folder is not None:
        require_writable(folder / FOLDER, folder / "measurements", folder=True)
    elif workers.executor == SLURM:
        raise MechrefusalError("jobs of a queue need a folder that they all see: give one with out")
    labels = labelling.labels_in(folder) if folder is not None else None
    with TemporaryDirectory() as nowhere:
        root = folder if folder is not None else Path(nowhere)
        under, skipped = _under(run, chosen, interventions, seed)
        asking = Asking(root, chosen, suites, under, max_new_tokens)
        asking.require_room()
        skipped += [
            f"loss of the base's answers at {unit}: its prompts are other tokens" for unit, _ in asking.other_tokens
        ]
        for line in skipped:
            say(f"left out: {line}")
        n, of = len(chosen), len(suites)
        say(f"evaluating {n} checkpoint{'s' * (n > 1)} on {of} suite{'s' * (of > 1)}")
        for work in (asking, asking.of_losses()):
            run_units(work, workers, bytes_each=max(map(bytes_to_hook, chosen)))
        verdicts_anew = judged(asking.completions(), judges)
        tables_in = root / "measurements"
        with one_at_a_time(tables_in / "verdicts.parquet"):
            changed = evaluation_tables.changed(tables_in, {point.id: point.weights for point in chosen})
            verdicts, rates = evaluation_tables.keep(verdicts_anew, tables_in, labels)
        losses = evaluation_tables.relative(asking.losses_of_base())
        evaluated = Evaluated(
            verdicts=verdicts,
            rates=rates,
            differences=evaluation_tables.differences(verdicts),
            losses=evaluation_tables.united("answer_losses", losses, tables_in, changed),
            agreement=evaluation_tables.agreements(verdicts),
            leaks=evaluation_tables.united("leaks", leaks, tables_in),
            skipped=tuple(skipped),
        )
        tables.write(evaluated.differences, "suite_differences", tables_in)
        tables.write(evaluated.losses, "answer_losses", tables_in)
        tables.write(evaluated.agreement, "judge_agreement", tables_in)
        tables.write(evaluated.leaks, "leaks", tables_in)
        return evaluated


def _under(
    run: Run | None, checkpoints: Sequence[Checkpoint], interventions: Sequence[NamedIntervention], seed: int
) -> tuple[dict[str, dict[str, causal.Intervention | None]], list[str]]:
    """What each checkpoint answers under, and what is left out, with the reason."""
    under: dict[str, dict[str, causal.Intervention | None]] = {each.id: {NONE: None} for each in checkpoints}
    skipped = []
    for checkpoint in checkpoints:
        for named in interventions:
            try:
                under[checkpoint.id][named.spec] = named.at(run, checkpoint, seed=seed)
            except MechrefusalError as error:
                if len(checkpoints) == 1:
                    raise
                skipped.append(f"{named.spec} at {checkpoint.id}: {error}")
    return under, skipped


def _leaks(run: Run | None, suites: Sequence[Suite], *, strict: bool) -> pd.DataFrame:
    """What the suites share with what the run trained on and chose its directions by (table `leaks`)."""
    if run is None:
        return tables.frame("leaks", [])
    used = choose_prompts(run.recipe).used()
    leaks = prompts.leaks({**used, **{suite.name: suite.prompt_set() for suite in suites}})
    leaks = leaks[leaks["set_a"].isin(used) & ~leaks["set_b"].isin(used)].reset_index(drop=True)
    if len(leaks):
        rows = leaks.head(3).itertuples()
        shown = "; ".join(f"{row.id_b} of {row.set_b} ({row.kind}: {row.id_a} of {row.set_a})" for row in rows)
        n_leaked = len(leaks[["set_b", "id_b"]].drop_duplicates())
        line = f"{n_leaked} prompts of the suites are among those that '{run.folder}' used, such as {shown}"
        if strict:
            raise MechrefusalError(f"{line}; take them out of the suite, or evaluate without strict")
        say(f"{line}; they are in table 'leaks'")
    return tables.frame("leaks", leaks)
