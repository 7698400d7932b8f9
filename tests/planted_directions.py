"""Directions without a model: a true direction plus the noise of prompts, by fold, at two checkpoints."""

import numpy as np
import torch

from mechrefusal.geometry import Directions


def from_activations(
    harmful: np.ndarray, harmless: np.ndarray, *, weights: str = "", n_folds: int = 16, paired: bool = False
) -> Directions:
    """Directions of activations (prompt, position, layer, d_model), prompt i in fold i % n_folds."""
    sums = np.zeros((2, n_folds, *harmful.shape[1:]))
    counts = np.zeros((2, n_folds), dtype=int)
    for which, rows in enumerate((harmful, harmless)):
        for fold in range(n_folds):
            sums[which, fold] = rows[fold::n_folds].sum(0)
            counts[which, fold] = len(rows[fold::n_folds])
    n_positions = harmful.shape[1]
    return Directions(
        values=torch.tensor(harmful.mean(0) - harmless.mean(0)),
        positions=tuple(range(-n_positions, 0)),
        tokens=tuple("abcdefgh"[:n_positions]),
        n_harmful=len(harmful),
        n_harmless=len(harmless),
        weights=weights,
        sums=torch.tensor(sums).float(),
        counts=torch.tensor(counts),
        paired=paired,
    )


def constant(values: np.ndarray, *, weights: str = "", n: int = 16) -> Directions:
    """Directions (position, layer, d_model) that every prompt shows alike: no noise."""
    return from_activations(np.stack([values] * n), np.zeros((n, *values.shape)), weights=weights)


def pair(
    seed: int,
    *,
    degrees: float = 0.0,
    length: float | tuple[float, float] = 2.0,
    n: int = 64,
    n_positions: int = 1,
    d_model: int = 48,
    shared: float = 0.8,
    topic: float = 0.0,
) -> tuple[Directions, Directions]:
    """Directions of two checkpoints at one layer, on the same prompts.

    The true directions, one a position and orthogonal, have `length`; from the first to the second checkpoint each
    turns by `degrees` into a dimension of its own. Prompts scatter by 1 in every dimension; the part `shared` of it is
    the same at both checkpoints. With a `topic` prompts are twins: on top of that harmful and harmless prompt i scatter
    together, by so much in every dimension.
    """
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(d_model, d_model)))[0]
    first, beside = axes[:n_positions], axes[n_positions : 2 * n_positions]
    angle = np.radians(degrees)
    common = random.normal(size=(2, n, n_positions, d_model))
    topics = topic * np.random.default_rng([seed, 1]).normal(size=common.shape[1:])
    found = []
    for truth, long in zip(
        (first, np.cos(angle) * first + np.sin(angle) * beside), np.broadcast_to(length, 2), strict=True
    ):
        own = random.normal(size=common.shape)
        activations = shared * common + np.sqrt(1 - shared**2) * own
        activations += topics
        activations[0] += long * truth
        found.append(from_activations(*activations[:, :, :, None], paired=topic > 0))
    return found[0], found[1]
