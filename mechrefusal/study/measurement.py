"""One checkpoint under measurement: its model, its answers and refusal metric, and all that stages left on disk of it.

What a stage needs of an earlier one it reads from disk, so that a measurement that was killed goes on as if it had not.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd

from mechrefusal import causal, tables
from mechrefusal.attacks import AttackCase
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Completions, Discovered, Suite, answered, discover_refusal, judged, metrics
from mechrefusal.evaluation.answering import answers
from mechrefusal.forward import RefusalMetric, rd_score, rd_tokens, refusal_scores_and, runner_of, unhooked_model
from mechrefusal.forward.direction import Carrier
from mechrefusal.geometry import Directions
from mechrefusal.models import Checkpoint
from mechrefusal.prompts import PromptSet, prompt_ids
from mechrefusal.study import own_suites
from mechrefusal.study.caching import Content, Inputs, Made, Written, fingerprint
from mechrefusal.study.causal_measurement import CausalMeasurement
from mechrefusal.study.gate import gate
from mechrefusal.study.geometry_measurement import GeometryMeasurement
from mechrefusal.study.kept_carrier import best_kept
from mechrefusal.study.places import carrier_place
from mechrefusal.study.run import Run
from mechrefusal.study.selection import Asked
from mechrefusal.study.stages import Stage

CONTROL_SEED = 0
UNDER = {
    "ablate": ("evaluation_harmful", "evaluation_harmless"),
    "ablate_random": ("evaluation_harmful",),
    "induce": ("evaluation_harmless",),
    "induce_random": ("evaluation_harmless",),
}
"""The interventions of a carrier, and the suites that are asked under each."""
_DIRECTION = ("direction_harmful", "direction_harmless")
"""Suites that directions are made of."""


class Measurement:
    """What is measured of one checkpoint: `add` keeps the tables of a stage, and what those before left is read."""

    def __init__(self, run: Run, checkpoint: Checkpoint, asked: Asked, cases: Sequence[AttackCase], model=None) -> None:
        self.run, self.checkpoint, self.asked, self.cases = run, checkpoint, asked, cases
        self.recipe, self.settings, self.judge = run.recipe, run.recipe.measuring, run.recipe.measuring.refusal_judge()
        self._model = model
        self._made: dict[Path, Content] = {}
        self._stamp = ""

    @property
    def model(self):
        """The hooked transformer, which is there for stages that say that they open it."""
        assert self._model is not None
        return self._model

    def make(self, stage: Stage, inputs: Inputs) -> Made:
        """Take a stage. An optional one that cannot be taken gives what it had by then, and the reason as its note."""
        self._made = {self._path(name): None for name in stage.gives}
        self._stamp, note = fingerprint(inputs), ""
        try:
            stage.take(self)
        except MechrefusalError as error:
            if not stage.optional:
                raise
            note = str(error)
        return Made(self._made, note)

    def add(self, name: str, rows: list[dict] | pd.DataFrame) -> None:
        """Keep a table of the checkpoint, with the columns that say whose it is."""
        table = pd.DataFrame(rows)
        own = (self.checkpoint.arm, self.checkpoint.step, self.checkpoint.weights)
        for column, value in zip(tables.CHECKPOINT, own, strict=True):
            table[column] = value
        self._made[self._path(name)] = tables.frame(name, table)

    def _path(self, name: str) -> Path:
        return self.run.measurements(self.checkpoint) / f"{name}.parquet"

    def _read(self, name: str) -> pd.DataFrame:
        return tables.read(name, self.run.measurements(self.checkpoint))

    # What stages left.

    @cached_property
    def answers(self) -> pd.DataFrame:
        """The judged answers to every suite and to the attack cases (rows of table `verdicts`), with their tokens."""
        return self._answered(metrics.NONE, self._questions())

    @cached_property
    def metric(self) -> Discovered:
        """The checkpoint's refusal metric."""
        row = self._read("openings").iloc[0]
        found = RefusalMetric.from_json(row["token_ids"])
        told = {name: row[name] for name in ("coverage", "auc", "auc_held_out", "note")}
        return Discovered(**vars(found), **told, n_refused=int(row["n_refused"]), n_answered=int(row["n_answered"]))

    @cached_property
    def directions(self) -> Directions:
        """Of the prompts that the metric keeps, as carriers are chosen from them."""
        return Directions.load(self.run.directions(self.checkpoint), weights=self.checkpoint.weights)

    @cached_property
    def best(self) -> Carrier | None:
        """What later measures look at: the carrier, or the best candidate in its place."""
        return best_kept(self._read("carrier").iloc[0], self._read("carriers"), self.directions)

    @property
    def carrier(self) -> Carrier | None:
        """The carrier, where there is one."""
        return self.best if self.best is not None and self.best.admissible else None

    def geometry_before(self) -> GeometryMeasurement:
        """Geometry with nothing chosen yet."""
        return GeometryMeasurement(self.model, self.metric, self.asked, self.recipe, self._read("scores"), self.add)

    def geometry_of_directions(self) -> GeometryMeasurement:
        """Geometry with the directions that were taken."""
        found = self.geometry_before()
        found.directions = self.directions
        found.locked = Directions.load(self.run.locked_directions(self.checkpoint), weights=self.checkpoint.weights)
        found.post = found.locked.positions
        kept = (self._read("directions")["selection"] == "kept by score").all()
        found.made_from = found.direction if kept else self.asked.direction
        return found

    @cached_property
    def geometry(self) -> GeometryMeasurement:
        """Geometry with the carrier that was chosen."""
        found = self.geometry_of_directions()
        found.carrier, found.best = self.carrier, self.best
        return found

    @property
    def causes(self) -> CausalMeasurement:
        """Cause and attribution, by the metric."""
        return CausalMeasurement(self.model, self.metric, self.asked, self.recipe, self.add)

    # Stages.

    def answer(self) -> None:
        """Answer every suite and the attack cases in one go."""
        self._answer(self.model, metrics.NONE, self._questions(), description="answers")

    def take_metric(self) -> None:
        """Find what tells refusals from answers (table `openings`), and score prompts by it (table `scores`)."""
        rows = self.answers[self.answers["suite"].isin(_DIRECTION)]
        metric = discover_refusal(
            self.model,
            self.asked.direction,
            completions=Completions(tuple(rows["completion"]), tuple(rows["token_ids"]), tuple(rows["ended"])),
            fallback=self.recipe.training.refusal,
            judge=self.judge,
        )
        tokenizer, runner = self.model.tokenizer, runner_of(self.model)
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
                    "runner": runner.name,
                    "runner_because": runner.why,
                }
            ],
        )
        self.add("scores", self._scores(metric))

    def _scores(self, metric: Discovered) -> pd.DataFrame:
        asked, tokenizer = self.asked, self.model.tokenizer
        sets = {
            "direction_harmful": asked.direction.harmful,
            "direction_harmless": asked.direction.harmless,
            "validation_harmful": asked.validation.harmful,
            "validation_harmless": asked.validation.harmless,
        }
        plain = metrics.plain(self.answers)
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
        return table.assign(score=score.tolist(), rd_score=rd.tolist())

    def take_directions(self) -> None:
        """Directions of the prompts that the metric keeps, of all, and at the last instruction token."""
        found = self.geometry_before()
        found.take_directions()
        self._made |= {
            self.run.directions(self.checkpoint): found.directions,
            self.run.locked_directions(self.checkpoint): found.locked,
            self.run.harmfulness_directions(self.checkpoint): found.harmfulness,
        }

    def intervene(self) -> None:
        """Answers with the carrier ablated and put in, and with a random direction of the same norm instead.

        All are held at every generated token. Harmless prompts are answered under the ablation too: they should stay
        answered. A random direction is ablated to its own part of the same means.
        """
        self._made |= {self.run.answers(self.checkpoint, name): None for name in UNDER}
        if self.carrier is None:
            return
        control = causal.random_like(self.carrier, seed=CONTROL_SEED)
        under: dict[str, causal.Intervention] = {
            "ablate": causal.taken_out(self.carrier),
            "ablate_random": causal.taken_out(control),
            "induce": causal.put_in(self.carrier),
            "induce_random": causal.put_in(control),
        }
        plain = unhooked_model(self.model)
        for name, intervention in under.items():
            with causal.intervened(plain, intervention):
                self._answer(plain, name, self._questions_under(name), description=name)

    def take_rates(self) -> None:
        """All judged answers (table `verdicts`), and whether the checkpoint passes the gate (`gate`)."""
        frames = [self.answers]
        if carrier_place(self._read("carrier").iloc[0]) is not None:
            frames += [self._answered(name, self._questions_under(name)) for name in UNDER]
        verdicts = pd.concat(frames, ignore_index=True).drop(columns="token_ids")
        self.add("verdicts", verdicts)
        self.add("gate", gate(verdicts))

    # Questions and answers.

    def _questions(self) -> pd.DataFrame:
        direction = dict(zip(_DIRECTION, (self.asked.direction.harmful, self.asked.direction.harmless), strict=True))
        frames = [_questions(name, chosen) for name, chosen in {**self.asked.evaluation_sets(), **direction}.items()]
        return pd.concat([*frames, *([_attacked(self.cases)] if self.cases else [])], ignore_index=True)

    def _questions_under(self, intervention: str) -> pd.DataFrame:
        sets = {"evaluation_harmful": self.asked.harmful, "evaluation_harmless": self.asked.harmless}
        n = self.settings.n_intervened
        frames = [_questions(name, sets[name].take(n)) for name in UNDER[intervention]]
        return pd.concat(frames, ignore_index=True)

    def _answer(self, model, intervention: str, questions: pd.DataFrame, *, description: str) -> None:
        path = self.run.answers(self.checkpoint, intervention)
        answers(
            model,
            questions["prompt"].tolist(),
            path,
            stamp=self._stamp,
            tokenizer=self.model.tokenizer,
            max_new_tokens=self.settings.max_new_tokens,
            description=f"{self.checkpoint.id}: {description}",
        )
        self._made[path] = Written()

    def _answered(self, intervention: str, questions: pd.DataFrame) -> pd.DataFrame:
        found = pd.read_parquet(self.run.answers(self.checkpoint, intervention)).drop(columns="stamp")
        tokens = [tuple(map(int, ids)) for ids in found["token_ids"]]
        told = answered(
            questions,
            found["completion"],
            tokens,
            found["ended"],
            intervention=intervention,
            max_new_tokens=self.settings.max_new_tokens,
        )
        return judged(told.assign(token_ids=tokens), [self.judge])


def _questions(name: str, chosen: PromptSet) -> pd.DataFrame:
    return Suite.of(name, chosen, own_suites.SIDES[name]).questions()


def _attacked(cases: Sequence[AttackCase]) -> pd.DataFrame:
    """Attack cases as questions: harmful requests as an attack puts them."""
    known = {"suite": "evaluation_harmful", "side": own_suites.SIDES["evaluation_harmful"], "group": "", "category": ""}
    told = [
        {"prompt_id": case.id, "prompt": case.prompt, "behaviour": case.behaviour, "attack": case.method}
        for case in cases
    ]
    return pd.DataFrame(told).assign(**known, context=None)


def _strings(tokenizer, token_ids) -> str:
    return json.dumps([tokenizer.decode([token]) for token in token_ids], ensure_ascii=False)
