"""Interventions on the residual stream, as context managers: ablate a direction, or add one.

They act at run time through hooks, restore the model whatever happens, and return new tensors, never edited ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.models import require_direction, require_layers

ABLATED_SITES = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")


@contextmanager
def ablate(model, directions: Float[Tensor, " d_model"] | Float[Tensor, "k d_model"]) -> Iterator[None]:
    """Project a direction, or a subspace, out of everything that is written to the residual stream.

    x − QQᵀx at resid_pre, attn_out and mlp_out of every layer and at all positions, Q an orthonormal basis of the given
    rows (Arditi et al., 2406.11717, eq. 4, at the sites of their code).

    Raises:
        MechrefusalError: a direction of another width, not finite, or zero.
    """
    basis = _orthonormal(model, directions)

    def project_out(activation: Tensor, hook) -> Tensor:
        return activation - (activation @ basis) @ basis.T

    names = [f"blocks.{layer}.{site}" for layer in range(model.cfg.n_layers) for site in ABLATED_SITES]
    with model.hooks(fwd_hooks=[(name, project_out) for name in names]):
        yield


@contextmanager
def add(model, direction: Float[Tensor, " d_model"], *, layer: int, coefficient: float = 1.0) -> Iterator[None]:
    """Add `coefficient` · `direction` at resid_pre of `layer`, at all positions (Arditi et al., 2406.11717, eq. 3).

    The direction is added as it is: a difference in means carries its own length.
    """
    require_direction(model, direction)
    require_layers(model, [layer])
    step = coefficient * direction

    def shift(activation: Tensor, hook) -> Tensor:
        return activation + step.to(activation)

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", shift)]):
        yield


def random_like(direction: Float[Tensor, " d_model"], *, seed: int) -> Float[Tensor, " d_model"]:
    """A random direction of the same norm: the control of every intervention."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(direction.shape, generator=generator, dtype=torch.float64).to(direction)
    return noise * (direction.norm() / noise.norm())


def _orthonormal(model, directions: Tensor) -> Float[Tensor, "d_model k"]:
    rows = directions[None] if directions.ndim == 1 else directions
    if len(rows) == 0:
        raise MechrefusalError("no direction to ablate: give one direction, or a subspace of at least one row")
    for row in rows:
        require_direction(model, row)
    # float64: the basis is used at every site of every layer, its own rounding must not add up.
    columns, lengths, _ = torch.linalg.svd(rows.double().T, full_matrices=False)
    kept = columns[:, lengths > 1e-6 * lengths.max()]
    return kept.to(dtype=model.cfg.dtype, device=model.cfg.device)
