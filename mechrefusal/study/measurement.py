"""One checkpoint under measurement: its model, and what the stages before have left on disk of it.

What a stage needs of an earlier one it reads from disk, so that a measurement that was killed goes on as if it had not.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from mechrefusal import tables
from mechrefusal.attacks import AttackCase
from mechrefusal.causal.reference import require_reference
from mechrefusal.evaluation import Discovered, Suite, answered, judged, metrics
from mechrefusal.evaluation.metrics import NONE
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Carrier
from mechrefusal.geometry import Directions
from mechrefusal.models import Checkpoint
from mechrefusal.prompts import PromptSet, Split
from mechrefusal.statistics import Estimate, intervals
from mechrefusal.study.caching import Inputs
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts
from mechrefusal.study.stages import Rows
from mechrefusal.study.table_rows import SIDES, best_place

DIRECTION_SUITES = ("direction_harmful", "direction_harmless")
"""Suites that directions are made of."""
INTERVENTIONS = {
    "ablate": ("evaluation_harmful", "evaluation_harmless"),
    "ablate_random": ("evaluation_harmful",),
    "induce": ("evaluation_harmless",),
    "induce_random": ("evaluation_harmless",),
}
"""The interventions of a carrier, and the suites that are answered under each."""
_INTERVALS = {"bypass": intervals.mean, "induce": intervals.mean, "kl": intervals.skewed_mean}


class Measurement:
    """What is measured of one checkpoint. Stages are functions of it; `inputs`: of the stage that is being taken."""

    def __init__(
        self, run: Run, checkpoint: Checkpoint, prompts: StudyPrompts, cases: Sequence[AttackCase], model=None
    ) -> None:
        self.run, self.checkpoint, self.prompts, self.cases = run, checkpoint, prompts, cases
        self.recipe, self.settings = run.recipe, run.recipe.measuring
        self.judge = self.settings.refusal_judge()
        self.inputs: Inputs = {}
        self._model = model

    @property
    def model(self):
        """The hooked transformer, which is there for stages that say that they open it."""
        assert self._model is not None
        return self._model

    def path(self, name: str) -> Path:
        """File of a table of the checkpoint."""
        return self.run.measurements(self.checkpoint) / f"{name}.parquet"

    def table(self, name: str, rows: Rows) -> pd.DataFrame:
        """Rows as a table of the checkpoint, with the columns that say whose it is."""
        checkpoint = self.checkpoint
        owner = dict(zip(tables.CHECKPOINT, (checkpoint.arm, checkpoint.step, checkpoint.weights), strict=True))
        return tables.frame(name, pd.DataFrame(rows).assign(**owner))

    def read(self, name: str) -> pd.DataFrame:
        """A table that an earlier stage has left."""
        return tables.read(name, self.run.measurements(self.checkpoint))

    # What is asked.

    def questions(self, intervention: str = NONE) -> pd.DataFrame:
        """Without an intervention all suites and the attack cases; else the suites that are asked under it."""
        prompts = self.prompts
        if intervention != NONE:
            sets = {"evaluation_harmful": prompts.harmful, "evaluation_harmless": prompts.harmless}
            n = self.settings.n_intervened
            return pd.concat(
                [_questions(name, sets[name].take(n)) for name in INTERVENTIONS[intervention]], ignore_index=True
            )
        direction = dict(zip(DIRECTION_SUITES, (prompts.direction.harmful, prompts.direction.harmless), strict=True))
        frames = [_questions(name, chosen) for name, chosen in {**prompts.evaluation_sets(), **direction}.items()]
        return pd.concat([*frames, *([_attacked(self.cases)] if self.cases else [])], ignore_index=True)

    def answers_under(self, intervention: str) -> pd.DataFrame:
        """The judged answers under an intervention (rows of table `verdicts`), with their tokens."""
        answers = pd.read_parquet(self.run.answers(self.checkpoint, intervention)).drop(columns="stamp")
        tokens = [tuple(map(int, ids)) for ids in answers["token_ids"]]
        table = answered(
            self.questions(intervention),
            answers["completion"],
            tokens,
            answers["ended"],
            intervention=intervention,
            max_new_tokens=self.settings.max_new_tokens,
        )
        return judged(table.assign(token_ids=tokens), [self.judge])

    @cached_property
    def answers(self) -> pd.DataFrame:
        """`answers_under` no intervention: to every suite and to the attack cases."""
        return self.answers_under(NONE)

    # What stages have found.

    @cached_property
    def metric(self) -> Discovered:
        """The checkpoint's refusal metric."""
        row = self.read("openings").iloc[0]
        known: dict[str, Any] = {name: row[name] for name in ("coverage", "auc", "auc_held_out", "note")}
        known |= {name: int(row[name]) for name in ("n_refused", "n_answered")}
        return Discovered(**vars(RefusalMetric.from_json(row["token_ids"])), **known)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The refusal score of every direction and validation prompt."""
        return self.read("scores")

    @cached_property
    def kept_direction(self) -> Split:
        """The direction prompts that the metric keeps."""
        return kept_by_score(self.prompts.direction, self.scores, "direction")

    @cached_property
    def kept_validation(self) -> Split:
        """The validation prompts that the metric keeps."""
        return kept_by_score(self.prompts.validation, self.scores, "validation")

    @cached_property
    def directions(self) -> Directions:
        """Directions of the prompts that the metric keeps, which carriers are chosen from."""
        return Directions.load(self.run.directions(self.checkpoint), weights=self.checkpoint.weights)

    @cached_property
    def locked(self) -> Directions:
        """Directions of all direction prompts, which are the same at every checkpoint."""
        return Directions.load(self.run.locked_directions(self.checkpoint), weights=self.checkpoint.weights)

    @cached_property
    def best(self) -> Carrier | None:
        """What later measures look at: the carrier, or the best candidate in its place; None without either."""
        carrier, candidates, by_prompt = (self.read(name) for name in ("carrier", "carriers", "candidate_scores"))
        return restored_best(carrier, candidates, by_prompt, self.directions)

    @property
    def carrier(self) -> Carrier | None:
        """The carrier, where there is one."""
        return self.best if self.best is not None and self.best.admissible else None

    def over_refused(self) -> tuple[list[str], list[bool]]:
        """Safe prompts that look unsafe, and whether each was refused."""
        rows = metrics.plain(self.answers[self.answers["suite"] == "overrefusal"])
        return rows["prompt"].tolist(), metrics.refused(rows).tolist()


def kept_by_score(split: Split, scores: pd.DataFrame, name: str) -> Split:
    """Harmful prompts with a score above 0, harmless ones with a score below 0 (as in Arditi et al.'s pipeline).

    0 is the metric's own, which lies between refused and answered prompts (`RefusalMetric.offset`).
    """
    harmful, harmless = (
        scores.loc[scores["set"] == f"{name}_{side}", "score"].to_numpy() for side in ("harmful", "harmless")
    )
    return Split(split.harmful[harmful > 0], split.harmless[harmless < 0])


def _questions(name: str, prompts: PromptSet) -> pd.DataFrame:
    return Suite.of(name, prompts, SIDES[name]).questions()


def _attacked(cases: Sequence[AttackCase]) -> pd.DataFrame:
    """Attack cases as questions: harmful requests as an attack puts them."""
    rows = [
        {"prompt_id": case.id, "prompt": case.prompt, "behaviour": case.behaviour, "attack": case.method}
        for case in cases
    ]
    suite = "evaluation_harmful"
    return pd.DataFrame(rows).assign(suite=suite, side=SIDES[suite], group="", category="", context=None)


def restored_best(
    carrier: pd.DataFrame, candidates: pd.DataFrame, by_prompt: pd.DataFrame, directions: Directions
) -> Carrier | None:
    """The carrier of a measured checkpoint, or the best candidate in its place, with its scores; None without either.

    Args:
        carrier, candidates, by_prompt: tables `carrier`, `carriers` and `candidate_scores` of the checkpoint.
        directions: that the candidates are of.
    """
    row = carrier.iloc[0]
    if (place := best_place(row)) is None:
        return None
    position, layer = place
    candidate = candidates[(candidates["position"] == position) & (candidates["layer"] == layer)].iloc[0]
    by_prompt = by_prompt[(by_prompt["position"] == position) & (by_prompt["layer"] == layer)]
    scores = {}
    for name, interval in _INTERVALS.items():
        values = by_prompt.loc[by_prompt["measure"] == name, "value"].to_numpy(float)
        estimate = interval(values) if len(values) else Estimate(nan, nan, nan, 0)
        scores[name] = replace(estimate, value=float(candidate[name]))
    reference = require_reference(row["ablated_to"])
    return Carrier(
        position,
        layer,
        **scores,
        admissible=bool(candidate["admissible"]),
        rejected_because=candidate["rejected_because"],
        row=int(candidate.name),
        reference=reference,
        direction=directions.at(position, layer, reference=reference),
    )
