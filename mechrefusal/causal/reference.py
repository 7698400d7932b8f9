"""References: what an ablation sets the projection on its directions to. Zero is one choice, and not a neutral one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.direction import Along, ReferenceName, direction_of
from mechrefusal.forward.sites import widened
from mechrefusal.forward.token_classes import Layout, TokenClasses
from mechrefusal.models import require_layers

REFERENCES: tuple[str, ...] = get_args(ReferenceName)
HARMLESS: ReferenceName = "harmless"
ZERO: ReferenceName = "zero"


@dataclass(frozen=True)
class Reference:
    """Where along its directions an ablation leaves the residual stream, layer by layer and kind of token by kind.

    Affine concept editing (Marshall et al., 2411.09003): x − proj_Q(x) + proj_Q(r⁻), Q the directions, r⁻ the mean of
    harmless prompts; here at the block input (resid_pre) of every layer from `first_layer` on. r⁻ is that of the same
    layer and class of tokens: each token of the chat template after the instruction has its own mean, tokens of the
    instruction share one over all instruction tokens, and generated tokens get that of the template's last token, from
    which the answer starts. Tokens before the instruction are the same in every prompt, so that their mean is what they
    have: they stay. With r⁻ the mean of harmful prompts the same formula induces refusal.

    An ablation without a reference is that of Arditi et al. (2406.11717, eq. 4), r⁻ = 0, at their sites. The two are
    the same where the harmless mean is zero along the directions, which in trained chat models it is not.

    Fields:
        name: for tables and errors ("harmless mean", "harmful mean").
        means: r⁻ of every layer and class (see `TokenClasses`); its part along the directions is used.
        classes: the chat template's.
        has_mean: whether tokens of a class are set; others stay.
        first_layer: layers below it are left as they are.
    """

    name: str
    means: Float[Tensor, "layer class d_model"]
    classes: TokenClasses
    has_mean: tuple[bool, ...]
    first_layer: int = 0

    def __post_init__(self) -> None:
        assert self.means.ndim == 3
        assert self.means.shape[1] == len(self.classes) == len(self.has_mean)

    @classmethod
    def of(cls, along: Along, *, coefficient: float = 0.0) -> "Reference":
        """What a direction's means say, from its layer on.

        Args:
            coefficient: how far from the harmless mean (0) towards the harmful one (1): r⁻ + coefficient · (r⁺ − r⁻). 0
                takes refusal out, 1 puts it in.

        Raises:
            MechrefusalError: nothing says what the means are, or at which layer the direction was taken.
        """
        direction = direction_of(along)
        if direction.means is None or direction.layer is None:
            raise MechrefusalError(
                f"nothing says what harmless prompts have along the {direction.name}: give one of a measured run, or a "
                "file that Directions.save wrote; where it is of an earlier version measure the checkpoint again, or "
                f"ablate to reference '{ZERO}'"
            )
        means = direction.means.harmless
        if coefficient:
            means = means + coefficient * (direction.means.harmful - means)
        words = {0.0: "harmless mean", 1.0: "harmful mean"}
        name = words.get(coefficient, f"harmless mean + {coefficient:g} of the way to the harmful one")
        return cls(name, means, direction.means.classes, direction.means.has_mean, direction.layer)

    def check(self, model) -> None:
        """Raise `MechrefusalError` for means of another shape than the model's, not finite, or a layer that is not."""
        expected, shape = (model.cfg.n_layers, model.cfg.d_model), (len(self.means), self.means.shape[2])
        if shape != expected:
            raise MechrefusalError(
                f"the reference '{self.name}' has means of {shape[0]} layers of width {shape[1]}; this model has "
                f"{expected[0]} of {expected[1]}: take it from this model"
            )
        require_layers(model, [self.first_layer])
        if not torch.isfinite(self.means[self.first_layer :, list(self.has_mean)]).all():
            raise MechrefusalError(
                f"the reference '{self.name}' is not finite: no prompt was averaged, or the weights are not finite"
            )

    def edits(
        self, basis: Float[Tensor, "d_model k"], *, dose: float, layout: Layout
    ) -> list[tuple[int, Callable[[Tensor], Tensor]]]:
        """Edits of the block inputs that leave 1 − `dose` of every deviation from the reference along `basis`.

        At dose 1 the projection is the reference's at every layer. At any other dose what a block writes counts once,
        not again at every layer above it: an edit remembers what it left, so that the next one knows what was written.

        Args:
            layout: of the pass under way.
        """
        targets = (self.means.double() @ basis.double().to(self.means.device)).to(torch.float32)
        has_mean = torch.tensor(self.has_mean)
        left: dict[str, Tensor] = {}

        def edit_at(layer: int) -> Callable[[Tensor], Tensor]:
            def hold(activation: Tensor) -> Tensor:
                kinds = self.classes.of(*layout.places(activation.shape[1])).to(activation.device)
                x = widened(activation)
                q, target = basis.to(x), targets.to(x)
                now, goal = x @ q, target[layer][kinds]
                if dose != 1:
                    before = left.get("projection")
                    if layer == self.first_layer or before is None:
                        goal = goal + (1 - dose) * (now - goal)
                    else:
                        before = before.to(x)
                        step = goal - target[layer - 1][kinds]
                        goal = before + (1 - dose) * (now - before) + dose * step
                goal = torch.where(has_mean.to(activation.device)[kinds][..., None], goal, now)
                left["projection"] = goal
                return (x + (goal - now) @ q.T).to(activation.dtype)

            return hold

        return [(layer, edit_at(layer)) for layer in range(self.first_layer, len(self.means))]


def require_reference(name: str) -> ReferenceName:
    """The name; MechrefusalError for one that is no reference."""
    for known in (HARMLESS, ZERO):
        if name == known:
            return known
    raise MechrefusalError(f"unknown reference '{name}': give one of {', '.join(REFERENCES)}")
