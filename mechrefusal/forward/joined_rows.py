"""Many copies of one prompt's end in one pass: each row starts at a patched token and may join the pass at a layer.

Tokens before the patched one are what they are without the patch (attention is causal), so that a row reads their
keys and values from the bank of the unpatched run. Rows that a patch in a higher layer starts are added on the way up.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mechrefusal.forward.runner import Asked
from mechrefusal.forward.stream import StreamModules
from mechrefusal.forward.tree import Block, Branch, KeyValues, Tree
from mechrefusal.forward.tree_attention import Running
from mechrefusal.forward.tree_forward import TreeForward


@dataclass(frozen=True)
class Suffix:
    """What follows the first `start` tokens of a prompt, and every continuation of it.

    Fields:
        start: tokens of the prompt whose keys and values are read from elsewhere.
        tree: the tokens from there on.
        base: of each of them, its place in the tree of the whole prompt with its continuations.
    """

    start: int
    tree: Tree
    base: Int[Tensor, " token"]

    @classmethod
    def of(cls, request: Asked, start: int, whole: Tree) -> "Suffix":
        """The tokens from `start` on; `whole` is the tree of `branches_of(request)`."""
        tree = Tree.of(branches_of(request, start), bank_size=len(whole))
        base = torch.zeros(len(tree), dtype=torch.long)
        for in_suffix, full in zip(tree.places, whole.places, strict=True):
            base[list(in_suffix)] = torch.tensor(full[start:])
        return cls(start, tree, base)

    def __len__(self) -> int:
        return len(self.base)


def branches_of(request: Asked, start: int = 0, *, row: int = 0) -> list[Branch]:
    """One branch a continuation, after the prompt's first `start` tokens."""
    branches = []
    for run, n in zip(request.continuations, request.n_kept, strict=True):
        tokens = (*request.prompt[start:], *run)
        branches.append(Branch(tokens, tuple(range(len(tokens) - n, len(tokens))), tuple(range(start)), row))
    return branches


class Rows:
    """Suffixes packed one after another, the order of the rows kept."""

    def __init__(self, suffixes: Sequence[Suffix], *, bank_size: int, device: torch.device) -> None:
        self.suffixes, self.bank_size, self.device = suffixes, bank_size, device
        self.offsets = [0, *accumulate(len(suffix) for suffix in suffixes)]
        self.base = torch.cat([suffix.base for suffix in suffixes]).to(device)

    def __len__(self) -> int:
        return len(self.suffixes)

    def tree(self, n_rows: int | None = None) -> Tree:
        """The tree of all tokens, or of the first `n_rows` rows."""
        n = len(self) if n_rows is None else n_rows
        trees = [suffix.tree for suffix in self.suffixes[:n]]
        starts: dict[int, list[int]] = {}
        for suffix, offset in zip(self.suffixes[:n], self.offsets, strict=False):
            starts.setdefault(id(suffix.tree), []).append(offset)
        by_id = {id(tree): tree for tree in trees}
        items = [self._moved(b, torch.tensor(offsets)) for key, offsets in starts.items() for b in by_id[key].blocks]
        blocks, unpad = _merged(items, self.offsets[n])
        places = torch.cat([tree.kept + offset for tree, offset in zip(trees, self.offsets, strict=False)])
        tokens, positions = (torch.cat([getattr(tree, name) for tree in trees]) for name in ("tokens", "positions"))
        return Tree(tokens, positions, places, (), blocks, unpad).to(self.device)

    def _moved(self, block: Block, offsets: Int[Tensor, " row"]) -> Block:
        """One block for each of `offsets`, where a row begins."""
        by = offsets[:, None, None]
        keys = block.keys + by * (block.keys >= self.bank_size)
        return Block(
            (block.queries + by).flatten(0, 1),
            keys.flatten(0, 1),
            block.n_queries.repeat(len(offsets)),
            block.n_keys.repeat(len(offsets)),
        )


def _merged(items: list[Block], n_tokens: int) -> tuple[tuple[Block, ...], Tensor]:
    """Blocks of similar width as one, and where each token stands in the blocks' concatenated results."""
    groups: list[list[Block]] = []
    for item in sorted(items, key=lambda b: -b.queries.shape[1]):
        if not groups or 2 * item.queries.shape[1] < groups[-1][0].queries.shape[1]:
            groups.append([])
        groups[-1].append(item)
    blocks, start = [], 0
    unpad = torch.empty(n_tokens, dtype=torch.long)
    for group in groups:
        widths = [max(getattr(item, name).shape[1] for item in group) for name in ("queries", "keys")]
        queries, keys = (
            torch.cat([functional.pad(part, (0, width - part.shape[1])) for part in parts])
            for width, parts in zip(widths, ([b.queries for b in group], [b.keys for b in group]), strict=True)
        )
        n_queries, n_keys = (torch.cat([getattr(b, name) for b in group]) for name in ("n_queries", "n_keys"))
        real = torch.arange(widths[0]) < n_queries[:, None]
        unpad[queries[real]] = start + torch.arange(queries.numel()).view(queries.shape)[real]
        start += queries.numel()
        blocks.append(Block(queries, keys, n_queries, n_keys))
    return tuple(blocks), unpad


