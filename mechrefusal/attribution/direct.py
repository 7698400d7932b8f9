"""Direct attribution: what every head and MLP writes onto the refusal logits, or onto a direction.

The residual stream is a sum of what the embedding, the heads, the MLPs and the biases write, so a linear read-out of it
is a sum of their parts. A norm between a head and the stream (Gemma 2 and 3) and the final norm are linear with their
scales held as they were in the pass. Elhage et al., A Mathematical Framework for Transformer Circuits (2021);
Wang et al. (2211.00593), section 3.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.attribution.norms import HeldNorm
from mechrefusal.attribution.readouts import Readout
from mechrefusal.attribution.writes import Writes, prompt_segments
from mechrefusal.errors import MechrefusalError
from mechrefusal.models.bridge_internals import scale_of_writes, written_by
from mechrefusal.models.rounding import rounded_at_most
from mechrefusal.statistics import Observations, Observed, intervals
from mechrefusal.statistics.observations import numbered

TOLERANCE = 1e-3
"""Largest relative gap allowed between a decomposition's sum and what it decomposes."""


class Component(NamedTuple):
    """Something that writes to the residual stream: embed, pos_embed, head, mlp or bias; −1 where it has no such."""

    component: str
    layer: int = -1
    head: int = -1


@dataclass(frozen=True)
class Attribution(Observed):
    """Contribution of every component to a read-out, prompt by prompt (nats for logits, activation units otherwise).

    `bias` holds the attention output biases, and for logits those of the unembedding and the final norm; an MLP's own
    bias is part of what it writes. `total` is the quantity that was taken apart, read from the model itself.
    """

    components: tuple[Component, ...]
    values: Float[Tensor, "prompt component"]
    total: Float[Tensor, " prompt"]

    def __post_init__(self) -> None:
        assert self.values.shape == (len(self.total), len(self.components))

    @property
    def table(self) -> pd.DataFrame:
        """component, layer, head, value (mean over prompts), n, low, high; a last row `total`."""
        names = [*self.components, Component("total")]
        columns = torch.cat([self.values, self.total[:, None]], dim=1).numpy().T
        return pd.DataFrame(
            [{**c._asdict(), **vars(intervals.mean(column))} for c, column in zip(names, columns, strict=True)]
        )

    @property
    def observations(self) -> Observations:  # type: ignore[override]
        """The same values with named axes: component, layer, head."""
        return Observations(self.values.numpy(), pd.DataFrame(self.components), numbered(len(self.total)))

    def of(self, component: str, layer: int = -1, head: int = -1) -> Float[Tensor, " prompt"]:
        """One component's contribution to each prompt."""
        return self.values[:, self.components.index(Component(component, layer, head))]

    def top(self, k: int) -> list[tuple[int, int]]:
        """The `k` (layer, head) with the largest absolute mean contribution, largest first."""
        means = self.values.mean(0).abs().tolist()
        heads = [(mean, c) for mean, c in zip(means, self.components, strict=True) if c.component == "head"]
        return [(c.layer, c.head) for _, c in sorted(heads, key=lambda one: -one[0])[:k]]


def attribute(model, texts: Sequence[str], readout: Readout) -> Attribution:
    """Contribution of every component to `readout` for every prompt.

    Args:
        model: a hooked transformer, under whatever hooks are open.
        texts: instructions; the model's chat template is put around them.
        readout: `RefusalLogits(metric)` or `Onto(direction, layer, position)`.

    Raises:
        MechrefusalError: no texts; a position that a prompt does not have; a direction or layer that is not of this
            model; weights that are not finite; an architecture whose stream is not the sum of heads and MLPs.
    """
    readout.check(model)
    ids = [(*segments.prompt_ids, *readout.opening) for segments in prompt_segments(model, texts)]
    return of_writes(model, Writes.take(model, ids, position=readout.position, tokens=readout.tokens), readout)


