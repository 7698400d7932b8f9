"""What can be done to activations, as values: ablate directions, add one, clamp a projection, patch.

Each says which edits it makes at which layer and site; `causal.intervened` makes them while a context is open. Edits
return new tensors and never change one that somebody holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.patch_operation import Passing, Patch, require_one_site
from mechrefusal.causal.reference import ZERO, Reference, require_reference
from mechrefusal.causal.weighted_ablation import WeightedAblation
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.direction import Along, Carrier, Direction, direction_of, require_weights
from mechrefusal.forward.positions import Positions, at_positions, check_positions, required
from mechrefusal.forward.sites import Edit, Site, widened
from mechrefusal.models import require_direction, require_layers

ABLATED_SITES: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out")


@dataclass(frozen=True)
class Ablation:
    """Directions taken out of the residual stream: their part is set to a `reference`, by default to zero.

    Without a reference: x − dose · QQᵀx, Q an orthonormal basis of `directions`. At dose 1 it is done at resid_pre,
    attn_out and mlp_out of every layer (Arditi et al., 2406.11717, eq. 4, at the sites of their code). Any other dose
    is taken of every write once (the embedding, attn_out, mlp_out), so that the residual stream keeps 1 − dose of its
    part along Q at every layer; at dose 1 the two are the same.

    With one: x − dose · QQᵀ(x − r), r the reference's mean of the layer, at resid_pre from its first layer on (affine
    concept editing; see `Reference`). Set to the mean of harmful prompts it induces refusal instead.

    `positions`: where, by default everywhere. `weights`: hash of those that the directions are of, "" for any.
    """

    directions: Float[Tensor, " d_model"] | Float[Tensor, "k d_model"]
    dose: float = 1.0
    positions: Positions | None = None
    reference: Reference | None = None
    weights: str = ""

    @property
    def first_layer(self) -> int:
        """Layers below it are what they are without the intervention."""
        return 0 if self.reference is None else self.reference.first_layer

    def check(self, model) -> None:
        """Raise `MechrefusalError` for a direction of other weights or width, or that is none; no reference."""
        require_weights(model, self.weights)
        rows = self.directions[None] if self.directions.ndim == 1 else self.directions
        if len(rows) == 0:
            raise MechrefusalError("no direction to ablate: give one direction, or a subspace of at least one row")
        for row in rows:
            require_direction(model, row.detach())
        _require_finite("dose of an ablation", self.dose)
        check_positions(self.positions)
        if self.reference is not None:
            self.reference.check(model)

    def edits(self, model, passing: Passing = None) -> list[Edit]:
        """What is done, site by site."""
        basis = orthonormal(self.directions).to(model.cfg.device)
        dose = self.dose
        if self.reference is not None:
            layout = passing if passing is not None else required(passing)
            edits = self.reference.edits(basis, dose=dose, layout=layout)
            return [(layer, "resid_pre", at_positions(edit, self.positions, passing)) for layer, edit in edits]

        def project_out(activation: Tensor) -> Tensor:
            x = widened(activation)
            q = basis.to(x)
            return (x - (x @ q) @ (dose * q.T)).to(activation.dtype)

        edit = at_positions(project_out, self.positions, passing)
        return [
            (layer, site, edit)
            for layer in range(model.cfg.n_layers)
            for site in ABLATED_SITES
            if dose == 1 or layer == 0 or site != "resid_pre"
        ]


@dataclass(frozen=True)
class Addition:
    """`coefficient` · `direction` added at resid_pre of `layer` (Arditi et al., 2406.11717, eq. 3).

    The direction is added as it is: a difference in means carries its own length. `positions`: where, by default
    everywhere. `weights` as in `Ablation`.
    """

    direction: Float[Tensor, " d_model"]
    layer: int
    coefficient: float = 1.0
    positions: Positions | None = None
    weights: str = ""

    @property
    def first_layer(self) -> int:
        """Layers below it are what they are without the intervention."""
        return self.layer

    def check(self, model) -> None:
        """Raise `MechrefusalError` for a direction of other weights or width, or that is none; a layer that is not."""
        require_weights(model, self.weights)
        require_direction(model, self.direction.detach())
        require_layers(model, [self.layer])
        _require_finite("coefficient of an addition", self.coefficient)
        check_positions(self.positions)

    def edits(self, model, passing: Passing = None) -> list[Edit]:
        """What is done, site by site."""
        step = self.coefficient * self.direction

        def add(activation: Tensor) -> Tensor:
            x = widened(activation)
            return (x + step.to(x)).to(activation.dtype)

        edit = at_positions(add, self.positions, passing)
        return [(self.layer, "resid_pre", edit)]


@dataclass(frozen=True)
class Clamp:
    """The projection on a unit direction set to `value`: x + (value − x·r̂) r̂.

    `value` is in units of the residual stream (what `activation @ direction / direction.norm()` gives). `layers` are
    all by default; `sites` are of resid_pre, attn_out and mlp_out. Value 0 at all sites of all layers is an ablation.
    `weights` as in `Ablation`.
    """

    direction: Float[Tensor, " d_model"]
    value: float
    layers: Sequence[int] | None = None
    sites: Sequence[Site] = ("resid_pre",)
    positions: Positions | None = None
    weights: str = ""

    @property
    def first_layer(self) -> int:
        """Layers below it are what they are without the intervention."""
        return 0 if self.layers is None else min(self.layers)

    def check(self, model) -> None:
        """Raise `MechrefusalError` for a direction of other weights, or a layer, site, value, position that is none."""
        require_weights(model, self.weights)
        require_direction(model, self.direction.detach())
        if self.layers is not None and len(self.layers) == 0:
            raise MechrefusalError("a clamp at no layer: give layers, or None for all")
        require_layers(model, self.layers or [])
        if isinstance(self.sites, str) or not self.sites:
            raise MechrefusalError(f"sites of a clamp are {self.sites!r}; give some of {', '.join(ABLATED_SITES)}")
        for site in self.sites:
            require_one_site(site, ABLATED_SITES)
        _require_finite("value of a clamp", self.value)
        check_positions(self.positions)

    def edits(self, model, passing: Passing = None) -> list[Edit]:
        """What is done, site by site."""
        unit = orthonormal(self.direction)[:, 0].to(model.cfg.device)
        value = self.value

        def set_projection(activation: Tensor) -> Tensor:
            x = widened(activation)
            r = unit.to(x)
            return (x + (value - x @ r)[..., None] * r).to(activation.dtype)

        edit = at_positions(set_projection, self.positions, passing)
        layers = range(model.cfg.n_layers) if self.layers is None else sorted(set(self.layers))
        return [(layer, site, edit) for layer in layers for site in ABLATED_SITES if site in self.sites]


@dataclass(frozen=True)
class Chain:
    """Interventions as one: at a site where several act, in their order."""

    interventions: "tuple[Intervention, ...]"

    @property
    def first_layer(self) -> int:
        """Layers below it are what they are without the interventions."""
        return min(each.first_layer for each in self.interventions)

    @property
    def positions(self) -> list[Positions]:
        """The positions of those that act at some only."""
        return [each.positions for each in self.flat if each.positions is not None]

    @property
    def flat(self) -> "list[Ablation | Addition | Clamp | Patch | WeightedAblation]":
        """The single interventions, in order."""
        return [part for each in self.interventions for part in (each.flat if isinstance(each, Chain) else [each])]

    def check(self, model) -> None:
        """Raise `MechrefusalError` where one of them does, or for none."""
        if not self.interventions:
            raise MechrefusalError("a chain of no intervention; give at least one, or None")
        for each in self.interventions:
            each.check(model)

    def edits(self, model, passing: Passing = None) -> list[Edit]:
        """What is done, site by site."""
        return [edit for each in self.interventions for edit in each.edits(model, passing)]


Intervention = Ablation | Addition | Clamp | Patch | WeightedAblation | Chain


def _require_finite(what: str, value: float) -> None:
    if not isfinite(value):
        raise MechrefusalError(f"the {what} is {value}: give a finite number")


def taken_out(
    along: Along,
    *,
    reference: Reference | str | None = None,
    dose: float = 1,
    positions: Positions | None = None,
) -> Ablation:
    """What takes a direction out.

    Args:
        reference: what its part is set to: "harmless", the mean of harmless prompts, which the direction must know;
            "zero", as published; or any `Reference`. None: what a direction or carrier says itself, zero for a tensor.

    Raises:
        MechrefusalError: an unknown reference, or one that the direction does not know.
    """
    direction = direction_of(along)
    if not isinstance(reference, Reference):
        name = require_reference(direction.reference if reference is None else reference)
        reference = None if name == ZERO else Reference.of(direction)
    return Ablation(direction.vector, dose, positions, reference, direction.weights)


def put_in(along: Along, *, dose: float = 1) -> "Ablation | Addition":
    """What puts a direction in: its part set to the harmful mean, or where it goes by zero the direction added.

    `dose`: how much of the way to that mean; the coefficient of an addition, which is at the direction's own layer.
    """
    direction = direction_of(along)
    if direction.reference == ZERO:
        return Addition(direction.vector, direction.require_layer(), dose, weights=direction.weights)
    return Ablation(
        direction.vector, dose, reference=Reference.of(direction, coefficient=1.0), weights=direction.weights
    )


@overload
def random_like(along: Tensor, *, seed: int) -> Tensor: ...
@overload
def random_like(along: Direction | Carrier, *, seed: int) -> Direction: ...
def random_like(along: Along, *, seed: int) -> Tensor | Direction:
    """A random direction of the same norm, and of a `Direction` in its place: the control of every intervention."""
    vector = direction_of(along).vector
    noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(vector)
    random = noise * (vector.norm() / noise.norm())
    return random if isinstance(along, Tensor) else replace(direction_of(along), vector=random, kind="random direction")


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
