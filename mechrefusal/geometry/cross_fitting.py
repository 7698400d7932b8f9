"""Projections on a direction of prompts that did not make it: fold by fold, with the direction of all other folds.

A difference in means r holds the noise of its own prompts, so that these differ along it by ‖r‖, of which 2d·σ²/n is
noise (d dimensions, n prompts a side, σ² the variance of a prompt in each): what other prompts differ by is less.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from mechrefusal.geometry.contrast import FOLDS
from mechrefusal.geometry.resampling import Blocks, Draws, blocks_of, contrast
from mechrefusal.statistics.intervals import Estimate


@dataclass(frozen=True)
class CrossFit:
    """Harmful prompts, then harmless ones, and the fold of each.

    `folds`: of every prompt; twins share one.
    """

    rows: Float[np.ndarray, "prompt d_model"]
    n_harmful: int
    folds: Int[np.ndarray, " prompt"]

    @classmethod
    def of(
        cls,
        harmful: Float[np.ndarray, "harmful d_model"],
        harmless: Float[np.ndarray, "harmless d_model"],
        twins: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    ) -> "CrossFit":
        """Deal prompts to `FOLDS` folds, or to as many as the smaller side has prompts; twins share a fold.

        Args:
            twins: a label of every prompt: those with the same are twins. None: nothing is known of any.
        """
        sizes = len(harmful), len(harmless)
        rows = np.concatenate([harmful, harmless])
        blocks: Blocks = blocks_of(range(len(rows)) if twins is None else [*twins[0], *twins[1]])
        on_both = np.isin(blocks, np.intersect1d(blocks[: sizes[0]], blocks[sizes[0] :]))
        places = -np.ones(blocks.max() + 1, dtype=int)
        together = np.unique(blocks[on_both])
        places[together] = np.arange(len(together))
        for side in (slice(0, sizes[0]), slice(sizes[0], None)):  # then those without a twin, side by side
            alone = np.unique(blocks[side][~on_both[side]])
            places[alone] = len(together) + np.arange(len(alone))
        return cls(rows, sizes[0], places[blocks] % min(FOLDS, *sizes))

    def without(self, left_out: Int[np.ndarray, "draw folds"]) -> Draws:
        """Contrasts of all prompts but those of some folds, draw by draw."""
        remaining = (self.folds != left_out[..., None]).all(axis=1)
        first = np.arange(len(self.rows)) < self.n_harmful
        return contrast(remaining * first, remaining * ~first)

    def projected(
        self, weights: Draws, others: Float[np.ndarray, "draw d_model"] | Float[np.ndarray, "other d_model"]
    ) -> tuple[Float[np.ndarray, " draw"], Float[np.ndarray, "draw other"]]:
        """What the prompts of a fold differ by along the direction of the other folds, and what `others` have along it.

        Both are means over folds, each counted by how much of both sides it holds, so that their ratio is a share: a
        fold's direction is as long, and as noisy, in the one as in the other. Prompts of a fold that a draw leaves
        without one of the sides are in the directions of the other folds alone.

        Args:
            weights: contrasts of the prompts, one a draw (see `resampling`).
            others: rows that are the same in every draw.
        """
        centred = self.rows - self.rows.mean(axis=0)
        against = np.concatenate([centred, others]) @ centred.T
        gram, beside = against[: len(centred)], against[len(centred) :]
        sides = np.maximum(weights, 0), np.maximum(-weights, 0)
        # What all prompts give, from which a fold takes its own.
        all_inner, all_beside = [side @ gram for side in sides], [side @ beside.T for side in sides]
        n = len(weights)
        whole, projections, total = np.zeros(n), np.zeros((n, len(others))), np.zeros(n)
        for fold in np.unique(self.folds):
            here = self.folds == fold
            weights_here = [side[:, here] for side in sides]
            share = [part.sum(axis=1, keepdims=True) for part in weights_here]
            with np.errstate(divide="ignore", invalid="ignore"):
                inner = [
                    (a - part @ gram[here]) / (1 - h) for a, part, h in zip(all_inner, weights_here, share, strict=True)
                ]
                along = [
                    (a - part @ beside[:, here].T) / (1 - h)
                    for a, part, h in zip(all_beside, weights_here, share, strict=True)
                ]
                rest = sides[0] * ~here / (1 - share[0]) - sides[1] * ~here / (1 - share[1])
                direction = inner[0] - inner[1]  # inner products of every prompt with the direction of the others
                length = np.sqrt(np.maximum((direction * rest).sum(axis=1), 0))
                differ = (weights_here[0] / share[0] - weights_here[1] / share[1]) * direction[:, here]
                counted = (share[0] * share[1] / (share[0] + share[1]))[:, 0]
                usable = (counted > 0) & (length > 0) & np.isfinite(length)
                whole += np.where(usable, counted * differ.sum(axis=1) / length, 0)
                projections += np.where(usable[:, None], counted[:, None] * (along[0] - along[1]) / length[:, None], 0)
            total += np.where(usable, counted, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return whole / total, projections / total[:, None]


def ratio(
    fit: CrossFit,
    difference: float,
    whole: float,
    others: Float[np.ndarray, "other d_model"],
    n_first: int,
    along: Float[np.ndarray, " other"],
) -> Estimate:
    """difference / whole with its 95% interval (Fieller, 1954): that of a ratio whose denominator is noisy too.

    The noise of the prompts that made the direction, in both, is that of the jackknife over their folds (`_noise`), the
    direction being made and held out anew each time; that of the others in the difference is what they vary by along
    it. A bootstrap would add the noise of the direction a second time, which is most of it. Student's t with the
    degrees of freedom of Welch and Satterthwaite. Low and high are NaN where the denominator is not clear of zero.

    Args:
        difference: mean of the first `n_first` of `others` minus that of the rest, `along` the cross-fitted direction.
        whole: what the fit's own prompts differ by.
    """
    n, noise = len(np.unique(fit.folds)), _noise(fit, np.array([difference, whole]), others, n_first)
    groups = along[:n_first], along[n_first:]
    apart = sum(group.var(ddof=1) / len(group) for group in groups)
    value, fewest = difference / whole, min(map(len, groups))
    (a, ab), (_, b) = noise
    jackknifed = a - 2 * value * ab + value**2 * b
    freedom = (jackknifed + apart) ** 2 / (jackknifed**2 / (n - 1) + apart**2 / (fewest - 1))
    with np.errstate(invalid="ignore"):
        t = stats.t.ppf(0.975, freedom) ** 2
    # (difference − share · whole)² = t² · variance of that: a parabola in the share.
    square, linear, constant = whole**2 - t * b, difference * whole - t * ab, difference**2 - t * (a + apart)
    root = linear**2 - square * constant
    if not (np.isfinite(root) and square > 0 and root >= 0):
        return Estimate(value, float("nan"), float("nan"), min(n, fewest))
    ends = sorted((linear + sign * np.sqrt(root)) / square for sign in (-1, 1))
    return Estimate(value, float(ends[0]), float(ends[1]), min(n, fewest))


def _noise(
    fit: CrossFit, now: Float[np.ndarray, " two"], others: np.ndarray, n_first: int
) -> Float[np.ndarray, "two two"]:
    """Covariance of the difference and the whole over the fit's prompts: the jackknife over folds, less its excess.

    Products of the noise of two folds, which is most of what few prompts have, count twice in a jackknife; leaving out
    two folds at a time tells how much that is (Efron and Stein, 1981, section 5). Half the jackknife at least.
    """
    folds = np.unique(fit.folds)
    n = len(folds)

    def left_out(places: np.ndarray) -> Float[np.ndarray, "draw two"]:
        wholes, projected = fit.projected(fit.without(folds[places]), others)
        return np.stack([projected[:, :n_first].mean(axis=1) - projected[:, n_first:].mean(axis=1), wholes], axis=1)

    alone = left_out(np.arange(n)[:, None])
    jackknife = (n - 1) ** 2 / n * np.cov(alone.T)
    if n < 4:
        return jackknife
    i, j = np.triu_indices(n, 1)
    both = n * now - (n - 1) * (alone[i] + alone[j]) + (n - 2) * left_out(np.stack([i, j], axis=1))
    both -= both.mean(axis=0)
    corrected = jackknife - both.T @ both / (n * (n - 1))
    least = np.linalg.eigvalsh(corrected - jackknife / 2)[0] if np.isfinite(corrected).all() else -1.0
    return corrected if least >= 0 else jackknife / 2
