"""A measure between directions under other prompts: bootstraps over folds, halves of the folds, random directions.

Everything here is numpy, on the directions' sums by fold; no model is needed.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.directions import Directions
from mechrefusal.statistics import Estimate

Measure = Literal["cosine", "principal_angle_mean", "principal_angle_max"]

Side = tuple[Float[np.ndarray, "place term d_model"], Int[np.ndarray, "two fold"]]
"""What there is of one checkpoint: `fold_sums`, and how many prompts each fold has."""

N_SPLITS = 20
FEWEST_FOLDS = 4
"""Fewer filled folds than this in a class say nothing about the noise of its prompts."""

SUMMARY: dict[str, Callable] = {"principal_angle_mean": np.mean, "principal_angle_max": np.max}


def fold_sums(directions: Directions, places: Sequence[Place]) -> Float[np.ndarray, "place term d_model"]:
    """Sums of the harmful folds, then of the harmless ones, at each place; float64. Any direction is a mix of them."""
    rows = [directions.sums[:, :, directions.row(p), layer].flatten(0, 1) for p, layer in places]
    return np.stack([row.double().numpy() for row in rows])


def coefficients(
    counts: Int[np.ndarray, "two fold"], weights: Float[np.ndarray, "two draw fold"]
) -> Float[np.ndarray, "draw term"]:
    """What to multiply `fold_sums` by for directions under `weights` of the folds; NaN for a class without any."""
    with np.errstate(divide="ignore", invalid="ignore"):
        harmful, harmless = weights / np.einsum("cdf,cf->cd", weights, counts)[..., None]
    return np.concatenate([harmful, -harmless], axis=1)


def bootstrap(
    counts: Int[np.ndarray, "two fold"], n_draws: int, *, seed: int, paired: bool = False
) -> Float[np.ndarray, "two draw fold"]:
    """Weights of `n_draws` resamples of the filled folds, with replacement.

    Args:
        paired: the folds hold twins (`Directions.paired`): one draw serves both classes. Otherwise each has its own.
    """
    random = np.random.default_rng(seed)
    weights = np.zeros((2, n_draws, counts.shape[1]))
    for classes, filled in _drawn_alike(counts, paired=paired):
        n = int(filled.sum())
        weights[classes, :, filled] = random.multinomial(n, np.full(n, 1 / n), size=n_draws)
    return weights


def halves(
    counts: Int[np.ndarray, "two fold"], n_splits: int, *, seed: int, paired: bool = False
) -> Bool[np.ndarray, "two split fold"]:
    """Random first halves of the filled folds; the second half is the other filled folds.

    Args:
        paired: as for `bootstrap`. Halves that part twins cancel what the two share with the wrong sign.
    """
    random = np.random.default_rng(seed)
    first_half = np.zeros((2, n_splits, counts.shape[1]), dtype=bool)
    for classes, filled in _drawn_alike(counts, paired=paired):
        places = np.flatnonzero(filled)
        for split in range(n_splits):
            chosen = random.permutation(places)[: len(places) // 2]
            first_half[classes, split, chosen] = True
    return first_half


def compressed(
    a: Float[np.ndarray, "place term d_model"], b: Float[np.ndarray, "place term d_model"], *, together: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays turned into the span of their rows: the same inner products from fewer numbers.

    Args:
        together: all places into one span (places are compared with each other), or each into its own.
    """
    if together:
        rows = np.concatenate([a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])])[None]
    else:
        rows = np.concatenate([a, b], axis=1)
    if rows.shape[1] >= rows.shape[2]:
        return a, b
    turned = np.swapaxes(np.linalg.qr(np.swapaxes(rows, 1, 2), mode="r"), 1, 2)
    if together:
        flat_a, flat_b = np.split(turned[0], [a.shape[0] * a.shape[1]])
        return flat_a.reshape(*a.shape[:2], -1), flat_b.reshape(*b.shape[:2], -1)
    return turned[:, : a.shape[1]], turned[:, a.shape[1] :]


def measured(
    measure: Measure,
    a: Float[np.ndarray, "place term d_model"],
    b: Float[np.ndarray, "place term d_model"],
    u: Float[np.ndarray, "draw term"],
    v: Float[np.ndarray, "draw term"],
    *,
    chunk: int = 200,
) -> Float[np.ndarray, " draw"]:
    """The measure between the directions u·a and v·b, draw by draw; NaN where a direction is zero or not finite.

    cosine: the mean over places, each of a with the same of b. Principal angles (degrees): mean or largest of those
    between the spans of all places.
    """
    values = np.full(len(u), np.nan)
    for start in range(0, len(u), chunk):
        part = slice(start, start + chunk)
        x, y = (_unit(np.matmul(mix[part], sums)) for mix, sums in ((u, a), (v, b)))
        whole = np.isfinite(x).all(axis=(0, 2)) & np.isfinite(y).all(axis=(0, 2))
        x, y = x[:, whole], y[:, whole]
        rows = np.flatnonzero(whole) + start
        if measure == "cosine":
            values[rows] = np.einsum("pbd,pbd->pb", x, y).mean(axis=0)
        elif len(rows):
            values[rows] = _angles(x.swapaxes(0, 1), y.swapaxes(0, 1), measure)
    return values


