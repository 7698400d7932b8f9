"""Everything that is measured on one checkpoint, in order. Each step adds tables; nothing here knows how they look."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from mechrefusal import attribution, causal, geometry
from mechrefusal.attacks import AttackCase
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import (
    GOOD_AUC,
    Completions,
    Discovered,
    complete,
    discover_refusal,
    judged,
    rates,
)
from mechrefusal.geometry import Directions, carriers
from mechrefusal.models import Checkpoint, load_hooked, rd_score, rd_tokens
from mechrefusal.prompts import PromptSet, Split, prompt_ids
from mechrefusal.study import tables
from mechrefusal.study.recipe import MeasuringSettings, Recipe
from mechrefusal.study.selection import Asked

CONTROL_SEED = 0


@dataclass(frozen=True)
class Measured:
    """What one checkpoint gave: its tables by name, and its directions."""

    tables: dict[str, pd.DataFrame]
    directions: Directions


def measure(checkpoint: Checkpoint, asked: Asked, recipe: Recipe, cases: list[AttackCase]) -> Measured:
    """Measure one checkpoint: behaviour, refusal metric, directions, carrier, interventions, attribution, patching."""
    return _Measurement(checkpoint, asked, recipe, cases).take()


class _Measurement:
    """One measurement under way: the model, the settings and the tables so far."""

    def __init__(self, checkpoint: Checkpoint, asked: Asked, recipe: Recipe, cases: list[AttackCase]) -> None:
        self.checkpoint, self.asked, self.recipe, self.cases = checkpoint, asked, recipe, cases
        self.settings: MeasuringSettings = recipe.measuring
        self.tables: dict[str, pd.DataFrame] = {}
        self.timings: list[dict[str, Any]] = []
        self.generations: list[pd.DataFrame] = []

    def take(self) -> Measured:
        with self.stage("load"):
            self.model = load_hooked(self.checkpoint)
        with self.stage("answers"):
            completions = self.answer()
        with self.stage("refusal metric"):
            metric = discover_refusal(
                self.model,
                self.asked.direction,
                completions=completions,
                fallback=self.recipe.training.refusal,
            )
            scores = self.describe_metric(metric)
        with self.stage("directions"):
            direction = _kept(self.asked.direction, scores, "direction")
            validation = _kept(self.asked.validation, scores, "validation")
            self.directions = self.take_directions(direction)
        with self.stage("carriers"):
            carrier = self.choose_carrier(metric, direction, validation)
        with self.stage("interventions"):
            self.intervene(carrier)
        with self.stage("attribution", optional=True):
            self.attribute(metric, carrier)
        with self.stage("patching", optional=True):
            self.pairs = self.asked.pairs.equal_length(self.model.tokenizer)
            heads = self.patch(metric)
            self.look(heads, carrier)
        generations = pd.concat(self.generations, ignore_index=True)
        self.add("generations", generations)
        self.add("rates", rates(generations[~generations["set"].str.startswith("direction_")]))
        self.add("timings", pd.DataFrame(self.timings))
        return Measured(self.tables, self.directions)

    @contextmanager
    def stage(self, name: str, *, optional: bool = False) -> Iterator[None]:
        """Time a step. An optional one that cannot be taken leaves its reason in `timings`, not a failed run."""
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
        sets = self.asked.evaluation_sets()
        direction = self.asked.direction
        asked = [*sets.items(), ("direction_harmful", direction.harmful), ("direction_harmless", direction.harmless)]
        frames = [_questions(name, chosen) for name, chosen in asked]
        if self.cases:
            frames.append(
                pd.DataFrame(
                    {
                        "set": "evaluation_harmful",
                        "prompt_id": [case.id for case in self.cases],
                        "category": "",
                        "prompt": [case.prompt for case in self.cases],
                        "attack": [case.method for case in self.cases],
                    }
                )
            )
        questions = pd.concat(frames, ignore_index=True)
        answers = complete(
            self.model,
            questions["prompt"].tolist(),
            max_new_tokens=self.settings.max_new_tokens,
            description=f"{self.checkpoint.id}: answers",
        )
        table = questions.assign(completion=list(answers.texts), intervention="none")
        self.generations.append(judged(table))
        rows = table.index[table["set"].str.startswith("direction_")]
        return answers[rows[0] : rows[-1] + 1]

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
                    "n_refused": metric.n_refused,
                    "n_answered": metric.n_answered,
                    "note": metric.note,
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
        refused = {
            (row.set, row.prompt_id): row.refused
            for frame in self.generations
            for row in frame[frame["attack"] == "none"].itertuples()
        }
        texts = [text for chosen in sets.values() for text in chosen.texts]
        batch = metric.batch(
            prompt_ids(tokenizer, texts), pad=tokenizer.pad_token_id, device=str(self.model.cfg.device)
        )
        score, following = metric.score_and_next(self.model, batch)
        rd = rd_score(following, rd_tokens(tokenizer))
        rows = [(name, prompt_id) for name, chosen in sets.items() for prompt_id in chosen.ids]
        table = pd.DataFrame(rows, columns=["set", "prompt_id"])
        # A prompt that was not answered (validation) was not judged either.
        table["refused"] = pd.array([refused.get(row) for row in rows], dtype="boolean")
        self.add("scores", table.assign(score=score.tolist(), rd_score=rd.tolist()))
        return self.tables["scores"]

    def take_directions(self, kept: Split) -> Directions:
        """Directions of the kept prompts, or of all where too few were kept; table `directions` says which."""
        enough = min(len(kept.harmful), len(kept.harmless)) >= self.settings.fewest_kept
        chosen, selection = (kept, "kept by score") if enough else (self.asked.direction, "all prompts")
        directions = geometry.difference_in_means(self.model, chosen)
        norms, cosines = directions.values.norm(dim=-1), directions.split_half_cosine
        self.add(
            "directions",
            [
                {
                    "position": position,
                    "token": token,
                    "layer": layer,
                    "norm": norms[row, layer].item(),
                    "split_half_cosine": cosines[row, layer].item(),
                    "n_harmful": directions.n_harmful,
                    "n_harmless": directions.n_harmless,
                    "selection": selection,
                }
                for row, (position, token) in enumerate(zip(directions.positions, directions.tokens, strict=True))
                for layer in range(self.model.cfg.n_layers)
            ],
        )
        return directions

    def choose_carrier(self, metric: Discovered, direction: Split, validation: Split) -> pd.Series | None:
        """Score and select; table `carrier` says who won, or why nobody did."""
        settings, n_layers, directions = self.settings, self.model.cfg.n_layers, self.directions
        scores = self.tables["scores"]
        row: dict[str, Any] = dict.fromkeys(("position", "layer", "bypass", "induce", "kl"), float("nan"))
        row |= {"token": "", "n_candidates": 0, "n_admissible": 0, "reason": ""}
        # Over the prompts that bypass and induce are taken over, so that they can be compared.
        for side, kept in (("harmful", validation.harmful), ("harmless", validation.harmless)):
            same = (scores["set"] == f"validation_{side}") & scores["prompt_id"].isin(kept.ids)
            row[f"baseline_{side}"] = scores.loc[same, "score"].mean()
        counts = {
            "harmful direction prompts refused": len(direction.harmful),
            "harmless direction prompts answered": len(direction.harmless),
            "harmful validation prompts refused": len(validation.harmful),
            "harmless validation prompts answered": len(validation.harmless),
        }
        short = {what: n for what, n in counts.items() if n < settings.fewest_kept}
        table, winner = pd.DataFrame(columns=[*carriers.COLUMNS, "admissible", "rejected_because"]), None
        if short:
            listed = ", ".join(f"{n} {what}" for what, n in short.items())
            row["reason"] = f"by the refusal metric only {listed}; a carrier needs {settings.fewest_kept} of each"
        elif metric.auc < GOOD_AUC:
            row["reason"] = f"the refusal metric cannot be relied on: {metric.note}"
        else:
            limit = carriers.last_layer(n_layers, settings.prune_layer_fraction)
            rows = carriers.candidates(
                directions,
                layers=range(0, limit, settings.layer_step),
                positions=directions.positions[-settings.n_positions :],
            )
            scored = carriers.score(self.model, directions, validation, metric, rows=rows)
            selection = carriers.select(
                scored, n_layers, settings.kl_threshold, settings.induce_threshold, settings.prune_layer_fraction
            )
            table, winner = selection.table, selection.winner
            row |= {"n_candidates": len(table), "n_admissible": int(table["admissible"].sum())}
            if winner is None:
                row["reason"] = f"none of {len(table)} candidates is admissible: {_commonest(table)}"
            else:
                row |= {name: winner[name] for name in carriers.COLUMNS}
                row["token"] = directions.tokens[directions.positions.index(int(winner["position"]))]
        self.add(
            "carriers", table.assign(winner=[winner is not None and index == winner.name for index in table.index])
        )
        self.add("carrier", [row])
        return winner

    def intervene(self, carrier: pd.Series | None) -> None:
        """Answers with the carrier ablated or added, and with a random direction of the same norm instead."""
        if carrier is None:
            return
        direction, layer = self.directions.at(carrier), int(carrier["layer"])
        control = causal.random_like(direction, seed=CONTROL_SEED)
        harmful, harmless = (
            _questions(name, chosen.take(self.settings.n_intervened))
            for name, chosen in (
                ("evaluation_harmful", self.asked.harmful),
                ("evaluation_harmless", self.asked.harmless),
            )
        )
        under: dict[str, tuple[Callable, pd.DataFrame]] = {
            "ablate": (lambda: causal.ablate(self.model, direction), harmful),
            "ablate_random": (lambda: causal.ablate(self.model, control), harmful),
            "add": (lambda: causal.add(self.model, direction, layer=layer), harmless),
            "add_random": (lambda: causal.add(self.model, control, layer=layer), harmless),
        }
        for name, (intervention, questions) in under.items():
            with intervention():
                answers = complete(
                    self.model,
                    questions["prompt"].tolist(),
                    max_new_tokens=self.settings.max_new_tokens,
                    description=f"{self.checkpoint.id}: {name}",
                )
            table = questions.assign(completion=list(answers.texts), intervention=name)
            self.generations.append(judged(table))

    def attribute(self, metric: Discovered, carrier: pd.Series | None) -> None:
        frames = []
        for name, chosen in (("harmful", self.asked.harmful), ("harmless", self.asked.harmless)):
            texts = chosen.take(self.settings.n_attributed).texts
            frames.append(attribution.refusal_logits(self.model, texts, metric).assign(set=name, onto="refusal_logits"))
            if carrier is not None:
                onto = attribution.onto_direction(
                    self.model,
                    texts,
                    self.directions.at(carrier),
                    layer=int(carrier["layer"]),
                    position=int(carrier["position"]),
                )
                frames.append(onto.assign(set=name, onto="carrier"))
        self.add("attribution", pd.concat(frames, ignore_index=True))

    def patch(self, metric: Discovered) -> list[tuple[int, int]]:
        pairs = self.pairs[: self.settings.n_pairs]
        layers = range(0, self.model.cfg.n_layers, self.settings.layer_step)
        residual = causal.patching.residual(self.model, pairs, metric, layers=layers)
        heads = causal.patching.heads(self.model, pairs, metric)
        self.add("patching", pd.concat([residual.table, heads.table], ignore_index=True))
        return heads.top(self.settings.n_top_heads)

    def look(self, heads: list[tuple[int, int]], carrier: pd.Series | None) -> None:
        pair = self.pairs[0]
        pattern, _ = attribution.attention(self.model, pair.harmful, heads)
        self.add("attention", pattern.assign(prompt_id=pair.id))
        frames = []
        # Without a carrier the tokens are still listed: the attention figures need their names.
        layer, direction = 0, torch.full((self.model.cfg.d_model,), float("nan"))
        if carrier is not None:
            layer, direction = int(carrier["layer"]), self.directions.at(carrier)
        for name, text in (("harmful", pair.harmful), ("harmless", pair.harmless)):
            frames.append(attribution.projections(self.model, text, direction, layer=layer).assign(set=name))
        self.add("tokens", pd.concat(frames, ignore_index=True).assign(prompt_id=pair.id))


def _questions(name: str, chosen: PromptSet) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "set": name,
            "prompt_id": chosen.ids,
            "category": chosen.table["category"].tolist(),
            "prompt": chosen.texts,
            "attack": "none",
        }
    )


def _kept(split: Split, scores: pd.DataFrame, name: str) -> Split:
    """Harmful prompts with a score above 0, harmless ones with a score below 0 (as in the reference pipeline)."""

    def by_score(chosen: PromptSet, side: str) -> PromptSet:
        values = scores.loc[scores["set"] == f"{name}_{side}", "score"].to_numpy()
        return chosen[values > 0 if side == "harmful" else values < 0]

    return Split(by_score(split.harmful, "harmful"), by_score(split.harmless, "harmless"))


def _commonest(table: pd.DataFrame) -> str:
    """The reasons of rejection, counted, the commonest first."""
    kinds = table["rejected_because"].str.split("; ").explode().str.extract(r"^(a score is NaN|layer|kl|induce)")[0]
    return ", ".join(f"{kind} in {n}" for kind, n in kinds.value_counts().items())


def _strings(tokenizer, token_ids) -> str:
    return json.dumps([tokenizer.decode([token]) for token in token_ids], ensure_ascii=False)
