"""What one subspace, or one cone, does at a place: its span ablated, or directions drawn from it one at a time."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal import put_in, taken_out
from mechrefusal.causal.reference import ZERO
from mechrefusal.forward.direction import Direction
from mechrefusal.geometry.scoring import Scorer, exactly
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


class Spans:
    """Scores of subspaces at the place of a direction, ablated to its reference; what spans the same is run once."""

    def __init__(self, scorer: Scorer, direction: Direction) -> None:
        self.scorer, self.direction, self.difference = scorer, direction, direction.vector.double().cpu()
        self.done: list[tuple[Tensor, dict]] = []

    def score(self, subspace: Subspace, k: int) -> dict:
        """Columns of the table `subspaces` for the span of the first k rows."""
        basis = subspace.basis[:k].double().cpu()
        if reason := _unscored(subspace, k):
            return _nothing(self.scorer, reason)
        for other, found in self.done:
            # ‖QᵀQ − PᵀP‖² of two projectors of rank k: zero where they span the same.
            if len(other) == k and 2 * k - 2 * (other @ basis.T).square().sum() < SAME_SPAN:
                return found
        self.done.append((basis, self._run(basis)))
        return self.done[-1][1]

    def _run(self, basis: Float[Tensor, "k d_model"]) -> dict:
        span = replace(self.direction, vector=basis.float())
        ablated = self.scorer.under(taken_out(span))
        part, induce, reason = basis.T @ (basis @ self.difference), float("nan"), ""
        if not self.difference.isfinite().all():
            reason = "the difference in means is not finite, so there is nothing to add"
        elif not part.norm() > LEAST_PART * self.difference.norm():
            reason = "the difference in means has next to no part in the subspace, so there is nothing to add"
        elif self.direction.reference != ZERO:
            induce = self.scorer.on_harmless(put_in(span)).mean().item()
        else:
            added = (part * (self.difference.norm() / part.norm())).float()
            induce = self.scorer.on_harmless(put_in(replace(self.direction, vector=added))).mean().item()
        scores = intervals.mean(ablated.harmful.tolist()), intervals.skewed_mean(ablated.kl.tolist())
        return _row(self.scorer, *scores, induce, reason)


class Cones:
    """Scores of cones of two directions and more, by directions drawn from them."""

    def __init__(self, spans: Spans, admissible: Admissible, samples: int, seed: int) -> None:
        self.spans, self.admissible, self.samples, self.seed = spans, admissible, samples, seed
        self._whole: float | None = None

    def score(self, subspace: Subspace, k: int) -> dict:
        """The same for the cone of the first k rows."""
        scorer, r = self.spans.scorer, self.spans.difference
        if reason := _unscored(subspace, k):
            return _nothing(scorer, reason)
        if not r.isfinite().all() or not r.any():
            return _nothing(scorer, "the difference in means is zero or not finite: a cone has nothing to be held to")
        directions = drawn_from_cone(subspace.basis[:k], self.samples, self.seed)
        alike = [replace(self.spans.direction, vector=(r.norm() * each).float()) for each in directions]
        found = [exactly(scorer, each) for each in alike]
        bypass, induce, kl = (np.stack(each) for each in zip(*found, strict=True))
        means = bypass.mean(1), induce.mean(1), kl.mean(1)
        lowered = float(scorer.base.harmful.double().mean()) - means[0] >= ALONE * self._of_difference()
        alone = lowered & (means[1] >= self.admissible.induce) & (means[2] <= self.admissible.kl)
        scores = intervals.mean(bypass.mean(0)), intervals.skewed_mean(kl.mean(0))
        row = _row(scorer, *scores, float(means[1].mean()), "")
        worst = {"bypass_worst": means[0].max(), "induce_worst": means[1].min(), "kl_worst": means[2].max()}
        return row | worst | {"n_sampled": len(directions), "share_admissible": float(alone.mean())}

    def _of_difference(self) -> float:
        """How far ablating r lowers the mean score of the harmful prompts; not below zero."""
        if self._whole is None:
            r = self.spans.difference
            found = self.spans.score(Subspace("difference", (r / r.norm())[None]), 1)
            self._whole = max(0.0, float(self.spans.scorer.base.harmful.double().mean()) - found["bypass"])
        return self._whole


def _unscored(subspace: Subspace, k: int) -> str:
    """Why a family has nothing of size k to score, or an empty string."""
    basis = subspace.basis[:k]
    if len(basis) < k:
        return f"there are {len(basis)} directions: {subspace.reason or 'no more were given'}"
    return "" if basis.isfinite().all() else "a direction is not finite"


def _nothing(scorer: Scorer, reason: str) -> dict:
    nothing = intervals.mean([])
    return _row(scorer, nothing, nothing, float("nan"), reason)


def _row(scorer: Scorer, bypass: intervals.Estimate, kl: intervals.Estimate, induce: float, reason: str) -> dict:
    scores = {"bypass": bypass.value, "bypass_low": bypass.low, "bypass_high": bypass.high, "induce": induce}
    about = {"n": scorer.n_harmful, "reason": reason, "n_sampled": 0}
    drawn = dict.fromkeys(("bypass_worst", "induce_worst", "kl_worst", "share_admissible"), float("nan"))
    return scores | {"kl": kl.value, "kl_low": kl.low, "kl_high": kl.high} | drawn | about
