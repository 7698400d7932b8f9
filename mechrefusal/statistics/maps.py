"""Tests of many cells at once: which heads, layers or edges of a map differ from nothing, with few false marks."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from scipy import optimize, special, stats

DRAWS = 2000
ALPHA = 0.05
"""A p below this is called significant: of a cell of a map, and of two-sided tests elsewhere."""
FEWEST_CONTROLS = 3
TIE = 1e-5
"""Share of |t| within which two are equal: values come from float32 passes, whose rounding must not break a tie (a cell
that is 0 for one of two pairs has the same |t| whichever sign is flipped)."""
NOTHING = 1e-5
"""Nats, or logits: what sums in another order change in a float32 pass. A cell that no unit changes by more has not
changed: |t| of rounding is any number, and with few units the largest of all."""


def sign_flip_p(
    values: Float[np.ndarray, "unit cell"], *, draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, " cell"]:
    """Of every cell, how often a map of nothing has any cell as far from 0: p adjusted for all cells (family-wise).

    Westfall and Young's step-down max-|t| ("Resampling-based multiple testing", 1993, algorithm 4.1; Ge, Dudoit and
    Speed 2003) with the signs of whole units flipped, as values are symmetric about 0 where there is nothing. What
    cells have in common stays, so that correlated cells cost less than Bonferroni's correction. |t| is Student's over
    units. Where fewer than `draws` flips exist all are taken.

    Args:
        values: changes of one prompt or pair (rows), or of a twin's mean, in every cell; nats or logits.

    Returns:
        p, 1 at most; NaN for cells that are NaN anywhere, and for all with fewer than two units. A cell that is within
        `NOTHING` of 0 for every unit has p 1.
    """
    values = np.asarray(values, float)
    values = np.where((np.abs(values) <= NOTHING).all(axis=0), 0.0, values)
    n, n_cells = values.shape
    p = np.full(n_cells, np.nan)
    known = np.flatnonzero(np.isfinite(values).all(axis=0))
    if n < 2 or not len(known):
        return p
    kept = values[:, known]
    squares = (kept**2).sum(axis=0)
    signs = _signs(n, draws, seed)
    observed = _t(np.ones((1, n)) @ kept / n, squares, n)[0]
    chunk = max(1, 4_000_000 // len(known))
    permuted = (_t(signs[i : i + chunk] @ kept / n, squares, n) for i in range(0, len(signs), chunk))
    p[known] = _step_down(observed, permuted, every=len(signs) == 2**n)
    return p


def two_sample_p(
    one: Float[np.ndarray, "unit cell"], other: Float[np.ndarray, "unit cell"], *, draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, " cell"]:
    """The same for differences between two independent groups: labels are dealt anew, |t| is Welch's."""
    one, other = np.asarray(one, float), np.asarray(other, float)
    rows = np.concatenate([one, other])
    p = np.full(rows.shape[1], np.nan)
    known = np.flatnonzero(np.isfinite(rows).all(axis=0))
    n, m = len(one), len(other)
    if min(n, m) < 2 or not len(known):
        return p
    rows = rows[:, known]
    random = np.random.default_rng(seed)
    here = np.arange(n + m) < n
    labels = np.stack([here, *(random.permutation(n + m) < n for _ in range(draws))]).astype(float)
    means, variances = [], []
    for weights, size in ((labels, n), (1 - labels, m)):
        mean = weights @ rows / size
        variances.append(np.maximum(weights @ rows**2 - size * mean**2, 0) / (size - 1) / size)
        means.append(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(means[0] - means[1]) / np.sqrt(sum(variances))
    t = np.nan_to_num(t, nan=0.0, posinf=np.inf)
    p[known] = _step_down(t[0], [t[1:]], every=False)
    return p


def among_controls_p(
    value: Float[np.ndarray, " cell"], controls: Float[np.ndarray, "draw cell"]
) -> Float[np.ndarray, " cell"]:
    """Of every cell, whether its value is one more draw of its own controls: p adjusted for all cells (Holm, 1979).

    Student's t for a new observation, (value − mean) / (s √(1 + 1/draws)). The variance s² of a cell's few controls is
    moderated by those of all cells (Smyth, "Linear models and empirical Bayes methods", 2004, section 6): it counts
    draws − 1 degrees of its own and as many of the prior as the cells' variances are alike. Values and controls are
    taken for normal. NaN with fewer than `FEWEST_CONTROLS` draws: with two, how alike the variances are cannot be
    estimated (18% of maps of nothing had a mark).
    """
    value, controls = np.asarray(value, float), np.asarray(controls, float)
    n = len(controls)
    p = np.full(len(value), np.nan)
    if n < FEWEST_CONTROLS:
        return p
    variance = controls.var(axis=0, ddof=1)
    known = np.flatnonzero(np.isfinite(value) & np.isfinite(variance) & (variance > 0))
    if not len(known):
        return p
    moderated, freedom = _moderated(variance[known], n - 1)
    t = np.abs(value[known] - controls[:, known].mean(axis=0)) / np.sqrt(moderated * (1 + 1 / n))
    p[known] = holm(2 * stats.t.sf(t, freedom))
    return p


def _moderated(variance: Float[np.ndarray, " cell"], freedom_of_cell: int) -> tuple[np.ndarray, float]:
    """Variances drawn towards what they have in common, and the degrees of freedom that they then have."""
    logs = np.log(variance) - special.digamma(freedom_of_cell / 2) + np.log(freedom_of_cell / 2)
    spread = logs.var(ddof=1) - special.polygamma(1, freedom_of_cell / 2) if len(logs) > 1 else np.inf
    if spread <= 1e-3:  # all alike: what they have in common is known
        return np.full_like(variance, np.exp(logs.mean())), np.inf
    prior = 2 * _inverse_trigamma(spread) if np.isfinite(spread) else 0.0
    if prior < 1e-3:
        return variance, float(freedom_of_cell)
    common = np.exp(logs.mean() + special.digamma(prior / 2) - np.log(prior / 2))
    return (prior * common + freedom_of_cell * variance) / (prior + freedom_of_cell), prior + freedom_of_cell


def _inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value; it falls from infinity to 0."""
    return float(np.exp(optimize.brentq(lambda log: special.polygamma(1, np.exp(log)) - value, -20, 20)))


def _step_down(
    observed: Float[np.ndarray, " cell"], permuted: Iterable[Float[np.ndarray, "draw cell"]], *, every: bool
) -> Float[np.ndarray, " cell"]:
    """Adjusted p from |t| as observed and in maps of nothing, part by part.

    Args:
        every: the draws are all that there are, the observed one among them.
    """
    order = np.argsort(-observed, kind="stable")
    exceeded, n = np.zeros(len(observed)), 0
    for part in permuted:
        # The largest among this cell and all that come after it in order.
        largest = np.maximum.accumulate(part[:, order][:, ::-1], axis=1)[:, ::-1]
        exceeded += (largest >= (1 - TIE) * observed[order]).sum(axis=0)
        n += len(part)
    return _rising(exceeded / n if every else (exceeded + 1) / (n + 1), order)


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """p adjusted for all of these tests, however they hang together (Holm, 1979); NaN stays NaN and is no test."""
    p = np.asarray(p, float)
    adjusted, known = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = np.argsort(p[known], kind="stable")
    adjusted[known] = _rising(p[known][order] * np.arange(len(known), 0, -1), order)
    return adjusted


def _rising(p: Float[np.ndarray, " cell"], order: np.ndarray) -> Float[np.ndarray, " cell"]:
    """p in order made to rise, 1 at most, and put back into place."""
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p), 1)
    return adjusted


def _signs(n: int, draws: int, seed: int) -> Float[np.ndarray, "draw unit"]:
    if 2**n <= draws:
        return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, n))


def _t(
    means: Float[np.ndarray, "draw cell"], squares: Float[np.ndarray, " cell"], n: int
) -> Float[np.ndarray, "draw cell"]:
    """|t| from means of flipped values, whose squares are those of the values."""
    variance = np.maximum(squares - n * means**2, 0) / (n - 1) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(means) / np.sqrt(variance)
    return np.where(np.isnan(t), 0.0, t)
