"""Adaptive stress tests: attacks made anew against each checkpoint, by step, and replayed at all the others.

In a notebook:

    import mechrefusal as mr
    from mechrefusal.study.stress import stress

    split, methods = mr.prompts.builtin().evaluation.take(24), {"gcg": mr.attacks.GCGSettings(steps=100)}
    stressed = stress(mr.study.open("checkpoints/demo"), [], split.harmful, methods, harmless=split.harmless)
    mr.report.figures.stress_curves(stressed.curve)      # success by attack step, a line a checkpoint
    mr.report.figures.stress_matrix(stressed.transfer)   # whose attacks succeed where
    mr.report.figures.stress_shares(stressed.control)    # attacks that fail: robust, or is the suffix refused?
    stressed.differences                                   # of every two checkpoints, paired by behaviour

It measures: nothing here changes or writes weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mechrefusal import tables
from mechrefusal.attacks import AttackCase, cost_table
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, metrics
from mechrefusal.evaluation.judges.scoring import ScoringJudge
from mechrefusal.evaluation.suites import Suite
from mechrefusal.files import require_writable
from mechrefusal.models import Checkpoint, Placed
from mechrefusal.prompts import ChatSettings, PromptSet
from mechrefusal.study import stress_control
from mechrefusal.study.checkpoints import Source, checkpoints_of, chosen, refusal_judge
from mechrefusal.study.recipe import AttackSettings
from mechrefusal.study.run import Run
from mechrefusal.study.stress_answers import NO_STEP, NONE, Answers, Plan, Search, curve_steps
from mechrefusal.study.stress_control import Judged, judged
from mechrefusal.study.stress_twins import Twins, attacked
from mechrefusal.study.stress_units import answered
from mechrefusal.workers import Workers

FOLDER = "stress"
ATTACKS = ("gcg", "autodan")
"""Attacks that can be made anew against a checkpoint."""

STRESS_TABLES = ("stress", "stress_transfer", "stress_control", "stress_differences")
"""Tables that `Stressed.write` writes, in the order of its fields `curve`, `transfer`, `control`, `differences`."""

_CURVE = ["arm", "step", "method", "attack_step"]
_TRANSFER = ["arm_source", "step_source", "arm_target", "step_target", "method"]


@dataclass(frozen=True)
class Stressed:
    """What stress tests gave.

    Fields:
        curve, transfer: tables `stress` and `stress_transfer` of the study (see `mechrefusal.tables`).
        costs: table `cases`, with the checkpoint's id as `source` and the method's name here as `method`.
        cases: the attack cases of each (checkpoint id, method), in the order of the behaviours.
        control, differences: tables `stress_control` (empty without harmless twins) and `stress_differences`.
    """

    curve: pd.DataFrame
    transfer: pd.DataFrame
    costs: pd.DataFrame
    cases: Mapping[tuple[str, str], tuple[AttackCase, ...]]
    control: pd.DataFrame
    differences: pd.DataFrame

    def write(self, folder: Path | str) -> None:
        """Write the four tables `stress...` to `folder`, in place of those that stand there."""
        for name, table in zip(STRESS_TABLES, (self.curve, self.transfer, self.control, self.differences), strict=True):
            tables.write(table, name, Path(folder))


def stress(
    run: Run | None,
    checkpoints: Sequence[str | Checkpoint],
    behaviours: PromptSet,
    methods: Mapping[str, Search],
    judges: Sequence[Judge | ScoringJudge] = (),
    *,
    harmless: PromptSet | None = None,
    seed: int = 0,
    max_new_tokens: int = 128,
    folder: Path | str | None = None,
    workers: Workers | int = 1,
) -> Stressed:
    """Attack every behaviour anew against each checkpoint, and replay what was found at all of them.

    With `harmless`, the suffix of each case is put behind the harmless twin of its behaviour, and the checkpoint that
    it was made against is asked the twin without and with it: a suffix that is refused as such is no robustness. See
    `mechrefusal.study.stress_control` for what is counted.

    A case's success at an attack step is that of the prompt with the lowest loss by then, the one that the attack would
    hand over if it stopped there. It is not cumulative: a prompt that succeeded may give way to one that fails. The
    last step is the diagonal of the transfer. What counts as success is `mechrefusal.evaluation.metrics`' to say; the
    judges are shown the behaviour, not the attack around it.

    Cases are kept as `<folder>/<method>-<weights>.parquet`, answers in `<folder>/answers/`: what was killed continues,
    and with another judge, checkpoint or method only what is new is attacked and answered. Each checkpoint is loaded
    to be attacked and once more to be asked the others' cases; one model is in memory at a time.

    Args:
        run: whose checkpoints; None for models of no run, which are given as Checkpoints, with a folder.
        checkpoints: ids of checkpoints of the run (or these themselves); none: all.
        behaviours: harmful requests.
        methods: settings of each attack, by the name that it gets in tables and files.
        judges: by default the judge of refusal that the run measures by. Judges of harm may stand beside it;
            one that publishes no threshold has no success: all its answers are nulls.
        harmless: prompts whose column `twin` has the value of their behaviour's, as in the two sides of
            `prompts.builtin().evaluation`; behaviours without a twin are attacked and have no control, nor have attacks
            that add no suffix.
        seed: of the attacks.
        max_new_tokens: longest answer.
        folder: by default `stress` in that of the run.
        workers: who attacks and answers, a checkpoint at a time, as in `pipeline.measure`.

    Raises:
        MechrefusalError: no behaviour or method, an unknown checkpoint, a name twice, harmless prompts that are no
            twins, a prompt that leaves no room for its answer; a case that cannot be made, named with its checkpoint.
            What was finished is kept.
    """
    targets = chosen(run, checkpoints)
    judges = list(judges) or [refusal_judge(run)]
    if folder is None and run is None:
        raise MechrefusalError("without a run nothing says where cases and answers are kept: give a folder")
    folder = Path(folder) if folder is not None else run.folder / FOLDER  # type: ignore[union-attr]
    plan = Plan(behaviours, dict(methods), seed, max_new_tokens, folder, Twins.of(behaviours, harmless))
    names = [judge.name for judge in judges]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise MechrefusalError(f"judge '{again[0]}' is given twice: their rates could not be told apart")
    answers = answered(plan, targets, workers)
    on_curve, replayed = _curve_points(plan, targets, answers), _transfer_points(plan, targets, answers)
    shown, requests = pd.concat([on_curve, replayed])[["place", "completion"]], dict(enumerate(plan.requests))
    successes = {judge.name: judged(judge, shown, requests) for judge in judges}
    outcomes = stress_control.outcomes(plan, targets, answers, judges, successes, otherwise=refusal_judge(run))
    costs = [
        cost_table(cases).assign(source=source, method=method) for (source, method), cases in answers.cases.items()
    ]
    return Stressed(
        tables.frame("stress", list(_rates(on_curve, _CURVE, successes, means=("loss", "forward_tokens")))),
        tables.frame("stress_transfer", list(_rates(replayed, _TRANSFER, successes))),
        tables.frame("cases", pd.concat(costs, ignore_index=True)),
        answers.cases,
        stress_control.control(outcomes),
        stress_control.differences(outcomes),
    )


def stressed(
    source: Source,
    suites: Sequence[Suite],
    methods: Sequence[str],
    *,
    judges: Sequence[Judge] = (),
    checkpoints: Sequence[str] = (),
    n: int = 8,
    steps: int = 0,
    max_new_tokens: int = 128,
    out: Path | str | None = None,
    seed: int = 0,
    chat: ChatSettings | None = None,
    workers: Workers | int = 1,
    placed: Placed | None = None,
) -> Stressed:
    """Attack harmful prompts of the suites anew against each checkpoint; success by step, and at all other checkpoints.

    Where a suite holds the harmless twin of a prompt (`builtin`), the suffix that was found is put behind the twin too.

    Args:
        source, judges, checkpoints, max_new_tokens, out, chat, workers, placed: as in `evaluate`; without a run, `out`
            is needed.
        methods: gcg, autodan, with the settings of the run's recipe.
        n: harmful prompts attacked, evenly spaced over all suites; HarmBench's copyright rows are none.
        steps: of an attack; 0 for those of the recipe.

    Returns:
        The tables, which are kept beside the others.

    Raises:
        MechrefusalError: no harmful prompt, an unknown method, and what `stress` raises.
    """
    run, targets = checkpoints_of(source, checkpoints, chat, placed)
    behaviours, harmless = attacked(suites, n)
    attack = run.recipe.attack if run is not None else AttackSettings()
    if unknown := [method for method in methods if method not in ATTACKS]:
        raise MechrefusalError(f"unknown attack '{unknown[0]}': expected one of {', '.join(ATTACKS)}")
    changes = {"steps": steps} if steps else {}
    settings: dict[str, Search] = {name: replace(getattr(attack, name), **changes) for name in methods}
    if out is None and run is None:
        raise MechrefusalError(f"'{source}' belongs to no run: give a folder for cases and answers with out")
    folder = Path(out).expanduser() if out is not None else run.folder  # type: ignore[union-attr]
    require_writable(folder / FOLDER, folder / "measurements", folder=True)
    where: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "workers": workers}
    tested = stress(run, targets, behaviours, settings, judges, harmless=harmless, folder=folder / FOLDER, **where)
    tested.write(folder / "measurements")
    return tested


def _curve_points(plan: Plan, checkpoints: Sequence[Checkpoint], answers: Answers) -> pd.DataFrame:
    """One row a checkpoint, method, judged step and case."""
    return pd.DataFrame(
        {
            "arm": point.arm,
            "step": point.step,
            "method": method,
            "attack_step": step,
            "place": place,
            "completion": answers.replies[point.id, point.id, method][case.history_prompts[step]],
            "loss": case.history[step],
            "forward_tokens": case.history_tokens[step],
        }
        for point in checkpoints
        for method, settings in plan.methods.items()
        for step in curve_steps(settings.steps)
        for place, case in enumerate(answers.cases[point.id, method])
    )


def _transfer_points(plan: Plan, checkpoints: Sequence[Checkpoint], answers: Answers) -> pd.DataFrame:
    """One row a source, target, method and case, and one a target and unattacked behaviour."""
    sources = [
        (source.id, source.arm, source.step, method, [case.prompt for case in answers.cases[source.id, method]])
        for source in checkpoints
        for method in plan.methods
    ]
    return pd.DataFrame(
        {
            **dict(zip(_TRANSFER, (arm, step, target.arm, target.step, method), strict=True)),
            "place": place,
            "completion": answers.replies[target.id, source_id, method][text],
        }
        for target in checkpoints
        for source_id, arm, step, method, texts in [(NONE, NONE, NO_STEP, NONE, plan.behaviours.texts), *sources]
        for place, text in enumerate(texts)
    )


def _rates(
    points: pd.DataFrame, by: list[str], successes: Mapping[str, Judged], *, means: Sequence[str] = ()
) -> Iterator[dict]:
    """Success of every group of points, judge by judge, and the means of columns."""
    for judge, outcomes in successes.items():
        success = outcomes.of(metrics.SUCCESS, points["place"], points["completion"])
        for keys, group in points.assign(success=success).groupby(by, sort=False):
            known, averages = dict(zip(by, keys, strict=True)), {name: float(group[name].mean()) for name in means}
            yield {**known, "judge": judge, **stress_control.rate_of(group["success"]), **averages}
