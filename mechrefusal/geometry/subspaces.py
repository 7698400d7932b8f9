"""Subspaces as refusal carriers: families of nested directions at one place, and the smallest that does the work.

A family is an orthonormal basis whose first k rows are its subspace of size k. `score_subspaces` ablates each of them
and `choose` names the smallest admissible one that takes away 90% of what the best one does. A cone is another claim
than a subspace: that every direction in it carries refusal by itself. So cones are scored by directions drawn from
them, one at a time (Wollschläger et al., 2502.17420): the span of r and anything else answers once it is ablated.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Along, Carrier, Direction, direction_of, require_weights
from mechrefusal.geometry import carriers
from mechrefusal.geometry.directions import Contrast
from mechrefusal.geometry.nullspace import separating_directions
from mechrefusal.geometry.scoring import Scorer
from mechrefusal.geometry.span_scores import SAMPLES, SpanScorer, Subspace
from mechrefusal.models import require_layers
from mechrefusal.progress import track
from mechrefusal.statistics import Observations, Observed, intervals
from mechrefusal.statistics.choosing import FLAGS, PUBLISHED, Admissible

Activations = Float[Tensor, "prompt d_model"]

LARGEST = 5
RANDOM, RANDOM_CONE = "random", "random_cone"
FLOORS = (RANDOM, RANDOM_CONE)
"""Families that are floors: they are never the best, nor the smallest. `random_cone` has r in its first row."""
CONES = ("cone", RANDOM_CONE)
"""Families that are scored by directions drawn from them, from two rows on."""
ENOUGH = 0.9
"""Share of the best drop of the refusal score that the smallest subspace must reach."""
RANK_TOLERANCE = 1e-6
"""Singular values below this share of the matrix' norm are rounding of the float32 activations."""


@dataclass(frozen=True)
class Subspaces(Observed):
    """`table`: one row a family and k, as `choose` returns it. `baseline`: the harmful prompts without intervention.

    `observations`: every prompt's score; axes family, k and measure (bypass of the harmful prompts, induce and kl of
    the harmless ones). Of a cone they are means over the directions drawn from it.
    """

    table: pd.DataFrame
    baseline: intervals.Estimate
    observations: Observations

    def _estimate(self, cell: pd.Series, values: Float[np.ndarray, " prompt"], confidence: float) -> intervals.Estimate:
        mean = intervals.skewed_mean if cell["measure"] == "kl" else intervals.mean
        return mean(values, confidence=confidence)

    def top(self, k: int) -> pd.DataFrame:
        """The `k` rows of the table with the lowest bypass, admissible ones first."""
        return self.table.sort_values(["admissible", "bypass"], ascending=[False, True], kind="stable").head(k)

    @property
    def smallest(self) -> pd.Series | None:
        """The smallest admissible subspace that reaches 90% of the best drop; None where none is admissible."""
        rows = self.table[self.table["smallest"]]
        return None if rows.empty else rows.iloc[0]


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
        MechrefusalError: other widths, or not one label a prompt.
    """
    if len(labels) != len(harmful):
        raise MechrefusalError(
            f"{len(labels)} categories for {len(harmful)} harmful prompts: give the category of each prompt"
        )
    x, y, reason = _activations(harmful, harmless)
    overall = x.mean(0) - y.mean(0)
    if reason or overall.norm() == 0:
        return _found("categories", x[:0], largest, reason or "the difference in means is zero")
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
    return _found("categories", basis, largest, f"{len(names)} categories span {len(basis)} directions")


def pca(harmful: Activations, harmless: Activations, *, largest: int = LARGEST) -> Subspace:
    """Right singular vectors of the matrix harmful − mean(harmless), a row a harmful prompt, in descending order.

    The matrix is not centred on its own mean, so that what sets all harmful prompts apart counts as well as what they
    differ in.

    Args:
        harmful, harmless: activations at one place.

    Raises:
        MechrefusalError: other widths.
    """
    x, y, reason = _activations(harmful, harmless)
    rows = x - y.mean(0)
    if reason or rows.norm() == 0:
        return _found("pca", x[:0], largest, reason or "harmful and harmless activations are the same")
    basis = _principal(rows, rows.norm())
    return _found("pca", basis, largest, f"{len(rows)} harmful prompts span {len(basis)} directions")


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
        MechrefusalError: other widths.
    """
    x, y, reason = _activations(harmful, harmless)
    if reason:
        return _found("successive", x[:0], largest, reason)
    basis, reason = separating_directions(x.numpy(), y.numpy(), largest=largest, seed=seed)
    return _found("successive", torch.from_numpy(basis), largest, reason)


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


