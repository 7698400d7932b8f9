"""Everything that is measured on one checkpoint, in order. Each step adds tables; nothing here knows how they look."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechrefusal import causal, tables
from mechrefusal.attacks import AttackCase
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import (
    Completions,
    Discovered,
    Suite,
    answered,
    complete,
    discover_refusal,
    judged,
    metrics,
)
from mechrefusal.forward import rd_score, rd_tokens, refusal_scores_and, unhooked_model
from mechrefusal.forward.direction import Carrier
from mechrefusal.geometry import Directions
from mechrefusal.models import Checkpoint, load_hooked
from mechrefusal.processes import LOADING, Around, alone
from mechrefusal.prompts import PromptSet, prompt_ids
from mechrefusal.study import own_suites
from mechrefusal.study.causal_measurement import CausalMeasurement
from mechrefusal.study.gate import gate
from mechrefusal.study.geometry_measurement import GeometryMeasurement
from mechrefusal.study.recipe import MeasuringSettings, Recipe
from mechrefusal.study.selection import Asked

CONTROL_SEED = 0
N_STAGES = 14


@dataclass(frozen=True)
class Measured:
    """What one checkpoint gave: its tables by name, and its directions.

    `directions` are of the prompts that its metric keeps, `locked` of all direction prompts, `harmfulness` of the same
    at the last instruction token (None where the template has none).
    """

    tables: dict[str, pd.DataFrame]
    directions: Directions
    locked: Directions
    harmfulness: Directions | None


def measure(
    checkpoint: Checkpoint, asked: Asked, recipe: Recipe, cases: list[AttackCase], *, around: Around = alone
) -> Measured:
    """Measure one checkpoint: behaviour, refusal metric, directions, carrier, interventions, attribution, patching.

    `around` is entered around each of `N_STAGES` stages, by its name.
    """
    return _Measurement(checkpoint, asked, recipe, cases, around).take()


class _Measurement:
    """One measurement under way: the model, the settings and the tables so far."""

    def __init__(
        self, checkpoint: Checkpoint, asked: Asked, recipe: Recipe, cases: list[AttackCase], around: Around
    ) -> None:
        self.checkpoint, self.asked, self.recipe, self.cases, self.around = checkpoint, asked, recipe, cases, around
        self.settings: MeasuringSettings = recipe.measuring
        self.judge = self.settings.refusal_judge()
        self.tables: dict[str, pd.DataFrame] = {}
        self.timings: list[dict[str, Any]] = []
        self.verdicts: list[pd.DataFrame] = []

    def take(self) -> Measured:
        with self.stage(LOADING):
            self.model = load_hooked(self.checkpoint)
        with self.stage("answers"):
            completions = self.answer()
        with self.stage("refusal metric"):
            metric = discover_refusal(
                self.model,
                self.asked.direction,
                completions=completions,
                fallback=self.recipe.training.refusal,
                judge=self.judge,
            )
            scores = self.describe_metric(metric)
        found = GeometryMeasurement(self.model, metric, self.asked, self.recipe, scores, self.add)
        with self.stage("directions"):
            found.take_directions()
        with self.stage("carriers"):
            found.choose_carrier()
        with self.stage("subspaces", optional=True):
            found.take_subspaces()
        with self.stage("over-refusal overlap", optional=True):
            found.take_overlap(self.verdicts[0])
        with self.stage("harmfulness and refusal", optional=True):
            found.take_coupling(self.verdicts[0])
        with self.stage("dose-response", optional=True):
            found.take_doses()
        with self.stage("interventions"):
            self.intervene(found.carrier)
        causes = CausalMeasurement(self.model, metric, self.asked, self.recipe, found.best, self.add)
        for name, take in (
            ("attribution", causes.take_attribution),
            ("patching", causes.take_patching),
            ("knock-out", causes.take_knock_outs),
            ("circuit", causes.take_circuit),
        ):
            with self.stage(name, optional=True):
                take()
        verdicts = pd.concat(self.verdicts, ignore_index=True)
        self.add("verdicts", verdicts)
        self.add("gate", gate(verdicts))
        self.add("timings", pd.DataFrame(self.timings))
        return Measured(self.tables, found.directions, found.locked, found.harmfulness)

    @contextmanager
    def stage(self, name: str, *, optional: bool = False) -> Iterator[None]:
        """Time a step. An optional one that cannot be taken leaves its reason in `timings`, not a failed run."""
        with self.around(name):
            started, note = time.perf_counter(), ""
            try:
                yield
            except MechrefusalError as error:
                if not optional:
                    raise
                note = str(error)
        self.timings.append({"stage": name, "seconds": time.perf_counter() - started, "note": note})

    def add(self, name: str, rows: list[dict] | pd.DataFrame) -> None:
        table = pd.DataFrame(rows)
        for column, value in zip(
            tables.CHECKPOINT, (self.checkpoint.arm, self.checkpoint.step, self.checkpoint.weights), strict=True
        ):
            table[column] = value
        self.tables[name] = tables.frame(name, table)

    def answer(self) -> Completions:
        """Answer every set and the attack cases in one go; the answers to the direction prompts are returned."""
        direction = {f"direction_{side}": getattr(self.asked.direction, side) for side in ("harmful", "harmless")}
        asked = {**self.asked.evaluation_sets(), **direction}
        frames = [_questions(name, chosen) for name, chosen in asked.items()]
        questions = pd.concat([*frames, *([_attacked(self.cases)] if self.cases else [])], ignore_index=True)
        answers = complete(
            self.model,
            questions["prompt"].tolist(),
            max_new_tokens=self.settings.max_new_tokens,
            description=f"{self.checkpoint.id}: answers",
        )
        self.judge_answers(questions, answers)
        rows = questions.index[questions["suite"].isin(direction)]
        return answers[rows[0] : rows[-1] + 1]

    def judge_answers(self, questions: pd.DataFrame, answers: Completions, *, intervention: str = metrics.NONE) -> None:
        """Rows of the table `verdicts`."""
        told = answered(
            questions,
            answers.texts,
            answers.token_ids,
            answers.ended,
            intervention=intervention,
            max_new_tokens=self.settings.max_new_tokens,
        )
        self.verdicts.append(judged(told, [self.judge]))

    def describe_metric(self, metric: Discovered) -> pd.DataFrame:
        """Tables `openings` and `scores`; returns the scores."""
        tokenizer = self.model.tokenizer
        self.add(
            "openings",
            [
                {
                    "kind": metric.kind,
                    "opening": tokenizer.decode(list(metric.opening)) if metric.opening else "",
                    "refusal_tokens": _strings(tokenizer, metric.refusal_tokens),
                    "compliance_tokens": _strings(tokenizer, metric.compliance_tokens),
                    "coverage": metric.coverage,
                    "auc": metric.auc,
                    "auc_held_out": metric.auc_held_out,
                    "offset": metric.offset,
                    "n_refused": metric.n_refused,
                    "n_answered": metric.n_answered,
                    "note": metric.note,
                    "token_ids": metric.as_json(),
                }
            ],
        )
        asked = self.asked
        sets = {
            "direction_harmful": asked.direction.harmful,
            "direction_harmless": asked.direction.harmless,
            "validation_harmful": asked.validation.harmful,
            "validation_harmless": asked.validation.harmless,
        }
        plain = metrics.plain(self.verdicts[0])
        refused = dict(
            zip(zip(plain["suite"], plain["prompt_id"], strict=True), metrics.refused(plain).tolist(), strict=True)
        )
        texts = [text for chosen in sets.values() for text in chosen.texts]
        hand_picked = rd_tokens(tokenizer)
        score, rd = refusal_scores_and(
            self.model, prompt_ids(tokenizer, texts), metric, read=lambda logits: rd_score(logits, hand_picked)
        )
        rows = [(name, prompt_id) for name, chosen in sets.items() for prompt_id in chosen.ids]
        table = pd.DataFrame(rows, columns=["set", "prompt_id"])
        # A prompt that was not answered (validation) was not judged either.
        table["refused"] = pd.array([refused.get(row) for row in rows], dtype="boolean")
        self.add("scores", table.assign(score=score.tolist(), rd_score=rd.tolist()))
        return self.tables["scores"]

    def intervene(self, carrier: Carrier | None) -> None:
        """Answers with the carrier ablated and put in, and with a random direction of the same norm instead.

        All are held at every generated token. Harmless prompts are answered under the ablation too: they should stay
        answered. A random direction is ablated to its own part of the same means.
        """
        if carrier is None:
            return
        control = causal.random_like(carrier, seed=CONTROL_SEED)
        n = self.settings.n_intervened
        harmful, harmless = (
            _questions(name, chosen.take(n))
            for name, chosen in (
                ("evaluation_harmful", self.asked.harmful),
                ("evaluation_harmless", self.asked.harmless),
            )
        )
        under: dict[str, tuple[causal.Intervention, pd.DataFrame]] = {
            "ablate": (causal.taken_out(carrier), pd.concat([harmful, harmless], ignore_index=True)),
            "ablate_random": (causal.taken_out(control), harmful),
            "induce": (causal.put_in(carrier), harmless),
            "induce_random": (causal.put_in(control), harmless),
        }
        plain = unhooked_model(self.model)
        for name, (intervention, questions) in under.items():
            with causal.intervened(plain, intervention):
                answers = complete(
                    plain,
                    questions["prompt"].tolist(),
                    tokenizer=self.model.tokenizer,
                    max_new_tokens=self.settings.max_new_tokens,
                    description=f"{self.checkpoint.id}: {name}",
                )
            self.judge_answers(questions, answers, intervention=name)


def _questions(name: str, chosen: PromptSet) -> pd.DataFrame:
    return Suite.of(name, chosen, own_suites.SIDES[name]).questions()


def _attacked(cases: list[AttackCase]) -> pd.DataFrame:
    """Attack cases as questions: harmful requests as an attack puts them."""
    known = {"suite": "evaluation_harmful", "side": own_suites.SIDES["evaluation_harmful"], "group": "", "category": ""}
    told = [
        {"prompt_id": case.id, "prompt": case.prompt, "behaviour": case.behaviour, "attack": case.method}
        for case in cases
    ]
    return pd.DataFrame(told).assign(**known, context=None)


def _strings(tokenizer, token_ids) -> str:
    return json.dumps([tokenizer.decode([token]) for token in token_ids], ensure_ascii=False)