@torch.no_grad()
def of_writes(model, written: Writes, readout: Readout) -> Attribution:
    """The same, of what was written in a pass that was run before."""
    vector, scales = readout.vector(model), readout.scales(model, written)
    layers = range(readout.n_layers(model))
    bias = torch.zeros_like(scales)
    parts: dict[Component, Tensor] = {}
    for layer in layers:
        per_head = HeadReadout.of(model, layer, vector)
        held = per_head.scales(model, written)
        bias += held * per_head.bias + per_head.constant
        heads = held[:, None] * torch.einsum("phd,hd->ph", written.z[:, layer], per_head.weights)
        parts |= {Component("head", layer, head): value for head, value in enumerate(heads.unbind(1))}
    parts |= {Component("mlp", layer): written.mlp_out[:, layer] @ vector for layer in layers}
    parts[Component("embed")] = written.embed @ vector
    if written.pos_embed.any():
        parts[Component("pos_embed")] = written.pos_embed @ vector
    parts[Component("bias")] = bias
    values = torch.stack(list(parts.values()), dim=1) * scales[:, None]
    values[:, -1] += readout.constant(model)
    attribution = Attribution(tuple(parts), values.cpu(), readout.total(model, written).cpu())
    _require_sum(attribution, rounded(model, written, vector) * scales.abs().max().item())
    return attribution


@dataclass(frozen=True)
class HeadReadout:
    """How a layer's heads are read: a head's value is z · its weights, times the held scale of a norm that follows.

    `bias` is the part of the attention's output bias before that scale, `constant` that of the norm's own bias.
    """

    layer: int
    weights: Float[Tensor, "head d_head"]
    bias: float
    constant: float
    norm: HeldNorm | None

    @classmethod
    def of(cls, model, layer: int, vector: Float[Tensor, " d_model"]) -> "HeadReadout":
        """For the stream read by `vector`."""
        attention = model.blocks[layer].attn
        norm = _norm_after_heads(model, layer)
        pulled = scale_of_writes(model) * (vector if norm is None else norm.pulled_back(vector))
        bias = 0.0 if attention.b_O is None else (_beside(attention.b_O, pulled) @ pulled).item()
        constant = 0.0 if norm is None else (norm.bias @ vector).item()
        return cls(layer, _beside(attention.W_O, pulled) @ pulled, bias, constant, norm)

    def scales(self, model, written: Writes) -> Float[Tensor, " prompt"]:
        """Of the norm between the heads and the stream; one where there is none."""
        if self.norm is None:
            return torch.ones_like(written.log_total)
        attention = model.blocks[self.layer].attn
        before = torch.einsum("phd,hdm->pm", written.z[:, self.layer], _beside(attention.W_O, written.z))
        if attention.b_O is not None:
            before = before + _beside(attention.b_O, before)
        return self.norm.scales(before, written.attn_out[:, self.layer])


def _beside(weight: Tensor, other: Tensor) -> Tensor:
    """A weight in float64, on the device of what it is multiplied with."""
    return weight.to(other.device).double()


def _norm_after_heads(model, layer: int) -> HeldNorm | None:
    """What stands between the output projection and hook_attn_out (Gemma 2 and 3), if anything does."""
    block = model.blocks[layer]
    part = written_by(block, "hook_attn_out")[0]
    return None if part == "attn" else HeldNorm.of(model, getattr(block, part))


def rounded(model, written: Writes, vector: Float[Tensor, " d_model"]) -> float:
    """What rounding the stream after each write does to what `vector` reads, at most."""
    parts = (written.resid_pre, written.resid_pre, written.attn_out, written.mlp_out)
    squares = torch.stack([(part.square() @ vector.square()).sum(1) for part in parts]).sum(0)
    return rounded_at_most(model, squares)


def _require_sum(attribution: Attribution, rounding: float) -> None:
    gap = (attribution.values.sum(1) - attribution.total).abs().max().item()
    scale = max(1.0, attribution.total.abs().max().item(), attribution.values.abs().max().item())
    if not gap <= TOLERANCE * scale + rounding:
        raise MechrefusalError(
            f"attribution does not add up: the components' sum misses the total by {gap:.2g} (largest {scale:.2g}); "
            "this architecture's residual stream is not a plain sum of heads and MLPs, so no attribution is given"
        )
