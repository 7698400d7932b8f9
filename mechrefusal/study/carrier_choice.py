"""The stage that chooses the carrier: candidates scored, selected and resampled, and how stable the choice is."""

from math import nan
from typing import Any

import pandas as pd

from mechrefusal import geometry, tables
from mechrefusal.causal.reference import ZERO
from mechrefusal.evaluation import GOOD_AUC
from mechrefusal.geometry import CarrierScores, carriers
from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.held_out import own_bypass
from mechrefusal.study.measurement import Measurement
from mechrefusal.study.stages import Results

ZERO_SCORES = ("bypass_zero", "induce_zero", "kl_zero")
NONE = "none"
"""In column `reference_kind` of the table `carrier` where no candidate could be scored; else `Carrier.kind`."""
_STABILITY = ("none_frequency", "margin", "margin_low", "margin_high", "layer_low", "layer_high", "n_bootstrap")


def choose_carrier(subject: Measurement) -> Results:
    """Score, select and resample; table `carrier` says who won and how surely, or why nobody did."""
    row = empty_row("carrier") | {"n_candidates": 0, "n_admissible": 0, "reference_kind": NONE}
    row |= {"ablated_to": subject.settings.reference, "reason": why_not_scored(subject)}
    # Over the prompts that bypass and induce are taken over, so that they can be compared.
    for side in ("harmful", "harmless"):
        ids = getattr(subject.kept_validation, side).ids
        same = (subject.scores["set"] == f"validation_{side}") & subject.scores["prompt_id"].isin(ids)
        row |= {f"baseline_{side}": subject.scores.loc[same, "score"].mean(), f"n_{side}": len(ids)}
    if row["reason"]:
        yield from ((name, []) for name in ("carriers", "candidate_scores", "half_scores"))
    else:
        yield from _chosen(subject, row)
    yield "carrier", [row]


def why_not_scored(subject: Measurement) -> str:
    """Why no candidate can be scored; empty where they can."""
    counts = {
        "harmful direction prompts refused": len(subject.kept_direction.harmful),
        "harmless direction prompts answered": len(subject.kept_direction.harmless),
        "harmful validation prompts refused": len(subject.kept_validation.harmful),
        "harmless validation prompts answered": len(subject.kept_validation.harmless),
    }
    fewest = subject.settings.fewest_kept
    if short := [f"{n} {what}" for what, n in counts.items() if n < fewest]:
        return f"by the refusal metric only {', '.join(short)}; a carrier needs {fewest} of each"
    if subject.metric.reliable_auc < GOOD_AUC:  # NaN where nothing was discovered; the counts above then decide
        return f"the refusal metric cannot be relied on: {subject.metric.note}"
    return ""


