"""Transformer blocks that are not run: their input is handed through, for passes that start at a later layer."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_KEY = "_mechrefusal_blocks_with_tuples"


@contextmanager
def skipped(blocks: Sequence[nn.Module], with_tuples: Collection[nn.Module]) -> Iterator[None]:
    """While open, `blocks` return their input, unchanged and unhooked; those `with_tuples` in a tuple."""
    for block in blocks:
        block.__dict__["forward"] = _hand_through_tuple if block in with_tuples else _hand_through
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]


def blocks_with_tuples(
    model: nn.Module, blocks: Sequence[nn.Module], run: Callable[[Tensor], Any], *, device: torch.device | str
) -> set[nn.Module]:
    """Those of `blocks` that return a tuple, which differs between architectures of transformers.

    Found out by one pass of two tokens through `run` and remembered in `model`.
    """
    known = model.__dict__.get(_KEY)
    if known is None:
        known = set()

        def note(block: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, tuple):
                known.add(block)

        with ExitStack() as stack, torch.no_grad():
            for block in blocks:
                stack.callback(block.register_forward_hook(note).remove)
            run(torch.zeros((1, 2), dtype=torch.long, device=device))
        model.__dict__[_KEY] = known
    return known


def _hand_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _hand_through_tuple(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    return (hidden_states,)
