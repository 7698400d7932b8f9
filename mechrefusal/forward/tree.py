"""Token sequences as a tree: what they begin with in common stands once, and nothing is padded.

The tokens of all sequences stand in one packed row. A *branch* is one sequence; it may continue tokens whose keys
and values are kept (`KeyValues`). In attention each node of the tree reads its ancestors and itself; everything else
of a transformer acts on single tokens and needs no more than their positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Branch:
    """One token sequence: `tokens` after the tokens at `context`.

    Fields:
        tokens: token ids that are run.
        keep: places in `tokens` at which logits are wanted.
        context: places in a bank, from position 0 on; the first of `tokens` stands at position len(context).
        row: branches of different rows share no token, so that each can be given activations of its own.
    """

    tokens: tuple[int, ...]
    keep: tuple[int, ...]
    context: tuple[int, ...] = ()
    row: int = 0

    def __post_init__(self) -> None:
        assert self.tokens, "a branch runs at least one token"
        assert all(0 <= place < len(self.tokens) for place in self.keep)

    @classmethod
    def continuing(cls, prompt: Sequence[int], continuation: Sequence[int], context: tuple[int, ...] = ()) -> Self:
        """The branch whose kept logits predict `continuation` after `prompt`. The last token is predicted, not read."""
        tokens = (*prompt, *continuation[:-1])
        return cls(tokens, tuple(range(len(prompt) - 1, len(tokens))), context)


@dataclass(frozen=True)
class KeyValues:
    """Tokens that were run: their ids, and keys and values a layer (after rotation), where a model can share them.

    `keys[l]` and `values[l]` have shape [token, kv head, d_head]; both are empty where they are not kept.
    """

    tokens: tuple[int, ...] = ()
    keys: tuple[Float[Tensor, "token head d_head"], ...] = ()
    values: tuple[Float[Tensor, "token head d_head"], ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def at(self, places: Sequence[int]) -> "KeyValues":
        """The tokens at `places`, as a bank of their own."""
        chosen = torch.tensor(places, dtype=torch.long)
        picked = (tuple(layer[chosen.to(layer.device)] for layer in part) for part in (self.keys, self.values))
        return KeyValues(tuple(self.tokens[place] for place in places), *picked)

    @classmethod
    def joined(cls, banks: Sequence["KeyValues"]) -> "KeyValues":
        """Banks one after another: the places of each move up by the lengths of those before it."""
        full = [bank for bank in banks if len(bank)]
        if len(full) < 2:
            return full[0] if full else cls()
        layers = (
            tuple(map(torch.cat, zip(*(getattr(b, part) for b in full), strict=True))) for part in ("keys", "values")
        )
        return cls(tuple(token for bank in full for token in bank.tokens), *layers)


@dataclass(frozen=True)
class Block:
    """Nodes of similar length, padded to a rectangle for attention.

    Node g reads `n_keys[g]` tokens, at positions 0, 1, ...; its own `n_queries[g]` tokens are the last of them. Padding
    points at token 0, and its results are not read.
    """

    queries: Int[Tensor, "node query"]
    keys: Int[Tensor, "node key"]
    n_queries: Int[Tensor, " node"]
    n_keys: Int[Tensor, " node"]
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Bool[Tensor, "node 1 query key"]:
        """Which key each query attends to: none after itself, and none `window` or more before it."""
        if window not in self._masks:
            columns = torch.arange(self.keys.shape[1], device=self.keys.device)
            steps = torch.arange(self.queries.shape[1], device=self.keys.device)
            last_key = (self.n_keys - self.n_queries)[:, None] + steps
            last_key = last_key.clamp(max=self.keys.shape[1] - 1)[..., None]  # padding, too, must see something
            seen = columns <= last_key
            if window is not None:
                seen &= columns > last_key - window
            self._masks[window] = seen[:, None]
        return self._masks[window]

    def to(self, device: torch.device) -> "Block":
        """The block on `device`."""
        return Block(self.queries.to(device), self.keys.to(device), self.n_queries.to(device), self.n_keys.to(device))


@dataclass(frozen=True)
class Tree:
    """Branches packed into one row, ready to be run.

    Fields:
        tokens, positions: of every packed token.
        kept: packed places of the wanted logits, branch by branch.
        places: packed places of each branch's own tokens.
        blocks: how attention reads them. Key places below `bank_size` are in the bank, the others follow it.
        unpad: where each packed token stands in the blocks' concatenated padded outputs.
    """

    tokens: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    kept: Int[Tensor, " kept"]
    places: tuple[tuple[int, ...], ...]
    blocks: tuple[Block, ...]
    unpad: Int[Tensor, " token"]

    @classmethod
    def of(cls, branches: Sequence[Branch], *, bank_size: int = 0, share: bool = True) -> Self:
        """Pack `branches`; with `share`, what branches of the same row and context begin with in common stands once."""
        assert branches, "a tree has at least one branch"
        nodes = list(_nodes(branches)) if share else [_Node(b.tokens, b.context, (i,)) for i, b in enumerate(branches)]
        places: list[list[int]] = [[] for _ in branches]
        tokens: list[int] = []
        positions: list[int] = []
        queries: list[Tensor] = []
        keys: list[Tensor] = []
        for node in nodes:
            start, above = len(tokens), places[node.branches[0]]
            packed = range(start, start + len(node.tokens))
            depth = len(node.context) + len(above)
            queries.append(torch.arange(packed.start, packed.stop))
            keys.append(torch.tensor([*node.context, *(bank_size + place for place in (*above, *packed))]))
            positions += range(depth, depth + len(packed))
            tokens += node.tokens
            for branch in node.branches:
                places[branch] = [*places[branch], *packed]
        logits = [places[i][place] for i, branch in enumerate(branches) for place in branch.keep]
        blocks, unpad = _blocks(queries, keys, len(tokens))
        return cls(
            torch.tensor(tokens),
            torch.tensor(positions),
            torch.tensor(logits, dtype=torch.long),
            tuple(map(tuple, places)),
            blocks,
            unpad,
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> "Tree":
        """The tree on `device`."""
        device = torch.device(device)
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in ("tokens", "positions", "kept")}
        return replace(self, **moved, unpad=self.unpad.to(device), blocks=tuple(b.to(device) for b in self.blocks))


@dataclass(frozen=True)
class _Node:
    tokens: tuple[int, ...]
    context: tuple[int, ...]
    branches: tuple[int, ...]


def _nodes(branches: Sequence[Branch]) -> Iterator[_Node]:
    """The nodes of the tree, each after its parent. The first branch of a node lies below all of its ancestors."""

    def apart(i: int) -> tuple[int, tuple[int, ...]]:
        return branches[i].row, branches[i].context

    ordered = sorted(range(len(branches)), key=lambda i: (apart(i), branches[i].tokens))
    waiting = [(list(group), 0) for _, group in groupby(ordered, key=apart)]
    while waiting:
        group, depth = waiting.pop()
        # In order of their tokens, what the first and the last have in common all have in common.
        first, last = branches[group[0]].tokens, branches[group[-1]].tokens
        end = depth
        while end < min(len(first), len(last)) and first[end] == last[end]:
            end += 1
        if end > depth:
            yield _Node(first[depth:end], branches[group[0]].context, tuple(group))
        longer = [i for i in group if len(branches[i].tokens) > end]
        waiting += [(list(part), end) for _, part in groupby(longer, key=lambda i: branches[i].tokens[end])]


def _blocks(queries: list[Tensor], keys: list[Tensor], n_tokens: int) -> tuple[tuple[Block, ...], Tensor]:
    """Nodes in blocks whose shortest member is at least half as long as the longest, so that padding stays small."""
    order = sorted(range(len(queries)), key=lambda g: (-len(queries[g]), -len(keys[g])))
    groups: list[list[int]] = []
    for g in order:
        if not groups or 2 * len(queries[g]) < len(queries[groups[-1][0]]):
            groups.append([])
        groups[-1].append(g)
    blocks, offset = [], 0
    unpad = torch.empty(n_tokens, dtype=torch.long)
    for group in groups:
        nodes, read = [queries[g] for g in group], [keys[g] for g in group]
        padded = pad_sequence(nodes, batch_first=True)
        width = padded.shape[1]
        for row, places in enumerate(nodes):
            unpad[places] = offset + row * width + torch.arange(len(places))
        offset += padded.numel()
        n_own, n_read = (torch.tensor([len(part) for part in parts]) for parts in (nodes, read))
        blocks.append(Block(padded, pad_sequence(read, batch_first=True), n_own, n_read))
    return tuple(blocks), unpad
