"""A direction taken out of what attention and MLPs write, with a weight a layer: an ablation that can be graded."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.patch_operation import Passing
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.direction import require_weights
from mechrefusal.forward.positions import Positions, at_positions, check_positions
from mechrefusal.forward.sites import Edit, Site, widened
from mechrefusal.models import require_direction


@dataclass(frozen=True)
class WeightedAblation:
    """y − w_l · r̂(r̂·y) of what attention (`attention[l]`) and the MLP (`mlp[l]`) of every layer l add to the stream.

    Where these have no bias and no norm after them it is what p-e-w/heretic does to their output matrices,
    W − w_l · r̂r̂ᵀW. A weight of 1 takes the direction out of a write, 0 leaves it, more than 1 turns it round. The
    embedding is left as it is. `positions` and `weights` as in `Ablation`.
    """

    direction: Float[Tensor, " d_model"]
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    positions: Positions | None = None
    weights: str = ""

    @property
    def first_layer(self) -> int:
        """Layers below it are what they are without the intervention."""
        acting = [layer for layer, pair in enumerate(zip(self.attention, self.mlp, strict=True)) if any(pair)]
        return min(acting, default=len(self.attention) - 1)

    def check(self, model) -> None:
        """Raise `MechrefusalError` for a direction of other weights or width, and for weights that do not fit."""
        require_weights(model, self.weights)
        require_direction(model, self.direction.detach())
        check_positions(self.positions)
        for site, weights in (("attention", self.attention), ("MLP", self.mlp)):
            if len(weights) != model.cfg.n_layers or not all(map(isfinite, weights)):
                raise MechrefusalError(
                    f"the weights of {site} outputs are {list(weights)}: give {model.cfg.n_layers} finite ones, one a "
                    "layer"
                )

    def edits(self, model, passing: Passing = None) -> list[Edit]:
        """What is done, site by site."""
        unit = (self.direction.detach().double() / self.direction.detach().double().norm()).float()
        unit = unit.to(model.cfg.device)

        def less(weight: float) -> Callable[[Tensor], Tensor]:
            def edit(written: Tensor) -> Tensor:
                x = widened(written)
                r = unit.to(x)
                return (x - weight * (x @ r)[..., None] * r).to(written.dtype)

            return at_positions(edit, self.positions, passing)

        by_site: tuple[tuple[Site, tuple[float, ...]], ...] = (("attn_out", self.attention), ("mlp_out", self.mlp))
        return [
            (layer, site, less(weights[layer]))
            for layer in range(model.cfg.n_layers)
            for site, weights in by_site
            if weights[layer]
        ]