class RowsRunning(Running):
    """A run of rows of which layer l has the first `present[l]`."""

    def __init__(self, rows: Rows, bank: KeyValues, present: Sequence[int] | None = None) -> None:
        super().__init__(rows.tree(), bank)
        self.rows, self.present = rows, present
        self._last = (len(rows), self.tree)

    def tree_at(self, layer: int) -> Tree:
        """See `Running`; the tree is made anew where rows have joined."""
        n = len(self.rows) if self.present is None else self.present[layer]
        if self._last[0] != n:
            self._last = (n, self.tree if n == len(self.rows) else self.rows.tree(n))
        return self._last[1]


def join(
    modules: StreamModules,
    forward: TreeForward,
    rows: Rows,
    bank: KeyValues,
    enters: Sequence[int],
    entering: Callable[[int, range], Float[Tensor, "token d_model"]],
) -> Float[Tensor, "kept vocab"]:
    """Logits of rows that enter the residual stream on the way up.

    Args:
        enters: the block that each row enters, ascending; n_layers stands for what follows the last block.
        entering: (block, rows) gives the residual stream of those rows.
    """
    n_layers = len(modules.blocks)
    present = [sum(block <= layer for block in enters) for layer in range(n_layers + 1)]
    first = min(enters[0], n_layers - 1)
    if present[n_layers - 1] == 0:
        return _after_the_last_block(modules, forward, rows, bank, entering)
    running = RowsRunning(rows, bank, present)

    def joined(layer: int, stream: Tensor | None) -> Tensor:
        new = range(present[layer - 1] if layer > first else 0, present[layer])
        if stream is not None and not new:
            return stream
        parts = [] if stream is None else [stream[0]]
        entered = [entering(layer, new)] if new else []
        return torch.cat([*parts, *(each.to(parts[0].device) if parts else each for each in entered)])[None]

    with ExitStack() as stack:
        stack.enter_context(modules.skipping(range(first)))
        for layer in range(first, n_layers):
            n_tokens = rows.offsets[present[layer]]

            def enter(stream: Tensor, layer: int = layer) -> Tensor:
                return joined(layer, None if layer == first else stream)

            stack.enter_context(_entered(modules.blocks[layer], enter, rows.offsets[-1], n_tokens))
        if present[n_layers] > present[n_layers - 1]:
            stack.enter_context(modules.edited([(n_layers - 1, "resid_post", lambda stream: joined(n_layers, stream))]))
        return forward.run_tree(running)


def _after_the_last_block(
    modules: StreamModules, forward: TreeForward, rows: Rows, bank: KeyValues, entering: Callable[[int, range], Tensor]
) -> Tensor:
    n_layers = len(modules.blocks)
    with (
        modules.skipping(range(n_layers)),
        modules.edited([(n_layers - 1, "resid_post", lambda _: entering(n_layers, range(len(rows)))[None])]),
    ):
        return forward.run_tree(RowsRunning(rows, bank))


@contextmanager
def _entered(block: nn.Module, enter: Callable[[Tensor], Tensor], n_all: int, n: int) -> Iterator[None]:
    """While open, the block runs `enter` of its input; what it gets beside is cut from `n_all` tokens to `n`."""

    def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        kwargs = dict(kwargs)
        stream = args[0] if args else kwargs.pop("hidden_states")
        rest, kwargs = _cut((args[1:], kwargs), n_all, n) if n < n_all else (args[1:], kwargs)
        return (enter(stream), *rest), kwargs

    handle = block.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _cut(value: Any, n_all: int, n: int) -> Any:
    """Tensors over `n_all` tokens ([token], [1, token, ...]), of the first `n` of them; others as they are."""
    if isinstance(value, Tensor):
        if value.ndim == 1 and value.shape[0] == n_all:
            return value[:n]
        return value[:, :n] if value.ndim > 1 and value.shape[1] == n_all else value
    if isinstance(value, dict):
        return {key: _cut(part, n_all, n) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_cut(part, n_all, n) for part in value)
    return value
