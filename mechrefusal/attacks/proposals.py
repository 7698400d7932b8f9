"""What a step of GCG proposes: suffixes that replace one token by one that the gradient promises."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrefusal.attacks.settings import GCGSettings

TokenIds = tuple[int, ...]


def promising(
    gradient: Float[Tensor, "position vocab"], suffix: TokenIds, replaceable: Bool[Tensor, " vocab"], top_k: int
) -> list[Int[Tensor, " token"]]:
    """For each position, the `top_k` replaceable tokens other than its own, by negative gradient, the best first."""
    scores = (-gradient).float().masked_fill(~replaceable.to(gradient.device), -math.inf)
    scores[torch.arange(len(suffix)), torch.tensor(suffix)] = -math.inf
    best = scores.topk(min(top_k, scores.shape[1]), dim=-1)
    values, indices = best.values.cpu(), best.indices.cpu()
    return [tokens[score > -math.inf] for tokens, score in zip(indices, values, strict=True)]


def draws(
    tokens: Sequence[Int[Tensor, " token"]],
    suffix: Int[Tensor, " position"],
    width: int,
    *,
    generator: torch.Generator,
) -> Iterator[Int[Tensor, "candidate position"]]:
    """Batches of suffixes that differ from `suffix` in one token, one of `tokens` at its position; none comes twice.

    The first batch is the proposals of a GCG step: positions share the `width` evenly, a random subset has one more.
    Further ones are for those who can use none of them. They end when all tokens were drawn. Each batch is in order of
    the positions.
    """
    length = len(suffix)
    extra = set(torch.randperm(length, generator=generator)[: width % length].tolist())
    orders = [promising_here[torch.randperm(len(promising_here), generator=generator)] for promising_here in tokens]
    each = [width // length + (position in extra) for position in range(length)]
    while any(map(len, orders)):
        batch = []
        for position, n in enumerate(each):
            chosen, orders[position] = orders[position][:n], orders[position][n:]
            changed = suffix.repeat(len(chosen), 1)
            changed[:, position] = chosen
            batch.append(changed)
        if any(map(len, batch)):
            yield torch.cat(batch)
        # Those that are left, position by position, until the width is full.
        each, room = [0] * length, width
        for position, order in enumerate(orders):
            each[position] = min(len(order), room)
            room -= each[position]


def in_rounds(proposals: Int[Tensor, "candidate position"], n: int) -> list[Int[Tensor, "candidate position"]]:
    """Proposals in `n` parts of nearly equal size, from the last position of the suffix to the first.

    In this order a round replaces no token before one that a later round replaces: what was run of the suffix before a
    candidate's token holds in every round.
    """
    parts = [proposals[len(proposals) * k // n : len(proposals) * (k + 1) // n] for k in range(n)]
    return parts[::-1]


def propose(
    gradient: Float[Tensor, "position vocab"],
    suffix: Int[Tensor, " position"],
    replaceable: Bool[Tensor, " vocab"],
    settings: GCGSettings,
    *,
    generator: torch.Generator,
) -> Int[Tensor, "candidate position"]:
    """The proposals of one step, before it is seen which of them survive being text."""
    tokens = promising(gradient, tuple(suffix.tolist()), replaceable, settings.top_k)
    return next(draws(tokens, suffix, settings.width, generator=generator), suffix[None][:0])
