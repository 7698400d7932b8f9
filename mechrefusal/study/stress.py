"""Adaptive stress tests: attacks made anew against each checkpoint, by step, and replayed at all the others.

In a notebook:

    import mechrefusal as mr
    from mechrefusal.study.stress import stress

    asked = mr.prompts.builtin().evaluation.harmful.take(16)
    found = stress(mr.study.open("checkpoints/demo"), [], asked, {"gcg": mr.attacks.GCGSettings(steps=100)})
    mr.report.figures.stress_curves(found.curve)         # success by attack step, a line a checkpoint
    mr.report.figures.stress_matrix(found.transfer)      # whose attacks succeed where

It measures: nothing here changes or writes weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mechrefusal import intervals
from mechrefusal.attacks import AttackCase, cost_table
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, RefusalJudge, metrics
from mechrefusal.evaluation.judges.scoring import ScoringJudge
from mechrefusal.models import Checkpoint
from mechrefusal.prompts import PromptSet
from mechrefusal.study import tables
from mechrefusal.study.run import Run
from mechrefusal.study.stress_answers import NO_STEP, NONE, Answered, Plan, Search, answered, curve_steps

FOLDER = "stress"

_CURVE = ["arm", "step", "method", "attack_step"]
_TRANSFER = ["arm_source", "step_source", "arm_target", "step_target", "method"]


@dataclass(frozen=True)
class Stressed:
    """What stress tests gave.

    Fields:
        curve, transfer: tables `stress` and `stress_transfer` of the study (see `mechrefusal.study.tables`).
        costs: table `cases`, with the checkpoint's id as `source` and the method's name here as `method`.
        cases: the attack cases of each (checkpoint id, method), in the order of the behaviours.
    """

    curve: pd.DataFrame
    transfer: pd.DataFrame
    costs: pd.DataFrame
    cases: Mapping[tuple[str, str], tuple[AttackCase, ...]]

    def write(self, folder: Path | str) -> None:
        """Write the tables `stress` and `stress_transfer` to `folder`, in place of those that stand there."""
        tables.write(self.curve, "stress", Path(folder))
        tables.write(self.transfer, "stress_transfer", Path(folder))


def stress(
    run: Run,
    checkpoints: Sequence[str | Checkpoint],
    behaviours: PromptSet,
    methods: Mapping[str, Search],
    judges: Sequence[Judge | ScoringJudge] = (),
    *,
    seed: int = 0,
    max_new_tokens: int = 128,
    folder: Path | str | None = None,
) -> Stressed:
    """Attack every behaviour anew against each checkpoint, and replay what was found at all of them.

    A case's success at an attack step is that of the prompt with the lowest loss by then, the one that the attack would
    hand over if it stopped there. It is not cumulative: a prompt that succeeded may give way to one that fails. The
    last step is the diagonal of the transfer. What counts as success is `mechrefusal.evaluation.metrics`' to say; the
    judges are shown the behaviour, not the attack around it.

    Cases are kept as `<folder>/<method>-<weights>.parquet`, answers in `<folder>/answers/`: what was killed continues,
    and with another judge, checkpoint or method only what is new is attacked and answered. Each checkpoint is loaded
    to be attacked and once more to be asked the others' cases; one model is in memory at a time.

    Args:
        checkpoints: ids of checkpoints of the run (or these themselves); none: all.
        behaviours: harmful requests.
        methods: settings of each attack, by the name that it gets in tables and files.
        judges: by default the refusal judge. Judges of harm (`mechrefusal.evaluation.judges`) may stand beside it;
            one that publishes no threshold has no success: all its answers are nulls.
        seed: of the attacks.
        max_new_tokens: longest answer.
        folder: by default `stress` in that of the run.

    Raises:
        MechrefusalError: no behaviour or method, an unknown checkpoint, a name twice, a prompt that leaves no room for
            its answer; a case that cannot be made, named with its checkpoint. What was finished is kept.
    """
    chosen = _chosen(run, checkpoints)
    asked = list(judges) or [RefusalJudge()]
    kept = Path(folder) if folder is not None else run.folder / FOLDER
    plan = Plan(behaviours, dict(methods), seed, max_new_tokens, kept)
    if again := sorted({judge.name for judge in asked if [one.name for one in asked].count(judge.name) > 1}):
        raise MechrefusalError(f"judge '{again[0]}' is given twice: their rates could not be told apart")
    found = answered(plan, chosen)
    on_curve, replayed = _curve_points(plan, chosen, found), _transfer_points(plan, chosen, found)
    judged = pd.concat([points[["place", "completion"]] for points in (on_curve, replayed)]).drop_duplicates()
    successes = {judge.name: _successes(judge, judged, plan.requests) for judge in asked}
    costs = [
        cost_table(made).assign(source=checkpoint_id, method=method)
        for (checkpoint_id, method), made in found.cases.items()
    ]
    return Stressed(
        tables.frame("stress", list(_rates(on_curve, _CURVE, successes, means=("loss", "forward_tokens")))),
        tables.frame("stress_transfer", list(_rates(replayed, _TRANSFER, successes))),
        tables.frame("cases", pd.concat(costs, ignore_index=True)),
        found.cases,
    )


def _chosen(run: Run, wanted: Sequence[str | Checkpoint]) -> list[Checkpoint]:
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


def _successes(
    judge: Judge | ScoringJudge, answered: pd.DataFrame, requests: Sequence[str]
) -> dict[tuple[int, str], float]:
    """Whether each answer (place of the behaviour, completion) is a success, 0 or 1; those judged null are missing."""
    found = judge.judge([requests[place] for place in answered["place"]], answered["completion"].tolist())
    if len(found) != len(answered):
        raise MechrefusalError(f"judge '{judge.name}' gave {len(found)} rows for {len(answered)} answers")
    scores = "score" in found
    verdicts = answered.assign(
        side="harmful",
        group="",
        judge=judge.name,
        kind=metrics.HARM if scores else metrics.REFUSAL,
        label=found["label"].tolist(),
        score=found["score"].tolist() if scores else float("nan"),
    )
    known = metrics.outcomes(verdicts)
    known = known[known["metric"] == metrics.SUCCESS].dropna(subset="value")
    return dict(zip(zip(known["place"], known["completion"], strict=True), known["value"], strict=True))


def _rates(
    points: pd.DataFrame,
    by: list[str],
    successes: Mapping[str, Mapping[tuple[int, str], float]],
    *,
    means: Sequence[str] = (),
) -> Iterator[dict]:
    """Success of every group of points, judge by judge, and the means of columns."""
    for judge, known in successes.items():
        places = zip(points["place"], points["completion"], strict=True)
        judged = points.assign(success=[known.get(place, float("nan")) for place in places])
        for keys, own in judged.groupby(by, sort=False):
            values = own["success"].dropna()
            yield {
                **dict(zip(by, keys, strict=True)),
                "judge": judge,
                **vars(intervals.rate(int(values.sum()), len(values))),
                "nulls": int(own["success"].isna().sum()),
                **{name: float(own[name].mean()) for name in means},
            }
