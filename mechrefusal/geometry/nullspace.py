"""Iterative nullspace projection: separate two kinds of activations, project that direction out, separate again."""

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

CHANCE_AUC = 0.6
"""At most this, a direction does not separate."""
NOTHING = 1e-6
"""Length of a classifier's normal, on activations of unit scale, that is rounding."""


def separating_directions(
    positive: Float[np.ndarray, "n d_model"], negative: Float[np.ndarray, "m d_model"], *, largest: int, seed: int = 0
) -> tuple[Float[np.ndarray, "k d_model"], str]:
    """Orthonormal normals of successive logistic regressions, and why there are no more (INLP, 2004.07667).

    It ends where the AUC of the next direction on held-out rows is at most 0.6. Rows are held out of the directions
    before as well (five folds, each with a sequence of its own): projecting out directions that were fitted to all rows
    would leave the held-out ones separated the other way round.

    Args:
        seed: of the folds.

    Returns:
        At most `largest` rows; the reason is empty where there are that many.
    """
    n_folds = min(5, len(positive), len(negative))
    rows = np.concatenate([positive, negative])
    basis = np.empty((0, rows.shape[1]))
    if n_folds < 2:
        return basis, "cross-validation needs two prompts of each kind"
    labels = np.arange(len(rows)) < len(positive)
    folds = list(StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(rows, labels))
    held_out = [basis] * n_folds
    while len(basis) < min(largest, rows.shape[1]):
        aucs = []
        for fold, (fitted, left) in enumerate(folds):
            direction = normal(rows[fitted], labels[fitted], held_out[fold])
            aucs.append(roc_auc_score(labels[left], rows[left] @ direction))
            held_out[fold] = np.vstack([held_out[fold], direction])
        if (auc := float(np.mean(aucs))) <= CHANCE_AUC:
            return basis, f"the next direction separates held-out prompts with AUC {auc:.2f}, at most {CHANCE_AUC}"
        basis = np.vstack([basis, normal(rows, labels, basis)])
    return basis, ""


def normal(
    rows: Float[np.ndarray, "n d_model"], labels: np.ndarray, basis: Float[np.ndarray, "k d_model"]
) -> Float[np.ndarray, " d_model"]:
    """Unit normal of a logistic regression (L2, classes balanced) outside of `basis`; zero where it finds none."""
    rest = rows - rows @ basis.T @ basis
    rest = rest - rest.mean(0)
    scale = rest.std()
    if not scale > 0:
        return np.zeros(rows.shape[1])
    # One scale for all coordinates: what is found must not depend on the basis that the residual stream is written in.
    weights = LogisticRegression(class_weight="balanced", max_iter=2000).fit(rest / scale, labels).coef_[0]
    weights = weights - weights @ basis.T @ basis
    length = np.linalg.norm(weights)
    return weights / length if length > NOTHING else np.zeros_like(weights)
