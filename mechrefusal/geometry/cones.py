"""Refusal cones: directions learned so that ablating any of them answers and adding any of them refuses.

Wollschläger et al., "The Geometry of Refusal in Large Language Models" (2502.17420): their Refusal Direction
Optimization, for cones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from mechrefusal import prompts
from mechrefusal.causal.operations import put_in, taken_out
from mechrefusal.causal.passes import Passes
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Carrier, Direction, direction_of, require_weights
from mechrefusal.geometry.contrast import Contrast
from mechrefusal.geometry.scoring import kl_divergence
from mechrefusal.geometry.span_scores import Subspace
from mechrefusal.geometry.subspaces import LARGEST
from mechrefusal.models import require_direction, require_layers
from mechrefusal.progress import track


@dataclass(frozen=True)
class ConeSettings:
    """How a cone is learned.

    steps: optimiser steps. samples: directions of the cone drawn a step. batch: harmful prompts, and as many harmless
    ones, a step. learning_rate: of Adam, falling to zero linearly. ablation, addition, retain: weights of the losses
    (see `learn_cone`). seed: of the start, the batches and the draws.
    """

    steps: int = 25
    samples: int = 1
    batch: int = 8
    learning_rate: float = 0.01
    ablation: float = 1.0
    addition: float = 1.0
    retain: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("ablation", "addition", "retain"):
            if not 0 <= getattr(self, name) < inf:
                raise MechrefusalError(
                    f"the weight of a cone's loss '{name}' is {getattr(self, name):g}: give 0 or more"
                )
        for name in ("steps", "samples", "batch"):
            if getattr(self, name) < 1:
                raise MechrefusalError(f"a cone cannot be learned with {name}={getattr(self, name)}; give 1 at least")


@dataclass(frozen=True)
class Cone:
    """A learned cone: all combinations with coefficients ≥ 0 of the first k rows of `subspace`, for every k.

    `history`: one row a step: step, k (rows that the drawn directions combine, mean of the step's draws), loss (the
    weighted sum) and its terms ablation, addition, retain (nats, before their weights; of the step's own prompts).
    """

    subspace: Subspace
    history: pd.DataFrame


def learn_cone(
    model,
    difference: Direction | Carrier,
    contrast: Contrast,
    metric: RefusalMetric,
    *,
    largest: int = LARGEST,
    settings: ConeSettings | None = None,
) -> Cone:
    """Learn a nested cone of `largest` directions from the difference in means and random directions.

    Losses on a direction v of the cone as theirs: v ablated, harmful prompts are answered;
    ‖r‖ · v added at its layer, r the difference in means, harmless prompts are refused; v ablated, the next-token
    distribution on harmless prompts stays (KL). v is uniform on the sphere within the first k rows' positive orthant,
    as in their code.

    Deviations: (1) theirs are cross-entropies on written completions. The project writes no completions to harmful
    prompts, so ours are those of the refusal metric's choice between answer and refusal: softplus(score) under
    ablation, softplus(−score) under addition; the KL is of one token. (2) They train a cone for every size, with losses
    on every basis vector and on 8 draws. Ours trains one for all sizes: every draw takes a k at random and combines
    the first k rows, so that the first row is trained alone, and the first k rows are a cone of size k. (3) Adam's step
    is followed by an orthonormalisation (QR) and its rate falls to zero; the last basis is returned, not that of the
    lowest training loss, which here depends on the draw. What it does on other prompts is for `score_subspaces` to say.
    (4) The weights are 1, 1 and 5, theirs 1, 0.2 and 1 (for other losses). Ours were chosen at one checkpoint of the
    packaged demo (sft step 18, k = 1, 16 steps), on the validation prompts themselves: theirs gave a KL of 0.13 and
    a score of harmless prompts of −0.2 under addition, ours 0.07 and 0.9.

    Args:
        difference: the difference in means where the cone starts. Directions are added at its layer; where its
            reference is the harmless mean they are ablated to it, and set to the harmful one instead of being added.
        contrast: training prompts; validation prompts must be others.

    Returns:
        The cone, as family "cone". The same seed gives the same cone.

    Raises:
        MechrefusalError: a difference that is zero or not finite, no prompts, or a loss that is not finite.
    """
    settings = settings if settings is not None else ConeSettings()
    r = direction_of(difference)
    require_weights(model, r.weights, r.name)
    require_direction(model, r.vector.detach())
    require_layers(model, [r.require_layer()])
    generator = torch.Generator().manual_seed(settings.seed)
    losses = _Losses(model, contrast, metric, r, settings.batch, generator)
    width = len(r.vector)
    start = torch.randn((min(largest, width), width), generator=generator, dtype=torch.float64)
    start[0] = r.vector.double().cpu()
    basis = _orthonormal_rows(start).requires_grad_()
    optimizer = torch.optim.Adam([basis], lr=settings.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / settings.steps)
    weights = {"ablation": settings.ablation, "addition": settings.addition, "retain": settings.retain}
    history = []
    for step in track(range(settings.steps), "learning a cone"):
        optimizer.zero_grad()
        row = dict.fromkeys(("k", "loss", *weights), 0.0)
        for _ in range(settings.samples):
            k, mix = _draw(len(basis), generator)
            terms = losses(step, mix @ basis[:k])
            loss = torch.stack([weight * terms[name].double() for name, weight in weights.items()]).sum()
            loss = loss / settings.samples
            if not torch.isfinite(loss):
                shown = ", ".join(f"{name} {term.item():.3g}" for name, term in terms.items())
                raise MechrefusalError(
                    f"the loss of the cone is not finite at step {step} ({shown}); "
                    f"lower the learning rate ({settings.learning_rate:g}) or check the refusal metric"
                )
            loss.backward()  # sample by sample: one graph in memory at a time
            row["k"] += k / settings.samples
            row["loss"] += loss.item()
            for name, term in terms.items():
                row[name] += term.item() / settings.samples
        history.append({"step": step, **row})
        _to_tangent(basis)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            basis.copy_(_orthonormal_rows(basis))
    return Cone(Subspace("cone", basis.detach()), pd.DataFrame(history))


class _Losses:
    """The three losses of a direction on fixed batches of prompts; what a batch needs is prepared once."""

    def __init__(
        self,
        model,
        contrast: Contrast,
        metric: RefusalMetric,
        difference: Direction,
        batch: int,
        generator: torch.Generator,
    ) -> None:
        harmful, harmless = (prompts.prompt_ids(model.tokenizer, s) for s in (contrast.harmful, contrast.harmless))
        if not harmful or not harmless:
            raise MechrefusalError(
                f"a cone needs harmful and harmless prompts; there are {len(harmful)} and {len(harmless)}"
            )
        self.model, self.metric, self.difference = model, metric, difference
        self.length = float(difference.vector.double().norm())
        refused, answered = (_batches(each, batch, generator) for each in (harmful, harmless))
        n_batches = max(len(refused), len(answered))
        self.pairs = [(refused[i % len(refused)], answered[i % len(answered)]) for i in range(n_batches)]
        self.ready: dict[int, _Batch] = {}

    def __call__(self, step: int, direction: Float[Tensor, " d_model"]) -> dict[str, Tensor]:
        number = step % len(self.pairs)
        if number not in self.ready:
            self.ready[number] = _Batch.of(self.model, *self.pairs[number], self.metric)
        batch, metric = self.ready[number], self.metric
        unit = direction / direction.norm()
        ablated = batch.both.logits(taken_out(replace(self.difference, vector=unit)))
        added = batch.harmless.logits(put_in(replace(self.difference, vector=(self.length * unit).float())))
        following = ablated[0][batch.n_harmful :, 0].double().log_softmax(-1)
        return {
            "ablation": softplus(metric.of_runs(ablated)[: batch.n_harmful]).mean(),
            "addition": softplus(-metric.of_runs(added)).mean(),
            "retain": kl_divergence(batch.base, following).mean(),
        }


@dataclass(frozen=True)
class _Batch:
    """Prompts of one step; `base`: next-token log-probabilities on the harmless ones without intervention."""

    n_harmful: int
    both: Passes
    harmless: Passes
    base: Float[Tensor, "prompt vocab"]

    @classmethod
    def of(cls, model, harmful: list, harmless: list, metric: RefusalMetric) -> "_Batch":
        only = Passes(model, harmless, metric.runs)
        with torch.no_grad():
            base = only.logits()[0][:, 0].double().log_softmax(-1)
        return cls(len(harmful), Passes(model, harmful + harmless, metric.runs), only, base)


def _batches(items: Sequence, size: int, generator: torch.Generator) -> list[list]:
    """All items in random order, in batches of `size`; what does not fill one is left out unless it is all."""
    order = torch.randperm(len(items), generator=generator).tolist()
    full = range(0, max(len(items) - size, 0) + 1, size)
    return [[items[row] for row in order[start : start + size]] for start in full]


def _draw(largest: int, generator: torch.Generator) -> tuple[int, Float[Tensor, " k"]]:
    """A size k, uniform, and coefficients ≥ 0 of a direction that is uniform on that part of the sphere."""
    k = int(torch.randint(1, largest + 1, (), generator=generator))
    mix = torch.randn(k, generator=generator, dtype=torch.float64).abs()
    return k, mix / mix.norm()


def _orthonormal_rows(rows: Float[Tensor, "k d_model"]) -> Float[Tensor, "k d_model"]:
    """Gram-Schmidt from the first row on, so that the first k rows span what they spanned before."""
    columns, triangle = torch.linalg.qr(rows.detach().T)
    return (columns * triangle.diagonal().sign()).T.contiguous()


def _to_tangent(basis: Tensor) -> None:
    """Take out of each row's gradient what would only change its length."""
    assert basis.grad is not None
    rows = basis.detach()
    basis.grad -= (basis.grad * rows).sum(-1, keepdim=True) * rows
