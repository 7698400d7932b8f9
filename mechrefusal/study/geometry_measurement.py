"""The geometry of one checkpoint: directions, the carrier and how stable it is, and all that is read off them."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pandas as pd

from mechrefusal import geometry, tables
from mechrefusal.causal.reference import HARMLESS, ZERO
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import GOOD_AUC, Discovered, metrics
from mechrefusal.forward.direction import Carrier
from mechrefusal.geometry import Directions, carriers, subspaces
from mechrefusal.geometry.activations import Place, collect
from mechrefusal.geometry.held_out import own_bypass
from mechrefusal.prompts import PromptSet, Split, prompt_ids
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.selection import Asked

ZERO_SCORES = ("bypass_zero", "induce_zero", "kl_zero")

NONE = "none"
"""In column `reference_kind` of the table `carrier` where no candidate could be scored; else `Carrier.kind`."""

Add = Callable[[str, list[dict] | pd.DataFrame], None]


class GeometryMeasurement:
    """Geometry under way on one model: what was chosen so far, and `add`, which keeps tables.

    `directions` are those of the prompts that the metric keeps, as carriers are chosen from them; `locked` those of all
    direction prompts, the same at every checkpoint, which drift compares; `harmfulness` those at
    the last instruction token, None where the template has none. `made_from`: the prompts of `directions`. `best`: what
    later measures look at, the carrier or the best candidate in its place.
    """

    directions: Directions
    locked: Directions
    harmfulness: Directions | None
    made_from: Split
    carrier: Carrier | None = None
    best: Carrier | None = None
    _scorer: geometry.Scorer | None = None

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
        admissible = settings.admissible
        places = carriers.candidates(
            directions,
            layers=admissible.layers(n_layers)[:: self.wanted.layer_step],
            positions=directions.positions[-settings.n_positions :],
        )
        scores = self._scores(places, settings.reference)
        found = carriers.select(scores, n_layers, admissible)
        stability = geometry.stability.bootstrap(scores, n_layers, admissible, n=self.wanted.n_bootstrap)
        table = found.table.assign(win_frequency=stability.table["win_frequency"], half_wins=float("nan"))
        self.add("candidate_scores", scores.long(self.validation.harmful.ids, self.validation.harmless.ids))
        row |= {"n_candidates": len(table), "n_admissible": int(table["admissible"].sum())}
        row |= {
            name: getattr(stability, name)
            for name in (
                "none_frequency", "margin", "margin_low", "margin_high", "layer_low", "layer_high", "n_bootstrap",
            )
        }  # fmt: skip
        self.carrier, self.best = found.winner, found.best
        if scores.rounding is not None:
            row |= {"rounding_score": scores.rounding.score, "rounding_kl": scores.rounding.kl}
        if found.winner is None:
            self.add("half_scores", [])
            row["reason"] = f"none of {len(table)} candidates is admissible: {_commonest(table)}"
        else:
            row |= {name: table.loc[found.winner.row, name] for name in (*carriers.COLUMNS, "win_frequency")}
            row["token"] = directions.tokens[directions.row(found.winner.position)]
            held_out = own_bypass(scores, self.validation, n_layers, admissible)
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
                admissible,
                contenders=self.wanted.n_contenders,
                scorer=self._scorer,
            )
            table["half_wins"] = halves.table["half_wins"]
            self.add("half_scores", halves.scores)
            row |= {
                "n_halves": halves.n_halves,
                "layer_half_low": halves.layer_low,
                "layer_half_high": halves.layer_high,
            }
        table = table.assign(**self._with_zero(table, places))
        self.add("carriers", table)
        if (best := self.best) is not None:
            row["reference_kind"] = best.kind
            row["reference_position"], row["reference_layer"] = best.place
            row |= {name: table.loc[best.row, name] for name in (*ZERO_SCORES, "admissible_zero")}
            row["zero_distance"] = directions.zero_distance[directions.row(best.position), best.layer].item()
        self._scorer = None  # what it keeps of every layer is not needed any more
        if table["admissible_zero"].notna().all():
            row["n_admissible_zero"] = int(table["admissible_zero"].sum())

    def _scores(self, places: list[Place], reference: str) -> geometry.CarrierScores:
        """Scores of candidates under ablation to a reference, screened where the recipe says so."""
        given = (self.model, self.directions, self.validation, self.metric)
        scorer = self._scorer = self._scorer or geometry.Scorer(self.model, self.validation, self.metric)
        if self.wanted.screen and len(places) > 1:
            admissible = self.settings.admissible
            return geometry.screened(*given, admissible, places=places, reference=reference, scorer=scorer)
        return geometry.score(*given, places=places, reference=reference, scorer=scorer)

    def _with_zero(self, table: pd.DataFrame, places: list[Place]) -> dict[str, pd.Series]:
        """Columns of the scores under ablation to zero and addition: of all candidates, or of the best alone."""
        if self.settings.reference == ZERO:
            judged = table
        else:
            wanted = places
            if not self.wanted.score_zero:
                wanted = [] if self.best is None else [self.best.place]
            if not wanted:
                return dict.fromkeys((*ZERO_SCORES, "admissible_zero"), pd.Series(float("nan"), index=table.index))
            zero = self._scores(wanted, ZERO)
            scored = carriers.select(zero, self.model.cfg.n_layers, self.settings.admissible).table
            judged = table[["position", "layer"]].merge(scored, how="left", on=["position", "layer"], sort=False)
            judged.index = table.index
        found = {name: judged[name.removesuffix("_zero")].astype(float) for name in ZERO_SCORES}
        return found | {"admissible_zero": judged["admissible"].astype("boolean")}

    def take_subspaces(self) -> None:
        """Families of subspaces at the best candidate's place, up to the largest that the recipe asks for."""
        if self.wanted.largest_subspace < 1 or (best := self._best("subspaces")) is None:
            return
        largest = self.wanted.largest_subspace
        harmful, harmless = (
            collect(self.model, prompt_ids(self.model.tokenizer, chosen), [best.place])[:, 0]
            for chosen in (self.direction.harmful.texts, self.direction.harmless.texts)
        )
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
                    self.model, best, self.direction, self.metric, largest=largest, settings=settings
                ).subspace
            )
            families.append(subspaces.random_cone(best, largest))
        families.append(subspaces.random_subspace(largest, self.model.cfg.d_model))
        found = geometry.score_subspaces(
            self.model,
            families,
            self.validation,
            self.metric,
            difference=best,
            admissible=self.settings.admissible,
            largest=largest,
            samples=self.wanted.cone_samples,
        )
        self.add("subspaces", found.table)

    def take_overlap(self, verdicts: pd.DataFrame) -> None:
        """Do refusals of safe prompts share refusal's direction? Table `overlap`."""
        if (best := self._best("overlap")) is None:
            return
        texts, refused = self._over_refused(verdicts)
        if not texts:
            self.add("overlap", [_why("overlap", "no safe prompts that look unsafe were asked")])
            return
        self.add(
            "overlap",
            geometry.over_refusal_overlap(
                self.model,
                best,
                texts,
                refused,
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
        layer = self.best.layer if self.best is not None else self.model.cfg.n_layers // 2
        activations = geometry.ContrastActivations.of(self.model, everything, position=last)
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
                activations=activations,
                means=self.locked.means if self.settings.reference == HARMLESS else None,
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
                activations=activations,
            ),
        )

    def take_doses(self) -> None:
        """What refusal and harmless answers do as the best candidate is taken out and put in by degrees."""
        n = self.wanted.n_dosed
        if n == 0 or (best := self._best("utility_coupling")) is None:
            return
        found = geometry.dose_response(
            self.model,
            best,
            self.asked.validation.harmful.take(n),
            self.asked.harmless.take(n),
            self.metric,
            coefficients=self.wanted.doses,
        )
        self.add("doses", found.table)
        self.add("utility_coupling", found.area)

    @staticmethod
    def _over_refused(verdicts: pd.DataFrame) -> tuple[list[str], list[bool]]:
        """Safe prompts that look unsafe, and whether each was refused."""
        rows = metrics.plain(verdicts[verdicts["suite"] == "overrefusal"])
        return rows["prompt"].tolist(), metrics.refused(rows).tolist()

    def _best(self, name: str) -> Carrier | None:
        """What to look at; where there is nothing, table `name` says so in a row."""
        if self.best is None:
            self.add(name, [_why(name, "no candidate could be scored, so there is no place to look at")])
        return self.best


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


def _commonest(table: pd.DataFrame) -> str:
    """The reasons of rejection, counted, the commonest first."""
    missing = table[list(carriers.SCORES)].isna()
    kinds = {"a score is NaN": missing.any(axis=1), "layer": ~table["admissible_layer"]}
    kinds |= {name: ~table[f"admissible_{name}"] & ~missing[name] for name in ("kl", "induce")}
    counts = {kind: int(rejected.sum()) for kind, rejected in kinds.items()}
    return ", ".join(
        f"{kind} in {counts[kind]}" for kind in sorted(counts, key=lambda kind: -counts[kind]) if counts[kind]
    )