def between_halves(
    measure: Measure,
    a: Side,
    b: Side,
    *,
    seed: int,
    weights: Float[np.ndarray, "two draw fold"] | None = None,
    paired: bool = False,
) -> Float[np.ndarray, " draw"]:
    """The measure between one half of the folds at a and the other half at b, mean over random splits.

    With a = b that is the split-half floor. Halves share no prompt, under no `weights` (by default every prompt once),
    and where prompts are `paired` no twins either.
    """
    if weights is None:
        weights = (a[1] > 0)[:, None].astype(float)
    first = halves(a[1], N_SPLITS, seed=seed, paired=paired)[:, :, None]
    u, v = (coefficients(a[1], (weights[:, None] * half).reshape(2, -1, weights.shape[-1])) for half in (first, ~first))
    by_split = measured(measure, a[0], b[0], u, v).reshape(N_SPLITS, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw that leaves every split a half empty is NaN
        return np.nanmean(by_split, axis=0)


def n_draws(n_places: int) -> int:
    """How many draws a measure over so many places gets: 400 for a few, 100 at least, as each costs more with more."""
    return int(np.clip(1600 // n_places, 100, 400))


def interval(
    value: float, draws: Float[np.ndarray, " draw"], n: int, *, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Estimate:
    """95% interval around `value` from bootstrap draws over n folds.

    The quantiles are taken around the draws' own median: resampling adds the noise of the prompts a second time, which
    pulls every cosine down and says nothing about the estimate. They are widened from the normal to Student's t with
    n − 1 degrees, and by √(n/(n−1)), for the few folds. NaN where more than 5% of the draws are.
    """
    if not np.isfinite(value) or np.isfinite(draws).mean() < 0.95:
        return Estimate(value, float("nan"), float("nan"), n)
    low, middle, high = np.nanquantile(draws, [0.025, 0.5, 0.975])
    wider = stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975) * np.sqrt(n / (n - 1))
    ends = np.clip([value - wider * (middle - low), value + wider * (high - middle)], *bounds)
    return Estimate(value, float(ends[0]), float(ends[1]), n)


@lru_cache(maxsize=512)
def random_floor(measure: Measure, d_model: int, n_a: int = 1, n_b: int = 1, *, seed: int = 0) -> float:
    """How alike random directions get: what only 5% of random pairs exceed.

    cosine: the 95th percentile of |cosine|, exact (its square follows a Beta(1/2, (d_model − 1)/2)). Principal angles:
    the 5th percentile between random spans of n_a and n_b directions, degrees, from seeded draws.
    """
    if measure == "cosine":
        return float(np.sqrt(stats.beta.ppf(0.95, 0.5, (d_model - 1) / 2))) if d_model > 1 else 1.0
    random = np.random.default_rng(seed)
    angles = []
    for _ in range(n_draws(max(n_a, n_b))):
        x, y = (_unit(random.normal(size=(1, n, d_model))) for n in (n_a, n_b))
        angles.append(_angles(x, y, measure)[0])
    return float(np.quantile(angles, 0.05))


def _drawn_alike(counts: Int[np.ndarray, "two fold"], *, paired: bool) -> list[tuple[slice, Bool[np.ndarray, " fold"]]]:
    """The classes that share their draws, and the folds to draw from."""
    filled = counts > 0
    return [(slice(0, 2), filled[0] | filled[1])] if paired else [(slice(0, 1), filled[0]), (slice(1, 2), filled[1])]


def _unit(rows: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _angles(
    a: Float[np.ndarray, "draw m d_model"], b: Float[np.ndarray, "draw n d_model"], measure: Measure
) -> np.ndarray:
    """The measure of the principal angles between the spans of unit rows: there are min(rank a, rank b) of them."""
    bases, ranks = zip(*(_whitening(rows) for rows in (a, b)), strict=True)
    cosines = np.linalg.svd(bases[0].swapaxes(1, 2) @ (a @ b.swapaxes(1, 2)) @ bases[1], compute_uv=False)
    angles = np.degrees(np.arccos(np.clip(cosines, 0, 1)))
    exists = np.arange(angles.shape[1]) < np.minimum(*ranks)[:, None]
    if measure == "principal_angle_max":
        return np.where(exists, angles, -np.inf).max(axis=1)
    return np.where(exists, angles, 0).sum(axis=1) / exists.sum(axis=1)


def _whitening(rows: Float[np.ndarray, "draw m d_model"]) -> tuple[np.ndarray, np.ndarray]:
    """(draw, m, m) that makes the rows orthonormal, with zeros for what depends on the others; and their rank."""
    values, vectors = np.linalg.eigh(rows @ rows.swapaxes(1, 2))
    nonzero = values > 1e-11 * values[:, -1:]  # sums are float32: rows that differ by less are the same
    scale = np.where(nonzero, 1 / np.sqrt(np.where(nonzero, values, 1)), 0)
    return vectors * scale[:, None, :], nonzero.sum(axis=1)
