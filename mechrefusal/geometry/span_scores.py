"""What one subspace, or one cone, does at a place: its span ablated, or directions drawn from it one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import nan
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal import put_in, taken_out
from mechrefusal.causal.reference import ZERO
from mechrefusal.forward.direction import Direction
from mechrefusal.geometry.scoring import Scorer, as_array, scores_of
from mechrefusal.statistics import intervals
from mechrefusal.statistics.choosing import Admissible

SAMPLES = 8
"""Directions drawn from a cone."""
ALONE = 0.5
"""Ours: share of what r by itself takes away that each direction of a cone must take away."""
LEAST_PART = 1e-3
"""A part of the difference in means below this share of its length is not added at the length of the whole."""
SAME_SPAN = 1e-10
"""Squared distance of two projectors that is rounding."""


@dataclass(frozen=True)
class Subspace:
    """Nested directions of one family: rows are orthonormal, the first k span its subspace of size k.

    `reason` says why there are no more of them, where a family ended before the size that was asked for. Rows that are
    not finite are allowed; scoring rejects them.
    """

    family: str
    basis: Float[Tensor, "k d_model"]
    reason: str = ""

    def __post_init__(self) -> None:
        assert self.basis.ndim == 2
        rows = self.basis.double()
        if rows.isfinite().all():
            assert torch.allclose(rows @ rows.T, torch.eye(len(rows)).to(rows), atol=1e-4), "rows are orthonormal"

    def __len__(self) -> int:
        return len(self.basis)


def drawn_from_cone(
    basis: Float[Tensor, "k d_model"], n: int = SAMPLES, seed: int = 0
) -> Float[Tensor, "sample d_model"]:
    """Unit directions of the cone of orthonormal rows: their combinations with coefficients ≥ 0, uniform on the sphere.

    The same coefficients for any basis of as many rows.
    """
    k = len(basis)
    mix = torch.randn((n, k), generator=torch.Generator().manual_seed(seed * 1000 + k), dtype=torch.float64).abs()
    return (mix / mix.norm(dim=1, keepdim=True)) @ basis.double().cpu()


def _unmeasured() -> Float[np.ndarray, " 0"]:
    return np.empty(0)


@dataclass(frozen=True)
class SpanScores:
    """What a span, or a cone, does to every prompt; of a cone the mean over the directions drawn from it.

    `bypass`: of the harmful prompts; `induce`, `kl`: of the harmless ones. Each is empty where it could not be taken,
    for `reason`. `mean_induce`: in the precision that it was taken in. `cone`: columns of the table that only cones
    have.
    """

    n: int
    reason: str
    bypass: Float[np.ndarray, " harmful"] = field(default_factory=_unmeasured)
    induce: Float[np.ndarray, " harmless"] = field(default_factory=_unmeasured)
    kl: Float[np.ndarray, " harmless"] = field(default_factory=_unmeasured)
    mean_induce: float = nan
    cone: Mapping[str, float] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, Any]:
        """Columns of the table `subspaces`, without the place."""
        worst = dict.fromkeys(("bypass_worst", "induce_worst", "kl_worst", "share_admissible"), nan)
        return {
            **intervals.mean(self.bypass).columns("bypass"),
            "induce": self.mean_induce,
            **intervals.skewed_mean(self.kl).columns("kl"),
            **worst,
            "n": self.n,
            "reason": self.reason,
            "n_sampled": 0,
            **self.cone,
        }


class SpanScorer:
    """Scores of subspaces and cones at the place of a direction r, ablated to its reference.

    Args:
        samples, seed: directions drawn from a cone.
    """

    def __init__(self, scorer: Scorer, r: Direction, admissible: Admissible, *, samples: int, seed: int) -> None:
        self.scorer, self.r, self.difference = scorer, r, r.vector.double().cpu()
        self.admissible, self.samples, self.seed = admissible, samples, seed
        self.base = float(scorer.base.harmful.double().mean())
        self._known: list[tuple[Tensor, SpanScores]] = []

    def span(self, subspace: Subspace, k: int) -> SpanScores:
        """The span of the first k rows; what spans the same is run once."""
        basis = subspace.basis[:k].double().cpu()
        if reason := _unscored(subspace, k):
            return self._nothing(reason)
        for other, scores in self._known:
            # ‖QᵀQ − PᵀP‖² of two projectors of rank k: zero where they span the same.
            if len(other) == k and 2 * k - 2 * (other @ basis.T).square().sum() < SAME_SPAN:
                return scores
        self._known.append((basis, self._run(basis)))
        return self._known[-1][1]

    def cone(self, subspace: Subspace, k: int) -> SpanScores:
        """The cone of the first k rows, two at least, by directions drawn from it."""
        r = self.difference
        if reason := _unscored(subspace, k):
            return self._nothing(reason)
        if not r.isfinite().all() or not r.any():
            return self._nothing("the difference in means is zero or not finite: a cone has nothing to be held to")
        directions = drawn_from_cone(subspace.basis[:k], self.samples, self.seed)
        as_long = [replace(self.r, vector=(r.norm() * each).float()) for each in directions]
        by_direction = [scores_of(self.scorer, each) for each in as_long]
        bypass, induce, kl = (np.stack(each) for each in zip(*by_direction, strict=True))
        means = bypass.mean(1), induce.mean(1), kl.mean(1)
        alone = (
            (self.base - means[0] >= ALONE * self._lowered_by_r)
            & (means[1] >= self.admissible.induce)
            & (means[2] <= self.admissible.kl)
        )
        cone = {
            "bypass_worst": means[0].max(),
            "induce_worst": means[1].min(),
            "kl_worst": means[2].max(),
            "share_admissible": float(alone.mean()),
            "n_sampled": len(directions),
        }
        by_prompt = bypass.mean(0), induce.mean(0), kl.mean(0)
        return SpanScores(self.scorer.n_harmful, "", *by_prompt, mean_induce=float(means[1].mean()), cone=cone)

    @cached_property
    def _lowered_by_r(self) -> float:
        """How far ablating r lowers the mean score of the harmful prompts; not below zero."""
        alone = self.span(Subspace("difference", (self.difference / self.difference.norm())[None]), 1)
        return max(0.0, self.base - float(intervals.mean(alone.bypass).value))

    def _run(self, basis: Float[Tensor, "k d_model"]) -> SpanScores:
        r, span = self.difference, replace(self.r, vector=basis.float())
        ablated = self.scorer.under(taken_out(span))
        part, induced, reason = basis.T @ (basis @ r), None, ""
        if not r.isfinite().all():
            reason = "the difference in means is not finite, so there is nothing to add"
        elif not part.norm() > LEAST_PART * r.norm():
            reason = "the difference in means has next to no part in the subspace, so there is nothing to add"
        else:
            as_long = replace(self.r, vector=(part * (r.norm() / part.norm())).float())
            induced = self.scorer.on_harmless(put_in(as_long if self.r.reference == ZERO else span))
        return SpanScores(
            self.scorer.n_harmful,
            reason,
            as_array(ablated.harmful),
            _unmeasured() if induced is None else as_array(induced),
            as_array(ablated.kl),
            mean_induce=nan if induced is None else induced.mean().item(),
        )

    def _nothing(self, reason: str) -> SpanScores:
        return SpanScores(self.scorer.n_harmful, reason)


def _unscored(subspace: Subspace, k: int) -> str:
    """Why a family has nothing of size k to score, or an empty string."""
    basis = subspace.basis[:k]
    if len(basis) < k:
        return f"there are {len(basis)} directions: {subspace.reason or 'no more were given'}"
    return "" if basis.isfinite().all() else "a direction is not finite"
