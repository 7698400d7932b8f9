"""Interventions on the residual stream: ablate directions, or add one.

`Ablation` and `Addition` are values that say what is done; `ablate` and `add` do it to a hooked transformer while a
context is open. They act at run time through hooks, restore the model whatever happens, and return new tensors, never
edited ones.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.models import require_direction, require_layers
from mechrefusal.models.twin import Edit, Site, bridge_hooks

ABLATED_SITES: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out")


@dataclass(frozen=True)
class Ablation:
    """Directions projected out of everything that is written to the residual stream.

    x − dose · QQᵀx, Q an orthonormal basis of `directions`. At dose 1 it is done at resid_pre, attn_out and mlp_out of
    every layer (Arditi et al., 2406.11717, eq. 4, at the sites of their code). Any other dose is taken of every write
    once (the embedding, attn_out, mlp_out), so that the residual stream keeps 1 − dose of its part along Q at every
    layer; at dose 1 the two are the same.
    """

    directions: Float[Tensor, " d_model"] | Float[Tensor, "k d_model"]
    dose: float = 1.0

    first_layer = 0

    def check(self, model) -> None:
        """Raise `MechrefusalError` for a direction of another width, not finite, or zero; or for none at all."""
        rows = self.directions[None] if self.directions.ndim == 1 else self.directions
        if len(rows) == 0:
            raise MechrefusalError("no direction to ablate: give one direction, or a subspace of at least one row")
        for row in rows:
            require_direction(model, row.detach())
        _require_finite("dose of an ablation", self.dose)

    def edits(self, model) -> list[Edit]:
        """What is done, site by site."""
        basis = orthonormal(self.directions).to(model.cfg.device)
        dose = self.dose

        def project_out(activation: Tensor) -> Tensor:
            q = basis.to(activation.dtype)
            return activation - (activation @ q) @ (dose * q.T)

        return [
            (layer, site, project_out)
            for layer in range(model.cfg.n_layers)
            for site in ABLATED_SITES
            if dose == 1 or layer == 0 or site != "resid_pre"
        ]


@dataclass(frozen=True)
class Addition:
    """`coefficient` · `direction` added at resid_pre of `layer`, at all positions (Arditi et al., 2406.11717, eq. 3).

    The direction is added as it is: a difference in means carries its own length.
    """

    direction: Float[Tensor, " d_model"]
    layer: int
    coefficient: float = 1.0

    @property
    def first_layer(self) -> int:
        """Layers below it are what they are without the intervention."""
        return self.layer

    def check(self, model) -> None:
        """Raise `MechrefusalError` for a direction of another width, not finite, or zero; or a layer that is not."""
        require_direction(model, self.direction.detach())
        require_layers(model, [self.layer])
        _require_finite("coefficient of an addition", self.coefficient)

    def edits(self, model) -> list[Edit]:
        """What is done, site by site."""
        step = self.coefficient * self.direction
        return [(self.layer, "resid_pre", lambda activation: activation + step.to(activation))]


Intervention = Ablation | Addition


def ablate(
    model, directions: Float[Tensor, " d_model"] | Float[Tensor, "k d_model"], *, dose: float = 1.0
) -> AbstractContextManager[None]:
    """Project a direction, or a subspace, out of the residual stream while open; see `Ablation`.

    Raises:
        MechrefusalError: a direction of another width, not finite, or zero.
    """
    return intervened(model, Ablation(directions, dose))


def add(
    model, direction: Float[Tensor, " d_model"], *, layer: int, coefficient: float = 1.0
) -> AbstractContextManager[None]:
    """Add a direction at one layer while open; see `Addition`."""
    return intervened(model, Addition(direction, layer, coefficient))


@contextmanager
def intervened(model, intervention: Intervention | None) -> Iterator[None]:
    """Every pass of a hooked transformer under `intervention` while open."""
    if intervention is None:
        yield
        return
    intervention.check(model)
    with model.hooks(fwd_hooks=bridge_hooks(intervention.edits(model))):
        yield


def _require_finite(what: str, value: float) -> None:
    if not isfinite(value):
        raise MechrefusalError(f"the {what} is {value}: give a finite number")


def random_like(direction: Float[Tensor, " d_model"], *, seed: int) -> Float[Tensor, " d_model"]:
    """A random direction of the same norm: the control of every intervention."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(direction.shape, generator=generator, dtype=torch.float64).to(direction)
    return noise * (direction.norm() / noise.norm())


def orthonormal(directions: Float[Tensor, " d_model"] | Float[Tensor, "k d_model"]) -> Float[Tensor, "d_model k"]:
    """Columns that span the rows, with gradients where the rows are linearly independent.

    Float64 within: the basis is used at every site, its rounding must not add up.
    """
    rows = directions[None] if directions.ndim == 1 else directions
    if len(rows) == 1:
        return (rows.double() / rows.double().norm()).T.to(torch.float32)
    columns, lengths, _ = torch.linalg.svd(rows.detach().double().T, full_matrices=False)
    independent = lengths > 1e-6 * lengths.max()
    if independent.all():  # a singular value decomposition has no gradient where rows are orthonormal; this has
        return torch.linalg.qr(rows.double().T).Q.to(torch.float32)
    return columns[:, independent].to(torch.float32)
