"""What moves between checkpoints: drift against its noise floor, and effective rank in every named variant."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd

from mechrefusal import tables
from mechrefusal.evaluation.paired import BASE
from mechrefusal.geometry import Directions, effective_rank, folds
from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.drift import Drift, Scaling, Weight, compare
from mechrefusal.geometry.folds import Measure
from mechrefusal.models import Checkpoint
from mechrefusal.statistics import Estimate
from mechrefusal.training import WARM_UP

SHARED = (BASE, WARM_UP)
"""Arms whose checkpoints every other arm goes on from."""

SPAN = -1
"""Value of `layer` in the table `drift` where a measure does not belong to one layer."""

WhyApart = Callable[[Checkpoint, Checkpoint], str]
"""Why activations of two checkpoints cannot be compared; empty where they can."""


def comparable(_a: Checkpoint, _b: Checkpoint) -> str:
    """`WhyApart` where all checkpoints are of one kind."""
    return ""


N_RANKS = 50
"""Bootstraps behind the interval of an effective rank: a singular value decomposition each."""


def drift(
    checkpoints: Sequence[Checkpoint],
    directions: dict[str, Directions],
    carriers: dict[str, pd.DataFrame],
    *,
    given: Collection[str] = (),
    why_apart: WhyApart = comparable,
) -> pd.DataFrame:
    """Table `drift`: how far directions turn between consecutive anchors of an arm, and between arms at one step.

    carrier_cosine: of the directions at the places of the two winners. direction_cosine: at the last position, layer by
    layer. principal_angle_mean, principal_angle_max (degrees): between the spans of the directions of all positions at
    one layer; with layer −1 between the spans at the places of the admissible candidates (those scored exactly: what a
    screen put out of the running only looks admissible). Intervals and floors are
    those of `geometry.drift.compare`; `n` is the number of directions of the smaller span.

    Args:
        directions: by checkpoint id, of the same prompts at every checkpoint: where they differ, there is no interval.
        carriers: table `carriers` of each checkpoint, by id.
        given: see `pairs`.
        why_apart: pairs that it has a reason for are one row that gives it.
    """
    rows: list[dict] = []
    for a, b in pairs(checkpoints, given=given):
        apart = why_apart(a, b)
        for found in (
            [_row("direction_cosine", SPAN, replace(_NOTHING, reason=apart), n=0)]
            if apart
            else _compared(directions[a.id], directions[b.id], carriers[a.id], carriers[b.id])
        ):
            rows.append({"arm_a": a.arm, "step_a": a.step, "arm_b": b.arm, "step_b": b.step, **found})
    return tables.frame("drift", rows)


def effective_ranks(
    checkpoints: Sequence[Checkpoint], directions: dict[str, Directions], carriers: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """Table `effective_rank`: every variant, as published figures do not say which they are.

    rows: "positions" (the directions of all positions, averaged over layers), "layers" (the directions of all layers at
    the last position) or "admissible" (the admissible candidates that were scored exactly).

    The interval is a bootstrap over the folds of the prompts. Their noise pulls every value up, as it adds dimensions
    that the directions do not have: the interval says how far other prompts of the same number would take it, not
    where it would be without noise. So values compare between checkpoints on the same, equally many prompts, and
    the one whose directions are shorter beside the noise looks the more spread.

    Args:
        directions: by checkpoint id, of the same prompts at every checkpoint (those that `drift` compares).
        carriers: table `carriers` of each checkpoint, by id.
    """
    rows = []
    for checkpoint in checkpoints:
        found = directions[checkpoint.id]
        admissible = _places(carriers[checkpoint.id], "admissible")
        last: list[Place] = [(found.positions[-1], layer) for layer in range(found.values.shape[1])]
        sums = found.sums.double().flatten(0, 1).numpy()
        matrices = {
            "positions": (found.values.mean(dim=1).numpy(), sums.mean(axis=2)),
            "layers": (_at(found, last), sums[:, -1]),
            "admissible": (_at(found, admissible), _sums_at(found, admissible)),
        }
        for (name, (matrix, terms)), scaling, weight in product(
            matrices.items(), ("raw", "unit"), ("sigma", "sigma_squared")
        ):
            value, reason = _rank_estimate(found, matrix, terms, scaling=scaling, weight=weight)
            rows.append(
                {
                    "arm": checkpoint.arm,
                    "step": checkpoint.step,
                    "rows": name,
                    "scaling": scaling,
                    "weight": weight,
                    "value": value.value,
                    "low": value.low,
                    "high": value.high,
                    "n_rows": len(matrix),
                    "reason": reason,
                }
            )
    return tables.frame("effective_rank", rows)


def read_directions(checkpoints: Sequence[Checkpoint], path_of) -> dict[str, Directions]:
    """Directions of every checkpoint by id; those of other weights are refused."""
    return {c.id: Directions.load(Path(path_of(c)), weights=c.weights) for c in checkpoints}


def pairs(checkpoints: Sequence[Checkpoint], *, given: Collection[str] = ()) -> Iterator[tuple[Checkpoint, Checkpoint]]:
    """What is compared with what: the base with the end of a warm-up, then arm by arm, then arms with each other.

    Consecutive anchors of each arm from where it starts (the base, or the warm-up's end, if there is one), its last
    against that start, and arms against each other at one step; where two have no step in common, at their ends.

    Args:
        given: arms that others trained: they are compared with the base, whatever the warm-up.
    """
    start = [c for c in checkpoints if c.arm in SHARED]
    arms = {c.arm: [d for d in checkpoints if d.arm == c.arm] for c in checkpoints if c not in start}
    yield from pairwise(start)
    for found in arms.values():
        line = [*starts_of(found[0].arm, start, given), *found]
        yield from pairwise(line)
        if len(line) > 2:
            yield line[0], line[-1]
    names = list(arms)
    for first, second in ((x, y) for i, x in enumerate(names) for y in names[i + 1 :]):
        at_one_step = [(a, b) for a, b in product(arms[first], arms[second]) if a.step == b.step]
        yield from at_one_step or [(arms[first][-1], arms[second][-1])]


def starts_of(arm: str, shared: Sequence[Checkpoint], given: Collection[str]) -> Sequence[Checkpoint]:
    """What an arm is compared with from its first checkpoint on: one checkpoint, or none."""
    return [c for c in shared if c.arm == BASE] if arm in given else shared[-1:]


def layer_places(directions: Directions, layer: int) -> list[Place]:
    """All positions at one layer."""
    return [(position, layer) for position in directions.positions]


def _compared(a: Directions, b: Directions, carriers_a: pd.DataFrame, carriers_b: pd.DataFrame) -> Iterator[dict]:
    winners = _places(carriers_a, "winner"), _places(carriers_b, "winner")
    found = compare(a, b, places=(winners[0][:1], winners[1][:1]), measure="cosine") if all(winners) else None
    yield _row("carrier_cosine", SPAN, found or replace(_NOTHING, reason="no carrier at one of the two"), n=1)
    if a.positions != b.positions:
        yield _row("direction_cosine", SPAN, replace(_NOTHING, reason="positions of the templates differ"), n=0)
        return
    for layer in range(a.values.shape[1]):
        span = layer_places(a, layer)
        yield _row("direction_cosine", layer, compare(a, b, places=(span[-1:], span[-1:]), measure="cosine"), n=1)
        yield from _angles(a, b, layer, (span, span))
    yield from _angles(a, b, SPAN, (_places(carriers_a, "admissible"), _places(carriers_b, "admissible")))


def _angles(a: Directions, b: Directions, layer: int, places: tuple[list[Place], list[Place]]) -> Iterator[dict]:
    measures: tuple[Measure, ...] = ("principal_angle_mean", "principal_angle_max")
    for measure in measures:
        found = compare(a, b, places=places, measure=measure)
        yield _row(measure, layer, found, n=min(map(len, places)))


def _places(carriers: pd.DataFrame, column: str) -> list[Place]:
    chosen = carriers[carriers[column] & carriers["exact"]]
    return [(int(row.position), int(row.layer)) for row in chosen.itertuples()]


def _at(directions: Directions, places: Sequence[Place]) -> np.ndarray:
    """(row, d_model), none for no places."""
    rows = [directions.values[directions.row(position), layer].double().numpy() for position, layer in places]
    return np.stack(rows) if rows else np.empty((0, directions.values.shape[-1]))


def _sums_at(directions: Directions, places: Sequence[Place]) -> np.ndarray:
    """(term, row, d_model): the sums of every fold that the rows of `_at` are a mix of."""
    if not places:
        return np.empty((directions.counts.numel(), 0, directions.values.shape[-1]))
    return folds.fold_sums(directions, places).swapaxes(0, 1)


def _rank_estimate(
    directions: Directions, matrix: np.ndarray, terms: np.ndarray, *, scaling: Scaling, weight: Weight
) -> tuple[Estimate, str]:
    """Effective rank of `matrix` with its interval, and why there is none or none of the two."""
    nan = float("nan")
    if len(matrix) == 0:
        return Estimate(nan, nan, nan, 0), "no admissible candidate"
    value = effective_rank(matrix, scaling=scaling, weight=weight)
    counts = directions.counts.numpy()
    n = int((counts > 0).sum(1).min())
    if n < folds.FEWEST_FOLDS:
        few = f"too few prompts for an interval: {n} filled folds of a class, {folds.FEWEST_FOLDS} are needed"
        return Estimate(value, nan, nan, n), few
    mix = folds.coefficients(counts, folds.bootstrap(counts, N_RANKS, seed=0, paired=directions.paired))
    drawn = (np.tensordot(one, terms, 1) for one in mix)
    ranks = [effective_rank(rows, scaling=scaling, weight=weight) if np.isfinite(rows).all() else nan for rows in drawn]
    return folds.interval(value, np.array(ranks), n, bounds=(1, len(matrix))), ""


_NOTHING = Drift(Estimate(float("nan"), float("nan"), float("nan"), 0), float("nan"), float("nan"), "")


def _row(measure: str, layer: int, found: Drift, *, n: int) -> dict:
    value = found.value
    return {
        "measure": measure,
        "layer": layer,
        "value": value.value,
        "low": value.low,
        "high": value.high,
        "floor": found.floor,
        "random": found.random,
        "n": n,
        "reason": found.reason,
    }
