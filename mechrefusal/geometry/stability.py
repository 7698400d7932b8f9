"""How much a carrier depends on the prompts that chose it: those it was scored on, and those it was taken from."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy import ndarray

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import require_weights
from mechrefusal.geometry.carrier_scores import SCORES, CarrierScores
from mechrefusal.geometry.carriers import exact_candidates, select
from mechrefusal.geometry.contrast import Contrast
from mechrefusal.geometry.directions import Directions
from mechrefusal.geometry.scoring import Scorer, scores_of
from mechrefusal.progress import track
from mechrefusal.statistics.choosing import PUBLISHED, Admissible, lowest

HALF_SCORES = ("position", "layer", "half", *SCORES)

CONTENDERS = 5
"""Candidates that halves of the direction prompts choose among: each costs two exact scores."""


@dataclass(frozen=True)
class Stability:
    """What bootstraps over the validation prompts chose.

    `table`: position, layer, `win_frequency` (share of all bootstraps in which the candidate is the carrier), row by
    row as the scores. `none_frequency`: share in which no candidate is admissible. `margin`: bypass (nats) of the
    best other admissible candidate minus that of the winner, NaN without a winner or a second; `margin_low`,
    `margin_high`: its 95% interval over the bootstraps that have two. `layer_low`, `layer_high`: 95% interval of the
    winning layer over the bootstraps that have a winner.
    """

    table: pd.DataFrame
    none_frequency: float
    margin: float
    margin_low: float
    margin_high: float
    layer_low: float
    layer_high: float
    n_bootstrap: int


@dataclass(frozen=True)
class SplitHalf:
    """What the directions of two halves of the direction prompts chose.

    `table`: position, layer and `half_wins`, row by row as the scores: how many of the two halves chose the candidate,
    NaN where it was no contender. `n_halves`: halves that chose one, 0 to 2. `layer_low`, `layer_high`: the lower and
    the higher of the two layers, NaN unless both did. `scores`: position, layer, half (1, 2), bypass, induce and kl of
    every contender with the directions of that half, means over the validation prompts.
    """

    table: pd.DataFrame
    scores: pd.DataFrame
    n_halves: int
    layer_low: float
    layer_high: float


def bootstrap(
    scores: CarrierScores,
    n_layers: int,
    admissible: Admissible = PUBLISHED,
    *,
    n: int = 1000,
    seed: int = 0,
) -> Stability:
    """Choose the carrier again on `n` resamples of the validation prompts. It runs no model.

    Harmful and harmless prompts are resampled with replacement, each side by itself; every candidate sees the same
    resample. Only exact candidates take part. What the directions owe to *their* prompts is not in it: see
    `split_half`.

    Args:
        scores: from `score` or `screened`.
    """
    if n < 1:
        raise MechrefusalError(f"bootstraps of the carrier are {n}: give at least 1")
    table = scores.table[["position", "layer"]].reset_index(drop=True)
    layers = table["layer"].to_numpy(float)
    allowed, candidates = exact_candidates(scores, n_layers, admissible)
    wins = np.zeros(len(table))
    nothing = float("nan"), float("nan")
    if not len(allowed) or not scores.bypass.shape[1] or not scores.induce.shape[1]:
        return Stability(table.assign(win_frequency=wins), 1.0, float("nan"), *nothing, *nothing, n)
    random = np.random.default_rng(seed)
    sizes = scores.bypass.shape[1], scores.induce.shape[1]
    ranks = candidates.ranked(*(random.multinomial(size, np.full(size, 1 / size), size=n) for size in sizes))
    chosen = lowest(ranks)
    winners = allowed[chosen[chosen >= 0]]
    np.add.at(wins, winners, 1)
    margins = _margins(candidates.ranked(*(np.ones((1, size)) for size in sizes)))
    return Stability(
        table.assign(win_frequency=wins / n),
        float(1 - (chosen >= 0).mean()),
        float(margins[0]) if len(margins) else float("nan"),
        *_interval(_margins(ranks)),
        *_interval(layers[winners]),
        n,
    )


def split_half(
    model,
    directions: Directions,
    validation: Contrast,
    metric: RefusalMetric,
    scores: CarrierScores,
    bootstraps: Stability,
    admissible: Admissible = PUBLISHED,
    *,
    contenders: int = CONTENDERS,
    scorer: Scorer | None = None,
) -> SplitHalf:
    """Choose the carrier again by the directions of each half of the direction prompts.

    The halves are those of `Directions.halves` (twins stay together). They choose among the `contenders` exact
    candidates that win most of the bootstraps over validation prompts, of those that win alike the admissible ones
    first, then those of the lowest bypass; what half of the prompts would make of all others is not asked. It is a
    check, not an interval: the range of two halves covers what all prompts would choose about half the time.

    Args:
        model: a hooked transformer; validation, metric: what `scores` were taken with.
        scores: from `score` or `screened`, whose reference is that of the halves too: its harmless mean is that of all
            direction prompts for either. bootstraps: their `bootstrap`.
        scorer: that `scores` were taken with, if it is kept.

    Raises:
        MechrefusalError: directions of other weights, no prompts, no contenders to choose among, or scores that do not
            say their reference.
    """
    if contenders < 1:
        raise MechrefusalError(f"contenders for halves of the direction prompts are {contenders}: give at least 1")
    if scores.reference is None:
        raise MechrefusalError("these scores do not say what was ablated to: give what geometry.score returns")
    require_weights(model, directions.weights, "directions")
    n_layers, reference = model.cfg.n_layers, scores.reference
    table = scores.table[["position", "layer"]].reset_index(drop=True).assign(half_wins=float("nan"))
    judged = select(scores, n_layers, admissible).table.assign(wins=bootstraps.table["win_frequency"])
    order = {"wins": False, "admissible": False, "bypass": True}
    allowed = judged.loc[exact_candidates(scores, n_layers, admissible)[0]]
    ranked = allowed.sort_values(list(order), ascending=list(order.values()), kind="stable")
    places = ranked.index[:contenders].tolist()
    scored_places = [(int(table.loc[place, "position"]), int(table.loc[place, "layer"])) for place in places]
    table.loc[places, "half_wins"] = 0.0
    if not scored_places:
        return SplitHalf(table, pd.DataFrame(columns=list(HALF_SCORES)), 0, float("nan"), float("nan"))
    scorer = scorer or Scorer(model, validation, metric)
    layers: list[float] = []
    scored: list[pd.DataFrame] = []
    halves = [replace(directions, values=half.float()) for half in directions.halves]
    for number, half in enumerate(track(halves, "carriers of halves"), start=1):
        each = [scores_of(scorer, half.at(*place, reference=reference)) for place in scored_places]
        of_half = CarrierScores.gathered(scored_places, each)
        scored.append(of_half.table.assign(half=number)[list(HALF_SCORES)])
        winner = select(of_half, n_layers, admissible).winner
        if winner is not None:
            table.loc[places[winner.row], "half_wins"] += 1
            layers.append(float(winner.layer))
    both = len(layers) == len(halves)
    scores_of_halves = pd.concat(scored, ignore_index=True)
    return SplitHalf(
        table, scores_of_halves, len(layers), *((min(layers), max(layers)) if both else (float("nan"), float("nan")))
    )


def _margins(ranked: ndarray) -> ndarray:
    """Second lowest minus lowest of each row, where both are finite."""
    if ranked.shape[1] < 2:
        return np.empty(0)
    lowest = np.partition(ranked, 1, axis=1)[:, :2]
    both = lowest[np.isfinite(lowest).all(axis=1)]
    return both[:, 1] - both[:, 0]


def _interval(values: ndarray) -> tuple[float, float]:
    """Central 95%; layers stay whole numbers."""
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
