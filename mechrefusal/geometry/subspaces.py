"""Families of subspaces that may carry refusal: nested directions at one place.

A family is an orthonormal basis whose first k rows are its subspace of size k; `subspace_scores` says what each does.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.direction import Along, direction_of
from mechrefusal.geometry.nullspace import separating_directions
from mechrefusal.geometry.span_scores import Subspace

Activations = Float[Tensor, "prompt d_model"]

LARGEST = 5
RANDOM, RANDOM_CONE = "random", "random_cone"
RANK_TOLERANCE = 1e-6
"""Singular values below this share of the matrix' norm are rounding of the float32 activations."""


def categories(
    harmful: Activations, harmless: Activations, labels: Sequence[str], *, largest: int = LARGEST
) -> Subspace:
    """Differences in means of the categories of harm, each against all harmless prompts.

    The first row is the overall difference in means. The others are the right singular vectors of the matrix with a row
    √n_c · (mean of category c − mean of harmless) a category, the overall direction projected out, in descending
    order: the weight of n_c prompts keeps small, noisy categories from leading. Categories with one prompt are pooled
    as "other".

    Args:
        harmful, harmless: activations at one place.
        labels: the category of each harmful prompt.

    Raises:
        MechrefusalError: activations of different widths, or not one label a prompt.
    """
    if len(labels) != len(harmful):
        raise MechrefusalError(
            f"{len(labels)} categories for {len(harmful)} harmful prompts: give the category of each prompt"
        )
    x, y, reason = _activations(harmful, harmless)
    overall = x.mean(0) - y.mean(0)
    if reason or overall.norm() == 0:
        return _family("categories", x[:0], largest, reason or "the difference in means is zero")
    counts = Counter(labels)
    pooled = np.array([label if counts[label] > 1 else "other" for label in labels])
    names = sorted(set(pooled))
    means = [
        np.sqrt((pooled == name).sum()) * (x[torch.from_numpy(pooled == name)].mean(0) - y.mean(0)) for name in names
    ]
    first = overall / overall.norm()
    rows = torch.stack(means)
    rest = rows - torch.outer(rows @ first, first)
    basis = torch.cat([first[None], _principal(rest, rows.norm())])
    return _family("categories", basis, largest, f"{len(names)} categories span {len(basis)} directions")


def pca(harmful: Activations, harmless: Activations, *, largest: int = LARGEST) -> Subspace:
    """Right singular vectors of the matrix harmful − mean(harmless), a row a harmful prompt, in descending order.

    The matrix is not centred on its own mean, so that what sets all harmful prompts apart counts as well as what they
    differ in.

    Args:
        harmful, harmless: activations at one place.

    Raises:
        MechrefusalError: activations of different widths.
    """
    x, y, reason = _activations(harmful, harmless)
    rows = x - y.mean(0)
    if reason or rows.norm() == 0:
        return _family("pca", x[:0], largest, reason or "harmful and harmless activations are the same")
    basis = _principal(rows, rows.norm())
    return _family("pca", basis, largest, f"{len(rows)} harmful prompts span {len(basis)} directions")


def successive(harmful: Activations, harmless: Activations, *, largest: int = LARGEST, seed: int = 0) -> Subspace:
    """Iterative nullspace projection (INLP; Ravfogel et al., 2004.07667): separate, project out, separate again.

    Each direction is the normal of a logistic regression of harmful against harmless after all directions before are
    projected out, until the next one does not separate held-out prompts (`nullspace.separating_directions`). It does
    not start from the difference in means: once that is projected out the means coincide, and then no linear
    classifier finds anything more (Belrose et al., 2306.03819), so that a family that led with it would always end at
    one direction.

    Args:
        harmful, harmless: activations at one place.
        seed: of the folds.

    Raises:
        MechrefusalError: activations of different widths.
    """
    x, y, reason = _activations(harmful, harmless)
    if reason:
        return _family("successive", x[:0], largest, reason)
    basis, reason = separating_directions(x.numpy(), y.numpy(), largest=largest, seed=seed)
    return _family("successive", torch.from_numpy(basis), largest, reason)


def random_subspace(k: int, d_model: int, seed: int = 0) -> Subspace:
    """k random orthonormal directions: the floor."""
    noise = torch.randn((d_model, k), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Subspace(RANDOM, torch.linalg.qr(noise).Q.T)


def random_cone(difference: Along, k: int, seed: int = 0) -> Subspace:
    """r and k − 1 random directions orthogonal to it: a cone that is none, the floor of the learned one.

    Raises:
        MechrefusalError: a difference that is zero or not finite.
    """
    start = direction_of(difference).vector.double().cpu()
    if not start.isfinite().all() or not start.any():
        raise MechrefusalError("the difference in means is zero or not finite, so no cone can be built around it")
    noise = torch.randn((k, len(start)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise[0] = start
    columns, triangle = torch.linalg.qr(noise.T)
    return Subspace(RANDOM_CONE, (columns * triangle.diagonal().sign()).T)


def _activations(harmful: Activations, harmless: Activations) -> tuple[Tensor, Tensor, str]:
    """Both in float64 on the CPU, and why nothing can be taken from them, or an empty string."""
    x, y = (torch.as_tensor(each, dtype=torch.float64).cpu() for each in (harmful, harmless))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise MechrefusalError(
            f"activations of shapes {tuple(x.shape)} and {tuple(y.shape)} cannot be compared; "
            "give (prompts, d_model) of harmful and of harmless prompts at one place"
        )
    if min(len(x), len(y)) == 0:
        return x, y, f"there are {len(x)} harmful and {len(y)} harmless prompts"
    finite = bool(x.isfinite().all() and y.isfinite().all())
    return x, y, "" if finite else "activations are not finite"


def _principal(rows: Float[Tensor, "n d_model"], norm: Tensor) -> Float[Tensor, "k d_model"]:
    _, lengths, directions = torch.linalg.svd(rows, full_matrices=False)
    return directions[lengths > RANK_TOLERANCE * norm]


def _family(family: str, basis: Tensor, largest: int, reason: str) -> Subspace:
    return Subspace(family, basis[:largest], reason if len(basis) < largest else "")
