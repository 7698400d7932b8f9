"""The geometry of one checkpoint: directions, the carrier and how stable it is, and all that is read off them."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechrefusal import geometry, tables
from mechrefusal.causal.reference import ZERO, References
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import GOOD_AUC, Discovered, metrics
from mechrefusal.geometry import Directions, carriers, subspaces
from mechrefusal.geometry.activations import collect
from mechrefusal.geometry.held_out import own_bypass
from mechrefusal.prompts import PromptSet, Split, prompt_ids
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.selection import Asked

ZERO_SCORES = ("bypass_zero", "induce_zero", "kl_zero")

CARRIER, BEST, NONE = "carrier", "best candidate", "none"
"""What the measures after the selection look at; column `reference_kind` of the table `carrier`."""

Add = Callable[[str, list[dict] | pd.DataFrame], None]


@dataclass(frozen=True)
class Reference:
    """The candidate that later measures look at: the carrier, or the best candidate where none is admissible."""

    kind: str
    position: int
    layer: int

    def row(self) -> dict[str, int]:
        """As `Directions.at` takes it."""
        return {"position": self.position, "layer": self.layer}


class GeometryMeasurement:
    """Geometry under way on one model: what was chosen so far, and `add`, which keeps tables.

    `directions` are those of the prompts that the metric keeps, as carriers are chosen from them; `locked` those of all
    direction prompts, the same at every checkpoint, which drift compares; `harmfulness` those at
    the last instruction token, None where the template has none. `made_from`: the prompts of `directions`.
    """

    directions: Directions
    locked: Directions
    harmfulness: Directions | None
    made_from: Split
    carrier: pd.Series | None = None
    _scorer: geometry.Scorer | None = None
    reference: Reference | None = None

    def __init__(self, model, metric: Discovered, asked: Asked, recipe: Recipe, scores: pd.DataFrame, add: Add) -> None:
        self.model, self.metric, self.asked, self.add = model, metric, asked, add
        self.settings, self.wanted, self.scores = recipe.measuring, recipe.geometry, scores
        self.direction = kept(asked.direction, scores, "direction")
        self.validation = kept(asked.validation, scores, "validation")

    def take_directions(self) -> None:
        """Directions of the kept prompts, or of all where too few were kept; table `directions` says which."""
        tokenizer, everything = self.model.tokenizer, self.asked.direction
        texts = [*everything.harmful, *everything.harmless]
        self.post = geometry.post_instruction_positions(tokenizer, texts)
        instruction: tuple[int, ...] = ()
        with suppress(MechrefusalError):  # a template without one; `take_coupling` then says why
            instruction = (geometry.last_instruction_position(tokenizer, texts),)
        wanted = (*instruction, *self.post)
        sizes = [(len(each.harmful), len(each.harmless)) for each in (self.direction, everything)]
        enough = min(sizes[0]) >= self.settings.fewest_kept
        selection = "kept by score" if enough else "all prompts"
        self.made_from = self.direction if enough else everything
        if enough and sizes[0] != sizes[1]:
            whole, part = geometry.difference_in_means_of_part(self.model, everything, self.direction, positions=wanted)
        else:
            whole = part = geometry.difference_in_means(self.model, everything, positions=wanted)
        self.locked, self.directions = whole.of_positions(self.post), part.of_positions(self.post)
        self.harmfulness = whole.of_positions(instruction) if instruction else None
        norms, cosines = self.directions.values.norm(dim=-1), self.directions.split_half_cosine
        zeros = self.directions.zero_distance
        self.add(
            "directions",
            [
                {
                    "position": position,
                    "token": token,
                    "layer": layer,
                    "norm": norms[row, layer].item(),
                    "split_half_cosine": cosines[row, layer].item(),
                    "zero_distance": zeros[row, layer].item(),
                    "n_harmful": self.directions.n_harmful,
                    "n_harmless": self.directions.n_harmless,
                    "selection": selection,
                }
                for row, (position, token) in enumerate(
                    zip(self.directions.positions, self.directions.tokens, strict=True)
                )
                for layer in range(self.model.cfg.n_layers)
            ],
        )

    def choose_carrier(self) -> None:
        """Score, select and resample; table `carrier` says who won and how surely, or why nobody did."""
        row: dict[str, Any] = _nothing("carrier") | {"n_candidates": 0, "n_admissible": 0, "reference_kind": NONE}
        row["ablated_to"] = self.settings.reference
        # Over the prompts that bypass and induce are taken over, so that they can be compared.
        for side, chosen in (("harmful", self.validation.harmful), ("harmless", self.validation.harmless)):
            same = (self.scores["set"] == f"validation_{side}") & self.scores["prompt_id"].isin(chosen.ids)
            row[f"baseline_{side}"] = self.scores.loc[same, "score"].mean()
            row[f"n_{side}"] = len(chosen)
        row["reason"] = self._cannot_score()
        if row["reason"]:
            for name in ("carriers", "candidate_scores", "half_scores"):
                self.add(name, [])
        else:
            self._score(row)
        self.add("carrier", [row])

    def _cannot_score(self) -> str:
        counts = {
            "harmful direction prompts refused": len(self.direction.harmful),
            "harmless direction prompts answered": len(self.direction.harmless),
            "harmful validation prompts refused": len(self.validation.harmful),
            "harmless validation prompts answered": len(self.validation.harmless),
        }
        fewest = self.settings.fewest_kept
        if short := {what: n for what, n in counts.items() if n < fewest}:
            listed = ", ".join(f"{n} {what}" for what, n in short.items())
            return f"by the refusal metric only {listed}; a carrier needs {fewest} of each"
        if self.metric.reliable_auc < GOOD_AUC:  # NaN where nothing was discovered; the counts above then decide
            return f"the refusal metric cannot be relied on: {self.metric.note}"
        return ""

    def _score(self, row: dict[str, Any]) -> None:
        settings, n_layers, directions = self.settings, self.model.cfg.n_layers, self.directions
        thresholds = self._thresholds()
        rows = carriers.candidates(
            directions,
            layers=range(0, carriers.last_layer(n_layers, settings.prune_layer_fraction), self.wanted.layer_step),
            positions=directions.positions[-settings.n_positions :],
        )
        scores = self._scores(rows, settings.reference)
        found = carriers.select(scores, n_layers, **thresholds)
        stability = geometry.stability.bootstrap(scores, n_layers, **thresholds, n=self.wanted.n_bootstrap)
        table = found.table.assign(win_frequency=stability.table["win_frequency"], half_wins=float("nan"))
        self.add("candidate_scores", scores.long(self.validation.harmful.ids, self.validation.harmless.ids))
        row |= {"n_candidates": len(table), "n_admissible": int(table["admissible"].sum())}
        row |= {
            name: getattr(stability, name)
            for name in (
                "none_frequency", "margin", "margin_low", "margin_high", "layer_low", "layer_high", "n_bootstrap",
            )
        }  # fmt: skip
        self.carrier = found.winner
        if found.winner is None:
            self.add("half_scores", [])
            row["reason"] = f"none of {len(table)} candidates is admissible: {_commonest(table)}"
        else:
            row |= {name: found.winner[name] for name in carriers.COLUMNS}
            row["token"] = directions.tokens[directions.row(int(found.winner["position"]))]
            row["win_frequency"] = table.loc[found.winner.name, "win_frequency"]
            held_out = own_bypass(scores, self.validation, n_layers, **thresholds)
            row |= {
                "bypass_held_out": held_out.value,
                "bypass_held_out_low": held_out.low,
                "bypass_held_out_high": held_out.high,
            }
            halves = geometry.stability.split_half(
                self.model,
                directions,
                self.validation,
                self.metric,
                scores,
                stability,
                **thresholds,
                contenders=self.wanted.n_contenders,
                reference=settings.reference,
                scorer=self._scorer,
            )
            table["half_wins"] = halves.table["half_wins"]
            self.add("half_scores", halves.scores)
            row |= {
                "n_halves": halves.n_halves,
                "layer_half_low": halves.layer_low,
                "layer_half_high": halves.layer_high,
            }
        self.reference = _reference(table)
        table = table.assign(**self._with_zero(table, rows))
        self.add("carriers", table)
        if self.reference is not None:
            row["reference_kind"] = self.reference.kind
            row["reference_position"], row["reference_layer"] = self.reference.position, self.reference.layer
            here = (table["position"] == self.reference.position) & (table["layer"] == self.reference.layer)
            own = table[here].iloc[0]
            row |= {name: own[name] for name in (*ZERO_SCORES, "admissible_zero")}
            place = directions.row(self.reference.position), self.reference.layer
            row["zero_distance"] = directions.zero_distance[place].item()
        self._scorer = None  # what it keeps of every layer is not needed any more
        if table["admissible_zero"].notna().all():
            row["n_admissible_zero"] = int(table["admissible_zero"].sum())

    def _scores(self, rows: list[dict], reference: str) -> geometry.CarrierScores:
        """Scores of candidates under ablation to a reference, screened where the recipe says so."""
        given = (self.model, self.directions, self.validation, self.metric)
        scorer = self._scorer = self._scorer or geometry.Scorer(self.model, self.validation, self.metric)
        if self.wanted.screen and len(rows) > 1:
            return geometry.screened(*given, rows=rows, **self._thresholds(), reference=reference, scorer=scorer)
        return geometry.score(*given, rows=rows, reference=reference, scorer=scorer)

    def _with_zero(self, table: pd.DataFrame, rows: list[dict]) -> dict[str, pd.Series]:
        """Columns of the scores under ablation to zero and addition: of all candidates, or of the reference alone."""
        if self.settings.reference == ZERO:
            judged = table
        else:
            wanted = rows
            if not self.wanted.score_zero:
                wanted = [] if self.reference is None else [self.reference.row()]
            if not wanted:
                return dict.fromkeys((*ZERO_SCORES, "admissible_zero"), pd.Series(float("nan"), index=table.index))
            scored = carriers.select(self._scores(wanted, ZERO), self.model.cfg.n_layers, **self._thresholds()).table
            judged = table[["position", "layer"]].merge(scored, how="left", on=["position", "layer"], sort=False)
            judged.index = table.index
        found = {name: judged[name.removesuffix("_zero")].astype(float) for name in ZERO_SCORES}
        return found | {"admissible_zero": judged["admissible"].astype("boolean")}

    def references(self) -> References | None:
        """Both ends of the reference candidate's direction at this model; None where the recipe ablates to zero."""
        assert self.reference is not None
        return self.directions.references(self.reference.row(), self.settings.reference)

    def _thresholds(self) -> dict[str, Any]:
        """What an admissible candidate keeps, as the geometry's functions take it."""
        names = ("kl_threshold", "induce_threshold", "prune_layer_fraction")
        return {name: getattr(self.settings, name) for name in names}

    def take_subspaces(self) -> None:
        """Families of subspaces at the reference, up to the largest that the recipe asks for."""
        if self.wanted.largest_subspace < 1 or self._nowhere("subspaces"):
            return
        assert self.reference is not None
        reference, largest = self.reference, self.wanted.largest_subspace
        place = (reference.position, reference.layer)
        harmful, harmless = (
            collect(self.model, prompt_ids(self.model.tokenizer, chosen), [place])[:, 0]
            for chosen in (self.direction.harmful.texts, self.direction.harmless.texts)
        )
        difference = self.directions.at(reference.row())
        families = [
            subspaces.categories(harmful, harmless, self.direction.harmful.table["category"].tolist(), largest=largest),
            subspaces.pca(harmful, harmless, largest=largest),
            subspaces.successive(harmful, harmless, largest=largest),
        ]
        if self.wanted.cone_steps:
            settings = geometry.cones.ConeSettings(
                steps=self.wanted.cone_steps, addition=self.wanted.cone_addition, retain=self.wanted.cone_retain
            )
            families.append(
                geometry.cones.learn_cone(
                    self.model,
                    difference,
                    self.direction,
                    self.metric,
                    layer=reference.layer,
                    largest=largest,
                    settings=settings,
                    references=self.references(),
                ).subspace
            )
            families.append(subspaces.random_cone(difference, largest))
        families.append(subspaces.random_subspace(largest, self.model.cfg.d_model))
        found = subspaces.score_subspaces(
            self.model,
            families,
            self.validation,
            self.metric,
            difference=difference,
            position=reference.position,
            layer=reference.layer,
            references=self.references(),
            **self._thresholds(),
            largest=largest,
            samples=self.wanted.cone_samples,
        )
        self.add("subspaces", found.table)

    def take_overlap(self, verdicts: pd.DataFrame) -> None:
        """Do refusals of safe prompts share refusal's direction? Table `overlap`."""
        if self._nowhere("overlap"):
            return
        assert self.reference is not None
        texts, refused = self._over_refused(verdicts)
        if not texts:
            self.add("overlap", [_why("overlap", "no safe prompts that look unsafe were asked")])
            return
        self.add(
            "overlap",
            geometry.over_refusal_overlap(
                self.model,
                texts,
                refused,
                self.directions.at(self.reference.row()),
                position=self.reference.position,
                layer=self.reference.layer,
                harmful=self.made_from.harmful,
                harmless=self.made_from.harmless,
            ),
        )

    def take_coupling(self, verdicts: pd.DataFrame) -> None:
        """Harmfulness and refusal, as means (table `coupling`) and as linear probes (table `linear_probes`).

        On all direction prompts: which of them are refused is what the probes of refusal tell apart.
        """
        if self.wanted.n_coupled == 0:
            return
        everything, last = self.asked.direction, self.post[-1]
        layer = self.reference.layer if self.reference is not None else self.model.cfg.n_layers // 2
        readings = geometry.Readings.of(self.model, everything, position=last)
        self.add(
            "coupling",
            geometry.harmfulness_refusal_coupling(
                self.model,
                everything,
                self.asked.validation,
                self.metric,
                layer=layer,
                position=last,
                n_prompts=self.wanted.n_coupled,
                readings=readings,
                references=self.locked.references({"position": last, "layer": layer}, self.settings.reference),
            ),
        )
        asked = verdicts[verdicts["suite"] == "direction_harmful"]
        safe, safe_refused = self._over_refused(verdicts)
        self.add(
            "linear_probes",
            geometry.linear_probes(
                self.model,
                everything,
                refused=metrics.refused(asked).tolist(),
                safe=safe or None,
                safe_refused=safe_refused or None,
                position=last,
                layer=layer,
                readings=readings,
            ),
        )

    def take_doses(self) -> None:
        """What refusal and harmless answers do as the reference direction is taken out and put in by degrees."""
        n = self.wanted.n_dosed
        if n == 0 or self._nowhere("utility_coupling"):
            return
        assert self.reference is not None
        found = geometry.dose_response(
            self.model,
            self.directions.at(self.reference.row()),
            self.asked.validation.harmful.take(n),
            self.asked.harmless.take(n),
            self.metric,
            layer=self.reference.layer,
            coefficients=self.wanted.doses,
            references=self.references(),
        )
        self.add("doses", found.table)
        self.add("utility_coupling", found.area)

    @staticmethod
    def _over_refused(verdicts: pd.DataFrame) -> tuple[list[str], list[bool]]:
        """Safe prompts that look unsafe, and whether each was refused."""
        rows = metrics.plain(verdicts[verdicts["suite"] == "overrefusal"])
        return rows["prompt"].tolist(), metrics.refused(rows).tolist()

    def _nowhere(self, name: str) -> bool:
        """Whether there is no place to look at; table `name` then says so in a row."""
        if self.reference is None:
            self.add(name, [_why(name, "no candidate could be scored, so there is no place to look at")])
        return self.reference is None


