"""What moves between checkpoints: drift against its noise floor, and effective rank in every named variant."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise, product
from math import nan

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

N_RANKS = 50
"""Bootstraps behind the interval of an effective rank: a singular value decomposition each."""


@dataclass(frozen=True)
class Pairs:
    """What is compared with what: the base with the end of a warm-up, then arm by arm, then arms with each other.

    Consecutive anchors of each arm from where it starts (the base, or the warm-up's end, if there is one), its last
    against that start, and arms against each other at one step; where two have no step in common, at their ends.

    Fields:
        checkpoints: the checkpoints that are paired.
        given: arms that others trained: they are compared with the base, whatever the warm-up.
        why_apart: why activations of two checkpoints cannot be compared; by default all can.
    """

    checkpoints: Sequence[Checkpoint]
    given: Collection[str] = ()
    why_apart: WhyApart = field(default=lambda a, b: "")

    def __iter__(self) -> Iterator[tuple[Checkpoint, Checkpoint]]:
        shared, arms = self._by_arm()
        yield from pairwise(shared)
        for arm, line in arms.items():
            line = [*self._starts(arm, shared), *line]
            yield from pairwise(line)
            if len(line) > 2:
                yield line[0], line[-1]
        for first, second in combinations(arms.values(), 2):
            at_one_step = [(a, b) for a, b in product(first, second) if a.step == b.step]
            yield from at_one_step or [(first[-1], second[-1])]

    def ends(self) -> list[tuple[Checkpoint, Checkpoint]]:
        """Where each arm starts with its last checkpoint, then the last checkpoints of the arms with each other."""
        shared, _ = self._by_arm()
        trained = sorted((c for c in self.checkpoints if c.arm not in SHARED), key=lambda c: c.step)
        last, first = ({c.arm: c for c in line} for line in (trained, reversed(trained)))
        starts = {arm: next(iter(self._starts(arm, shared)), first[arm]) for arm in last}
        return [(starts[arm], c) for arm, c in last.items() if starts[arm] != c] + list(combinations(last.values(), 2))

    def _by_arm(self) -> tuple[list[Checkpoint], dict[str, list[Checkpoint]]]:
        """The checkpoints that arms go on from, and those of each arm."""
        arms: dict[str, list[Checkpoint]] = {}
        for checkpoint in self.checkpoints:
            if checkpoint.arm not in SHARED:
                arms.setdefault(checkpoint.arm, []).append(checkpoint)
        return [c for c in self.checkpoints if c.arm in SHARED], arms

    def _starts(self, arm: str, shared: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
        """What an arm is compared with from its first checkpoint on: one checkpoint, or none."""
        return [c for c in shared if c.arm == BASE] if arm in self.given else shared[-1:]


def drift(pairs: Pairs, directions: dict[str, Directions], carriers: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Table `drift`: how far directions turn between consecutive anchors of an arm, and between arms at one step.

    carrier_cosine: of the directions at the places of the two winners. direction_cosine: at the last position, layer by
    layer. principal_angle_mean, principal_angle_max (degrees): between the spans of the directions of all positions at
    one layer; with layer −1 between the spans at the places of the admissible candidates (those scored exactly: what a
    screen put out of the running only looks admissible). Intervals and floors are
    those of `geometry.drift.compare`; `n` is the number of directions of the smaller span.

    Args:
        pairs: what is compared; one that cannot be is a row that says why.
        directions: by checkpoint id, of the same prompts at every checkpoint: where they differ, there is no interval.
        carriers: table `carriers` of each checkpoint, by id.
    """
    rows: list[dict] = []
    for a, b in pairs:
        if apart := pairs.why_apart(a, b):
            compared = iter([_row("direction_cosine", SPAN, replace(_NOTHING, reason=apart), n=0)])
        else:
            compared = _compared((directions[a.id], directions[b.id]), (carriers[a.id], carriers[b.id]))
        ends = {"arm_a": a.arm, "step_a": a.step, "arm_b": b.arm, "step_b": b.step}
        rows += [{**ends, **row} for row in compared]
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
        of_all = directions[checkpoint.id]
        last: list[Place] = [(of_all.positions[-1], layer) for layer in range(of_all.values.shape[1])]
        admissible = _places(carriers[checkpoint.id], "admissible")
        sums = of_all.sums.double().flatten(0, 1).numpy()
        matrices = {
            "positions": (of_all.values.mean(dim=1).numpy(), sums.mean(axis=2)),
            "layers": (_values_at(of_all, last), sums[:, -1]),
            "admissible": (_values_at(of_all, admissible), _fold_sums_at(of_all, admissible)),
        }
        for (name, (matrix, terms)), scaling, weight in product(
            matrices.items(), ("raw", "unit"), ("sigma", "sigma_squared")
        ):
            rank, reason = _rank_estimate(of_all, matrix, terms, scaling=scaling, weight=weight)
            variant = {"rows": name, "scaling": scaling, "weight": weight, "n_rows": len(matrix)}
            owner = {"arm": checkpoint.arm, "step": checkpoint.step}
            rows.append({**owner, **variant, **_interval(rank), "reason": reason})
    return tables.frame("effective_rank", rows)


def layer_places(directions: Directions, layer: int) -> list[Place]:
    """All positions at one layer."""
    return [(position, layer) for position in directions.positions]


def _compared(of: tuple[Directions, Directions], carriers: tuple[pd.DataFrame, pd.DataFrame]) -> Iterator[dict]:
    winners = [_places(table, "winner")[:1] for table in carriers]
    between = compare(*of, places=(winners[0], winners[1]), measure="cosine") if all(winners) else None
    yield _row("carrier_cosine", SPAN, between or replace(_NOTHING, reason="no carrier at one of the two"), n=1)
    if of[0].positions != of[1].positions:
        yield _row("direction_cosine", SPAN, replace(_NOTHING, reason="positions of the templates differ"), n=0)
        return
    for layer in range(of[0].values.shape[1]):
        span = layer_places(of[0], layer)
        yield _row("direction_cosine", layer, compare(*of, places=(span[-1:], span[-1:]), measure="cosine"), n=1)
        yield from _angles(of, layer, (span, span))
    yield from _angles(of, SPAN, (_places(carriers[0], "admissible"), _places(carriers[1], "admissible")))


def _angles(of: tuple[Directions, Directions], layer: int, places: tuple[list[Place], list[Place]]) -> Iterator[dict]:
    measures: tuple[Measure, ...] = ("principal_angle_mean", "principal_angle_max")
    for measure in measures:
        yield _row(measure, layer, compare(*of, places=places, measure=measure), n=min(map(len, places)))


def _places(carriers: pd.DataFrame, column: str) -> list[Place]:
    chosen = carriers[carriers[column] & carriers["exact"]]
    return [(int(row.position), int(row.layer)) for row in chosen.itertuples()]


def _values_at(directions: Directions, places: Sequence[Place]) -> np.ndarray:
    """(row, d_model), none for no places."""
    rows = [directions.values[directions.row(position), layer].double().numpy() for position, layer in places]
    return np.stack(rows) if rows else np.empty((0, directions.values.shape[-1]))


def _fold_sums_at(directions: Directions, places: Sequence[Place]) -> np.ndarray:
    """(term, row, d_model): the sums of every fold that the rows of `_values_at` are a mix of."""
    if not places:
        return np.empty((directions.counts.numel(), 0, directions.values.shape[-1]))
    return folds.fold_sums(directions, places).swapaxes(0, 1)


def _rank_estimate(
    directions: Directions, matrix: np.ndarray, terms: np.ndarray, *, scaling: Scaling, weight: Weight
) -> tuple[Estimate, str]:
    """Effective rank of `matrix` with its interval, and why there is none or none of the two."""
    if len(matrix) == 0:
        return Estimate(nan, nan, nan, 0), "no admissible candidate"
    value = effective_rank(matrix, scaling=scaling, weight=weight)
    counts = directions.counts.numpy()
    n = int((counts > 0).sum(1).min())
    if n < folds.FEWEST_FOLDS:
        few = f"too few prompts for an interval: {n} filled folds of a class, {folds.FEWEST_FOLDS} are needed"
        return Estimate(value, nan, nan, n), few
    mix = folds.coefficients(counts, folds.bootstrap(counts, N_RANKS, seed=0, paired=directions.paired))
    resampled = (np.tensordot(draw, terms, 1) for draw in mix)
    ranks = [
        effective_rank(rows, scaling=scaling, weight=weight) if np.isfinite(rows).all() else nan for rows in resampled
    ]
    return folds.interval(value, np.array(ranks), n, bounds=(1, len(matrix))), ""


_NOTHING = Drift(Estimate(nan, nan, nan, 0), nan, nan, "")


def _row(measure: str, layer: int, drift: Drift, *, n: int) -> dict:
    about = {"floor": drift.floor, "random": drift.random, "n": n, "reason": drift.reason}
    return {"measure": measure, "layer": layer, **_interval(drift.value), **about}


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}