def _chosen(subject: Measurement, row: dict[str, Any]) -> Results:
    """The tables of the candidates; what they say of the carrier is put into `row`, its row of table `carrier`."""
    settings, validation, n_layers = subject.recipe.geometry, subject.kept_validation, subject.model.cfg.n_layers
    admissible = subject.settings.admissible
    places = carriers.candidates(
        subject.directions,
        layers=admissible.layers(n_layers)[:: settings.layer_step],
        positions=subject.directions.positions[-subject.settings.n_positions :],
    )
    scorer = geometry.Scorer(subject.model, validation, subject.metric)
    scores = _scores(subject, scorer, places, subject.settings.reference)
    yield "candidate_scores", scores.long(validation.harmful.ids, validation.harmless.ids)
    selection = carriers.select(scores, n_layers, admissible)
    stability = geometry.stability.bootstrap(scores, n_layers, admissible, n=settings.n_bootstrap)
    table = selection.table.assign(win_frequency=stability.table["win_frequency"], half_wins=nan)
    row |= {"n_candidates": len(table), "n_admissible": int(table["admissible"].sum())}
    row |= {name: getattr(stability, name) for name in _STABILITY}
    if scores.rounding is not None:
        row |= {"rounding_score": scores.rounding.score, "rounding_kl": scores.rounding.kl}
    if (winner := selection.winner) is None:
        yield "half_scores", []
        row["reason"] = f"none of {len(table)} candidates is admissible: {_commonest(table)}"
    else:
        row |= {name: table.loc[winner.row, name] for name in (*carriers.COLUMNS, "win_frequency")}
        row["token"] = subject.directions.tokens[subject.directions.row(winner.position)]
        held_out = own_bypass(scores, validation, n_layers, admissible)
        ends = {"": held_out.value, "_low": held_out.low, "_high": held_out.high}
        row |= {f"bypass_held_out{end}": value for end, value in ends.items()}
        halves = geometry.stability.split_half(
            subject.model,
            subject.directions,
            validation,
            subject.metric,
            scores,
            stability,
            admissible,
            contenders=settings.n_contenders,
            scorer=scorer,
        )
        table["half_wins"] = halves.table["half_wins"]
        yield "half_scores", halves.scores
        row["n_halves"] = halves.n_halves
        row |= {"layer_half_low": halves.layer_low, "layer_half_high": halves.layer_high}
    best = selection.best
    zero_places = places if settings.score_zero else [] if best is None else [best.place]
    table = table.assign(**_with_zero(subject, scorer, table, zero_places))
    yield "carriers", table
    if best is not None:
        row |= {"reference_kind": best.kind, "reference_position": best.position, "reference_layer": best.layer}
        row |= {name: table.loc[best.row, name] for name in (*ZERO_SCORES, "admissible_zero")}
        distances = subject.directions.zero_distance[subject.directions.row(best.position)]
        row["zero_distance"] = distances[best.layer].item()
    if table["admissible_zero"].notna().all():
        row["n_admissible_zero"] = int(table["admissible_zero"].sum())


def _scores(subject: Measurement, scorer: geometry.Scorer, places: list[Place], reference: str) -> CarrierScores:
    """Scores of candidates under ablation to a reference, screened where the recipe says so."""
    arguments = (subject.model, subject.directions, subject.kept_validation, subject.metric)
    if subject.recipe.geometry.screen and len(places) > 1:
        admissible = subject.settings.admissible
        return geometry.screened(*arguments, admissible, places=places, reference=reference, scorer=scorer)
    return geometry.score(*arguments, places=places, reference=reference, scorer=scorer)


def _with_zero(
    subject: Measurement, scorer: geometry.Scorer, table: pd.DataFrame, places: list[Place]
) -> dict[str, pd.Series]:
    """Columns of the scores of these places under ablation to zero and addition, without a value at all others."""
    judged = table
    if subject.settings.reference != ZERO:
        if not places:
            return dict.fromkeys((*ZERO_SCORES, "admissible_zero"), pd.Series(nan, index=table.index))
        zero = _scores(subject, scorer, places, ZERO)
        scored = carriers.select(zero, subject.model.cfg.n_layers, subject.settings.admissible).table
        judged = table[["position", "layer"]].merge(scored, how="left", on=["position", "layer"], sort=False)
        judged.index = table.index
    columns = {name: judged[name.removesuffix("_zero")].astype(float) for name in ZERO_SCORES}
    return columns | {"admissible_zero": judged["admissible"].astype("boolean")}


def empty_row(name: str) -> dict[str, Any]:
    """A row of table `name` without a value, to be filled in."""
    return dict.fromkeys(column for column in tables.columns(name) if column not in tables.CHECKPOINT)


def _commonest(table: pd.DataFrame) -> str:
    """The reasons of rejection, counted, the commonest first."""
    missing = table[list(carriers.SCORES)].isna()
    kinds = {"a score is NaN": missing.any(axis=1), "layer": ~table["admissible_layer"]}
    kinds |= {name: ~table[f"admissible_{name}"] & ~missing[name] for name in ("kl", "induce")}
    counts = {kind: int(rejected.sum()) for kind, rejected in kinds.items() if rejected.any()}
    return ", ".join(f"{kind} in {n}" for kind, n in sorted(counts.items(), key=lambda item: -item[1]))
