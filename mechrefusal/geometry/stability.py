"""How much a carrier depends on the validation prompts that chose it: a bootstrap over their scores."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy import ndarray

from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry.carriers import last_layer
from mechrefusal.geometry.scoring import CarrierScores


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


def bootstrap(
    scores: CarrierScores,
    n_layers: int,
    kl_threshold: float = 0.1,
    induce_threshold: float = 0.0,
    prune_layer_fraction: float = 0.2,
    *,
    n: int = 1000,
    seed: int = 0,
) -> Stability:
    """Choose the carrier again on `n` resamples of the validation prompts. It runs no model.

    Harmful and harmless prompts are resampled with replacement, each side by itself; every candidate sees the same
    resample. Only exact candidates take part. What the directions owe to *their* prompts is not in it: that is the
    split-half cosine of `Directions`.

    Args:
        scores: from `score` or `screened`; thresholds as in `carriers.select`.
    """
    if n < 1:
        raise MechrefusalError(f"bootstraps of the carrier are {n}: give at least 1")
    table = scores.table[["position", "layer"]].reset_index(drop=True)
    layers, positions = table["layer"].to_numpy(float), table["position"].to_numpy(float)
    eligible = np.flatnonzero(
        np.isfinite(scores.bypass).all(axis=1)
        & np.isfinite(scores.induce).all(axis=1)
        & np.isfinite(scores.kl).all(axis=1)
        & (layers < last_layer(n_layers, prune_layer_fraction))
    )
    # In the order in which ties are decided, so that the first of the lowest is the winner.
    eligible = eligible[np.lexsort((positions[eligible], layers[eligible]))]
    wins = np.zeros(len(table))
    nothing = float("nan"), float("nan")
    if not len(eligible) or not scores.bypass.shape[1] or not scores.induce.shape[1]:
        return Stability(table.assign(win_frequency=wins), 1.0, float("nan"), *nothing, *nothing, n)
    bypass, induce, kl = scores.bypass[eligible], scores.induce[eligible], scores.kl[eligible]
    random = np.random.default_rng(seed)
    harmful, harmless = _resamples(random, n, bypass.shape[1]), _resamples(random, n, induce.shape[1])

    def ranked(over_harmful: ndarray, over_harmless: ndarray) -> ndarray:
        """Bypass of every candidate, infinite where it is not admissible; one row a weighting of the prompts."""
        admissible = (over_harmless @ kl.T <= kl_threshold) & (over_harmless @ induce.T >= induce_threshold)
        return np.where(admissible, over_harmful @ bypass.T, np.inf)

    drawn = ranked(harmful, harmless)
    winner, some = drawn.argmin(axis=1), np.isfinite(drawn).any(axis=1)
    np.add.at(wins, eligible[winner[some]], 1)
    own = _margins(ranked(*(np.full((1, size), 1 / size) for size in (bypass.shape[1], induce.shape[1]))))
    return Stability(
        table.assign(win_frequency=wins / n),
        float(1 - some.mean()),
        float(own[0]) if len(own) else float("nan"),
        *_interval(_margins(drawn)),
        *_interval(layers[eligible[winner[some]]]),
        n,
    )


def _resamples(random: np.random.Generator, n: int, size: int) -> ndarray:
    """`n` bootstraps of the mean over `size` prompts, as weights of the prompts."""
    return random.multinomial(size, np.full(size, 1 / size), size=n) / size


def _margins(ranked: ndarray) -> ndarray:
    """Second lowest minus lowest of each row, where both are finite."""
    if ranked.shape[1] < 2:
        return np.empty(0)
    lowest = np.partition(ranked, 1, axis=1)[:, :2]
    found = lowest[np.isfinite(lowest).all(axis=1)]
    return found[:, 1] - found[:, 0]


def _interval(values: ndarray) -> tuple[float, float]:
    """Central 95%; layers stay whole numbers."""
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
