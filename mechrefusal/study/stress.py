"""Adaptive stress tests: attacks made anew against each checkpoint, by step, and replayed at all the others.

In a notebook:

    import mechrefusal as mr
    from mechrefusal.study.stress import stress

    own, methods = mr.prompts.builtin().evaluation.take(24), {"gcg": mr.attacks.GCGSettings(steps=100)}
    found = stress(mr.study.open("checkpoints/demo"), [], own.harmful, methods, harmless=own.harmless)
    mr.report.figures.stress_curves(found.curve)         # success by attack step, a line a checkpoint
    mr.report.figures.stress_matrix(found.transfer)      # whose attacks succeed where
    mr.report.figures.stress_shares(found.control)       # attacks that fail: robust, or is the suffix refused?
    found.differences                                    # of every two checkpoints, paired by behaviour

It measures: nothing here changes or writes weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mechrefusal import tables
from mechrefusal.attacks import AttackCase, cost_table
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, metrics
from mechrefusal.evaluation.judges.scoring import ScoringJudge
from mechrefusal.models import Checkpoint
from mechrefusal.prompts import PromptSet
from mechrefusal.statistics import intervals
from mechrefusal.study import stress_control
from mechrefusal.study.judging import refusal_judge
from mechrefusal.study.run import Run
from mechrefusal.study.stress_answers import NO_STEP, NONE, Answered, Plan, Search, answered, curve_steps
from mechrefusal.study.stress_twins import Twins
from mechrefusal.study.stress_verdicts import Judged, judged

FOLDER = "stress"

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
        own = {"": self.curve, "_transfer": self.transfer, "_control": self.control, "_differences": self.differences}
        for name, table in own.items():
            tables.write(table, f"stress{name}", Path(folder))


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

    Raises:
        MechrefusalError: no behaviour or method, an unknown checkpoint, a name twice, harmless prompts that are no
            twins, a prompt that leaves no room for its answer; a case that cannot be made, named with its checkpoint.
            What was finished is kept.
    """
    chosen = _chosen(run, checkpoints)
    asked = list(judges) or [refusal_judge(run)]
    if folder is None and run is None:
        raise MechrefusalError("without a run nothing says where cases and answers are kept: give a folder")
    kept = Path(folder) if folder is not None else run.folder / FOLDER  # type: ignore[union-attr]
    plan = Plan(behaviours, dict(methods), seed, max_new_tokens, kept, Twins.of(behaviours, harmless))
    if again := sorted({judge.name for judge in asked if [one.name for one in asked].count(judge.name) > 1}):
        raise MechrefusalError(f"judge '{again[0]}' is given twice: their rates could not be told apart")
    found = answered(plan, chosen)
    on_curve, replayed = _curve_points(plan, chosen, found), _transfer_points(plan, chosen, found)
    answers, requests = pd.concat([on_curve, replayed])[["place", "completion"]], dict(enumerate(plan.requests))
    successes = {judge.name: judged(judge, answers, requests) for judge in asked}
    outcomes = stress_control.outcomes(plan, chosen, found, asked, successes, otherwise=refusal_judge(run))
    costs = [
        cost_table(made).assign(source=checkpoint_id, method=method)
        for (checkpoint_id, method), made in found.cases.items()
    ]
    return Stressed(
        tables.frame("stress", list(_rates(on_curve, _CURVE, successes, means=("loss", "forward_tokens")))),
        tables.frame("stress_transfer", list(_rates(replayed, _TRANSFER, successes))),
        tables.frame("cases", pd.concat(costs, ignore_index=True)),
        found.cases,
        stress_control.control(outcomes),
        stress_control.differences(outcomes),
    )


def _chosen(run: Run | None, wanted: Sequence[str | Checkpoint]) -> list[Checkpoint]:
    if run is None:
        alone = [one for one in wanted if isinstance(one, Checkpoint)]
        if not alone or len(alone) < len(wanted):
            raise MechrefusalError("without a run there are no checkpoints by id: give Checkpoints to attack")
        named = [one.id for one in alone]
        if again := sorted({name for name in named if named.count(name) > 1}):
            raise MechrefusalError(
                f"checkpoint '{again[0]}' is given twice: give each once, or open them with another arm or step"
            )
        return alone
    there = {point.id: point for point in run.checkpoints()}
    if not there:
        raise MechrefusalError(f"run '{run.folder}' has no checkpoints yet; train it first: mechrefusal train")
    ids = [one.id if isinstance(one, Checkpoint) else one for one in wanted] or list(there)
    if unknown := [one for one in ids if one not in there]:
        raise MechrefusalError(f"run '{run.folder}' has no checkpoint '{unknown[0]}'; it has {', '.join(there)}")
    if again := sorted({one for one in ids if ids.count(one) > 1}):
        raise MechrefusalError(f"checkpoint '{again[0]}' is given twice; give each once")
    for one in wanted:
        if isinstance(one, Checkpoint) and one.weights != there[one.id].weights:
            raise MechrefusalError(
                f"checkpoint '{one.id}' holds weights {one.weights}, that of '{run.folder}' {there[one.id].weights}; "
                "give checkpoints of this run"
            )
    return [there[one] for one in ids]


def _curve_points(plan: Plan, checkpoints: Sequence[Checkpoint], found: Answered) -> pd.DataFrame:
    """One row a checkpoint, method, judged step and case."""
    return pd.DataFrame(
        {
            "arm": point.arm,
            "step": point.step,
            "method": method,
            "attack_step": step,
            "place": place,
            "completion": found.replies[point.id, point.id, method][case.history_prompts[step]],
            "loss": case.history[step],
            "forward_tokens": case.history_tokens[step],
        }
        for point in checkpoints
        for method, settings in plan.methods.items()
        for step in curve_steps(settings.steps)
        for place, case in enumerate(found.cases[point.id, method])
    )


def _transfer_points(plan: Plan, checkpoints: Sequence[Checkpoint], found: Answered) -> pd.DataFrame:
    """One row a source, target, method and case, and one a target and unattacked behaviour."""
    rows: list[dict] = []
    for target in checkpoints:
        asked: list[tuple[str, str, int, str, list[str]]] = [(NONE, NONE, NO_STEP, NONE, plan.behaviours.texts)]
        asked += [
            (source.id, source.arm, source.step, method, [case.prompt for case in found.cases[source.id, method]])
            for source in checkpoints
            for method in plan.methods
        ]
        for source_id, arm, step, method, texts in asked:
            known = {"arm_source": arm, "step_source": step, "arm_target": target.arm, "step_target": target.step}
            given = found.replies[target.id, source_id, method]
            rows += [
                {**known, "method": method, "place": place, "completion": given[text]}
                for place, text in enumerate(texts)
            ]
    return pd.DataFrame(rows)


def _rates(
    points: pd.DataFrame,
    by: list[str],
    successes: Mapping[str, Judged],
    *,
    means: Sequence[str] = (),
) -> Iterator[dict]:
    """Success of every group of points, judge by judge, and the means of columns."""
    for judge, known in successes.items():
        with_success = points.assign(success=known.of(metrics.SUCCESS, points["place"], points["completion"]))
        for keys, own in with_success.groupby(by, sort=False):
            values = own["success"].dropna()
            yield {
                **dict(zip(by, keys, strict=True)),
                "judge": judge,
                **vars(intervals.rate(int(values.sum()), len(values))),
                "nulls": int(own["success"].isna().sum()),
                **{name: float(own[name].mean()) for name in means},
            }