def _why(name: str, reason: str) -> dict[str, Any]:
    """A row of table `name` that holds nothing but the reason."""
    flags = {"admissible": False, "smallest": False} if name == "subspaces" else {}
    return _nothing(name) | flags | {"reason": reason}


def _nothing(name: str) -> dict[str, Any]:
    """A row of table `name` without a value, to be filled in."""
    return dict.fromkeys(column for column in tables.columns(name) if column not in tables.CHECKPOINT)


def kept(split: Split, scores: pd.DataFrame, name: str) -> Split:
    """Harmful prompts with a score above 0, harmless ones with a score below 0 (as in the reference pipeline).

    0 is the metric's own, which lies between refused and answered prompts (`RefusalMetric.offset`).
    """

    def by_score(chosen: PromptSet, side: str) -> PromptSet:
        values = scores.loc[scores["set"] == f"{name}_{side}", "score"].to_numpy()
        return chosen[values > 0 if side == "harmful" else values < 0]

    return Split(by_score(split.harmful, "harmful"), by_score(split.harmless, "harmless"))


def _reference(table: pd.DataFrame) -> Reference | None:
    """What later measures look at; see `carriers.best_candidate`."""
    best = carriers.best_candidate(table)
    if best is None:
        return None
    return Reference(CARRIER if best["winner"] else BEST, int(best["position"]), int(best["layer"]))


def _commonest(table: pd.DataFrame) -> str:
    """The reasons of rejection, counted, the commonest first."""
    kinds = table["rejected_because"].str.split("; ").explode().str.extract(r"^(a score is NaN|layer|kl|induce)")[0]
    return ", ".join(f"{kind} in {n}" for kind, n in kinds.value_counts().items())
