"""How far a prompt is from drawing its target: the target's cross-entropy, of many prompts at once."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mechrefusal.attacks.budget import Budget
from mechrefusal.forward.tree import Branch, KeyValues
from mechrefusal.forward.tree_forward import TreeForward

TokenIds = tuple[int, ...]


@torch.no_grad()
def target_losses(
    model: PreTrainedModel, prompts: Sequence[TokenIds], targets: Sequence[TokenIds], *, budget: Budget | None = None
) -> Float[Tensor, " prompt"]:
    """Mean cross-entropy (nats a token) of `targets[i]` after `prompts[i]`, in float32 on the CPU.

    What prompts begin with in common is run once; logits are taken at the targets alone.
    """
    forward, budget = TreeForward(model), budget if budget is not None else Budget(model)
    branches = [Branch.continuing(*pair) for pair in zip(prompts, targets, strict=True)]
    # In order of their tokens, neighbours share most.
    order = sorted(range(len(branches)), key=lambda i: branches[i].tokens)
    target_of = {id(branches[i]): targets[i] for i in order}

    def one(batch: Sequence[Branch]) -> Tensor:
        logits = forward.run(batch).logits
        return mean_losses(logits, [target_of[id(branch)] for branch in batch]).cpu()

    in_order = torch.cat(budget.run([branches[i] for i in order], one)) if branches else torch.empty(0)
    losses = torch.empty(len(branches))
    losses[torch.tensor(order, dtype=torch.long)] = in_order
    return losses


def mean_losses(logits: Float[Tensor, "token vocab"], targets: Sequence[TokenIds]) -> Float[Tensor, " prompt"]:
    """Mean cross-entropy of each target; `logits` hold one row a token of all targets, one target after another."""
    lengths = torch.tensor([len(target) for target in targets], device=logits.device)
    labels = torch.tensor([token for target in targets for token in target], device=logits.device)
    losses = token_losses(logits, labels)
    owner = torch.repeat_interleave(torch.arange(len(targets), device=logits.device), lengths)
    return torch.zeros(len(targets), device=logits.device).index_add(0, owner, losses) / lengths


def token_losses(logits: Float[Tensor, "token vocab"], labels: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """Cross-entropy of each label, nats, in float32 whatever the logits are."""
    logits = logits.float()
    return logits.logsumexp(-1) - logits.gather(-1, labels[:, None])[:, 0]


class Beginnings:
    """What the prompts of several cases begin with, run once: a bank, and the places of each beginning in it."""

    def __init__(
        self, forward: TreeForward, beginnings: Sequence[TokenIds], budget: Budget, *, names: Sequence[str]
    ) -> None:
        self.bank = KeyValues()
        unique = list(dict.fromkeys(beginnings))
        branches = [Branch(tokens, ()) for tokens in unique]
        places_of: dict[TokenIds, tuple[int, ...]] = {}

        def one(batch: Sequence[Branch]) -> None:
            with torch.no_grad():
                output = forward.run(batch, capture=True)
            start = len(self.bank)
            self.bank = KeyValues.joined([self.bank, output.bank])
            for branch, places in zip(batch, output.places, strict=True):
                places_of[branch.tokens] = tuple(start + place for place in places)

        name_of = dict(zip(reversed(beginnings), reversed(names), strict=True))  # the first of those that are equal
        budget.run(branches, one, name=lambda branch: name_of[branch.tokens])
        self.places = tuple(places_of[tokens] for tokens in beginnings)