@torch.no_grad()
def score_subspaces(
    model,
    subspaces: Sequence[Subspace],
    validation: Contrast,
    metric: RefusalMetric,
    *,
    difference: Direction | Carrier,
    admissible: Admissible = PUBLISHED,
    largest: int = LARGEST,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Subspaces:
    """Score every family at k = 1 to `largest` on validation prompts.

    bypass: mean refusal score on the harmful prompts with the subspace ablated. kl: mean KL(base ‖ ablated) of the
    next-token distribution on the harmless prompts, nats. induce: mean refusal score on the harmless prompts with
    QQᵀr, the part of the difference in means r in the subspace, added at its layer at the length of r: every family
    gets the same dose, the random one too (as 2502.17420 scales its directions). What two families have in common is
    scored once. Where the reference of r is the harmless mean, a subspace is ablated to it instead of to zero, and
    induce sets it to the harmful mean.

    Cones (`CONES`) are scored so at k = 1 only. At any other k `samples` directions v are drawn from the cone, each
    ablated by itself and put in by itself: ‖r‖ · v added, or with the harmless mean as reference the part along v set
    to that of the harmful mean, which asks for as much of v as harmful prompts have. bypass, induce and kl are means
    over the directions (intervals over prompts, each prompt's mean), `bypass_worst` and `kl_worst` the highest mean
    over prompts of a direction, `induce_worst` the lowest. A direction is admissible by itself where its kl and induce
    are, and where ablating it lowers the score by `ALONE` at least of what ablating r does: with r in a cone its mean
    tells little. The cone is admissible where all of them are; `share_admissible` is how many.

    Args:
        difference: the difference in means r, with the place and the reference that all are scored at.
        samples, seed: directions drawn from a cone of a size, the same combinations for every cone.

    Returns:
        Rows of the table `subspaces`, every family at every k. A family that has no k directions, or directions that
        are not finite, has rows of NaN that say so in `reason`. `n` counts harmful prompts.

    Raises:
        MechrefusalError: no harmful or no harmless prompts, a layer that the model lacks, directions of another width
            or of other weights.
    """
    r = direction_of(difference)
    layer = r.require_layer()
    require_layers(model, [layer])
    require_weights(model, r.weights, r.name)
    for family, given in [("difference", r.vector[None]), *((s.family, s.basis) for s in subspaces)]:
        if given.shape[-1] != model.cfg.d_model:
            raise MechrefusalError(
                f"directions of '{family}' are of width {given.shape[-1]}, the model of {model.cfg.d_model}; "
                "take them from this model"
            )
    if samples < 1:
        raise MechrefusalError(f"directions drawn from a cone are {samples}: give at least 1")
    scorer = Scorer(model, validation, metric)
    baseline = intervals.mean(scorer.base.harmful.tolist())
    span_scorer = SpanScorer(scorer, r, admissible, samples=samples, seed=seed)
    wanted = [(subspace, k) for subspace in subspaces for k in range(1, largest + 1)]
    rows, cells = [], {}
    for subspace, k in track(wanted, "scoring subspaces"):
        of = span_scorer.cone if subspace.family in CONES and k > 1 else span_scorer.span
        scores = of(subspace, k)
        rows.append({"family": subspace.family, "k": k, "position": r.position, "layer": layer, **scores.columns})
        for measure, side in (("bypass", "harmful"), ("induce", "harmless"), ("kl", "harmless")):
            if len(values := getattr(scores, measure)):
                cells[subspace.family, k, measure] = side, values
    table = choose(pd.DataFrame(rows), baseline=baseline.value, n_layers=model.cfg.n_layers, admissible=admissible)
    sizes = {"harmful": scorer.n_harmful, "harmless": scorer.n_harmless}
    return Subspaces(table, baseline, Observations.of_sides(sizes, cells, ("family", "k", "measure")))


def choose(scores: pd.DataFrame, *, baseline: float, n_layers: int, admissible: Admissible = PUBLISHED) -> pd.DataFrame:
    """Judge scored subspaces as carriers are judged (`carriers.select`), and mark the smallest that is enough.

    share_of_best = (baseline − bypass) / (baseline − lowest admissible bypass of all families but `FLOORS`). A cone of
    which not all drawn directions are admissible by themselves (`share_admissible` below 1) is not admissible.
    `smallest` is True for one row: the admissible one with the smallest k, then the lowest bypass, that reaches 90%.
    Where nothing is admissible, or nothing admissible lowers the score, shares are NaN and `reason` says so.

    Args:
        scores: columns family, k, position, layer, bypass, induce, kl, reason, and any others; of cones `n_sampled` and
            `share_admissible`.
        baseline: mean refusal score of the harmful prompts without intervention, nats.
    """
    table = carriers.select(scores, n_layers, admissible).table.drop(columns=[*FLAGS, "winner"])
    if "share_admissible" in table:
        for row in table.index[(table["n_sampled"] > 0) & ~(table["share_admissible"] >= 1)]:
            n, share = int(table.loc[row, "n_sampled"]), table.loc[row, "share_admissible"]
            why = f"{round(n * (1 - share))} of {n} directions of the cone are not admissible by themselves"
            table.loc[row, "rejected_because"] = "; ".join(filter(None, (table.loc[row, "rejected_because"], why)))
            table.loc[row, "admissible"] = False
    eligible = table[table["admissible"] & ~table["family"].isin(FLOORS)]
    drop, missing = baseline - table["bypass"], ""
    if eligible.empty:
        missing = "no subspace is admissible"
    elif not (best := baseline - eligible["bypass"].min()) > 0:
        missing = "no admissible subspace lowers the refusal score"
    table["smallest"] = False
    if missing:
        table["share_of_best"] = float("nan")
        table["reason"] = ["; ".join(filter(None, (reason, missing))) for reason in table["reason"]]
        return table
    table["share_of_best"] = drop / best
    enough = eligible[table.loc[eligible.index, "share_of_best"] >= ENOUGH]
    table.loc[enough.sort_values(["k", "bypass"], kind="stable").index[0], "smallest"] = True
    return table


def _activations(harmful: Activations, harmless: Activations) -> tuple[Tensor, Tensor, str]:
    """Both in float64 on the CPU, and why nothing can be taken from them, or an empty string."""
    x, y = (torch.as_tensor(each, dtype=torch.float64, device="cpu") for each in (harmful, harmless))
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


def _found(family: str, basis: Tensor, largest: int, reason: str) -> Subspace:
    return Subspace(family, basis[:largest], reason if len(basis) < largest else "")
