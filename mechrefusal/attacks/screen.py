"""A screen: candidates are scored in bfloat16 first, and only the best of them exactly."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mechrefusal.attacks.budget import Budget
from mechrefusal.attacks.target_loss import TokenIds, mean_losses
from mechrefusal.forward.low_precision import bfloat16_forward
from mechrefusal.forward.tree import Branch, KeyValues
from mechrefusal.forward.tree_forward import TreeForward

FEWEST, SHARE = 4, 16
"""Of n candidates of a case, the best max(4, n / 16) are scored exactly."""


class Screen:
    """The model with its weights of this moment in bfloat16, beside it: half of a float32 model's memory once more."""

    def __init__(self, forward: TreeForward, budget: Budget) -> None:
        self._forward, self._budget = forward, budget

    @classmethod
    def of(cls, model: PreTrainedModel, budget: Budget) -> "Screen | None":
        """A screen where one saves time: a float32 model on a device that multiplies bfloat16. Elsewhere None."""
        forward = bfloat16_forward(model)
        return None if forward is None else cls(forward, budget)

    @torch.no_grad()
    def losses(
        self, branches: Sequence[Branch], targets: Sequence[TokenIds], bank: KeyValues
    ) -> Float[Tensor, " branch"]:
        """Mean cross-entropy of each branch's target, about 0.01 nats off."""
        target_of = {id(branch): target for branch, target in zip(branches, targets, strict=True)}
        low = KeyValues(bank.tokens, *(tuple(layer.bfloat16() for layer in part) for part in (bank.keys, bank.values)))

        def one(batch: Sequence[Branch]) -> Tensor:
            logits = self._forward.run(batch, bank=low, share=False).logits
            return mean_losses(logits, [target_of[id(branch)] for branch in batch]).cpu()

        return torch.cat([*self._budget.run(branches, one), torch.empty(0)])


def finalists(losses: Float[Tensor, " candidate"]) -> list[int]:
    """Places of the best candidates, in order of place."""
    n = min(len(losses), max(FEWEST, len(losses) // SHARE))
    return sorted(losses.topk(n, largest=False).indices.tolist())
