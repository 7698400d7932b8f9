"""A screen: candidates are scored in bfloat16 first, and only the best of them exactly."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from mechrefusal.attacks.budget import Budget
from mechrefusal.attacks.target_loss import TokenIds, mean_losses
from mechrefusal.models.tree import Bank, Branch
from mechrefusal.models.tree_forward import TreeForward

FEWEST, SHARE = 4, 16
"""Of n candidates of a case, the best max(4, n / 16) are scored exactly."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products; without them a screen costs more than it saves."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in checks)


class Screen:
    """The model with its weights of this moment in bfloat16, beside it: half of a float32 model's memory once more."""

    def __init__(self, model: PreTrainedModel, budget: Budget) -> None:
        self._weights = {name: weight.detach().bfloat16() for name, weight in model.named_parameters()}
        self._forward = TreeForward(model, call=self._call)
        self._model, self._budget = model, budget

    @classmethod
    def of(cls, model: PreTrainedModel, budget: Budget) -> "Screen | None":
        """A screen where one saves time: a float32 model on a device that multiplies bfloat16. Elsewhere None."""
        weight = model.get_input_embeddings().weight
        if weight.dtype != torch.float32 or not multiplies_bfloat16(weight.device):
            return None
        return cls(model, budget)

    def _call(self, **inputs: Any) -> Any:
        return functional_call(self._model, self._weights, kwargs=inputs)

    @torch.no_grad()
    def losses(self, branches: Sequence[Branch], targets: Sequence[TokenIds], bank: Bank) -> Float[Tensor, " branch"]:
        """Mean cross-entropy of each branch's target, about 0.01 nats off."""
        target_of = {id(branch): target for branch, target in zip(branches, targets, strict=True)}
        low = Bank(bank.tokens, *(tuple(layer.bfloat16() for layer in part) for part in (bank.keys, bank.values)))

        def one(batch: Sequence[Branch]) -> Tensor:
            logits = self._forward.run(batch, bank=low, share=False).logits
            return mean_losses(logits, [target_of[id(branch)] for branch in batch]).cpu()

        return torch.cat([*self._budget.run(branches, one), torch.empty(0)])


def finalists(losses: Float[Tensor, " candidate"]) -> list[int]:
    """Places of the best candidates, in order of place."""
    n = min(len(losses), max(FEWEST, len(losses) // SHARE))
    return sorted(losses.topk(n, largest=False).indices.tolist())
