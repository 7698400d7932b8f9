"""A norm with its scale held as it was in a pass: it is linear then, and what goes into it can be taken apart."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LARGE = 1e3
"""Entries of the probes: so large that a norm's epsilon is nothing beside them."""


@dataclass(frozen=True)
class HeldNorm:
    """RMSNorm or LayerNorm: y = s(x) · gain ⊙ x + bias, with x less its mean where `centred`. Float64."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool

    @classmethod
    @torch.no_grad()
    def of(cls, model, component) -> Self:
        """The norm that a component of a hooked transformer wraps, found by running it: its weights' meaning differs.

        On alternating signs every norm divides by their size; on a constant, LayerNorm leaves only its bias.
        """
        module: nn.Module = component.original_component
        signs = torch.ones(model.cfg.d_model, device=model.cfg.device, dtype=model.W_E.dtype)
        signs[1::2] = -1
        probes = torch.stack([torch.zeros_like(signs), _LARGE * signs, torch.full_like(signs, _LARGE)])
        bias, alternating, constant = module(probes[None])[0].to(signs.device).double()
        gain = (alternating - bias) * signs.double()
        centred = bool((constant - bias).norm() < 0.1 * gain.norm())
        return cls(gain, bias, centred)

    def pulled_back(self, readout: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        """The vector that reads x as `readout` reads gain ⊙ x (centred where the norm centres)."""
        pulled = self.gain * readout
        return pulled - pulled.mean() if self.centred else pulled

    def scales(
        self, inputs: Float[Tensor, "prompt d_model"], outputs: Float[Tensor, "prompt d_model"]
    ) -> Float[Tensor, " prompt"]:
        """s(x) of each row, from what went in and what came out: least squares over d_model."""
        inputs = inputs - inputs.mean(-1, keepdim=True) if self.centred else inputs
        shaped = self.gain * inputs
        return (shaped * (outputs - self.bias)).sum(-1) / shaped.pow(2).sum(-1).clamp(min=1e-300)
