"""Finding the modules that write the residual stream of a Hugging Face model, by what they do in one pass.

Blocks hand the stream from one to the next, and what a block adds to it is the sum of what two of its children return
(attention and MLP, or the norms after them), or a constant share of it (Granite).
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.stream_mean import takes_out_mean
from mechrefusal.models.frozen import frozen

N_TOKENS = 6


@dataclass(frozen=True)
class StreamLayout:
    """Where the residual stream of a model is written: names, so that nothing here keeps the model alive.

    Fields:
        blocks: paths of the blocks.
        writers: the two children of a block that write, in the order in which they run.
        scale: what a block multiplies their outputs by.
        free_mean: whether the norms take out the mean.
    """

    blocks: tuple[str, ...]
    writers: tuple[str, str]
    scale: float
    free_mean: bool

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module) -> "StreamLayout":
        """Find it in one pass.

        Raises:
            MechrefusalError: blocks that do not add what attention and MLP return to a residual stream, or whose norms
                take out another mean than the hooked transformer's.
        """
        config: Any = model.config
        n_layers = config.get_text_config().num_hidden_layers
        lists = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == n_layers
        ]
        generator = torch.Generator().manual_seed(0)
        embeddings = model.get_input_embeddings().weight  # type: ignore[operator]
        token_ids = torch.randint(len(embeddings), (1, N_TOKENS), generator=generator).to(embeddings.device)
        tolerance = math.sqrt(torch.finfo(embeddings.dtype).eps)
        with frozen(model):
            for name, blocks in lists:
                passed = _watched(model, blocks, token_ids)
                if _hands_on(passed) and (writers := _writers(passed, tolerance)) is not None:
                    names = tuple(f"{name}.{layer}" for layer in range(n_layers))
                    return cls(names, *writers, takes_out_mean(model, blocks, token_ids))
        raise MechrefusalError(
            f"cannot find the residual stream of this {type(model).__name__}: none of {len(lists)} lists of {n_layers} "
            "blocks hands it on from block to block with attention and MLP added; load it with models.load_hooked "
            "instead"
        )


@dataclass
class _Pass:
    """What a block was given and returned, before and after the hooks that others have on it, and its children."""

    entered: Tensor | None = None
    taken: Tensor | None = None
    returned: Tensor | None = None
    handed_on: Tensor | None = None
    children: dict[str, list[Tensor]] = field(default_factory=dict)


def _watched(model: nn.Module, blocks: nn.ModuleList, token_ids: Tensor) -> list[_Pass]:
    notes = [_Pass() for _ in blocks]

    def stream(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        activation = args[0] if args else kwargs.get("hidden_states")
        return activation.clone() if isinstance(activation, Tensor) else None

    with ExitStack() as stack:
        for block, note in zip(blocks, notes, strict=True):

            def entered(_, args, kwargs, note=note):
                note.entered = stream(args, kwargs)

            def taken(_, args, kwargs, note=note):
                note.taken = stream(args, kwargs)

            def returned(_, args, output, note=note):
                note.returned = _first(output)

            def handed_on(_, args, output, note=note):
                note.handed_on = _first(output)

            for handle in (
                block.register_forward_pre_hook(entered, with_kwargs=True, prepend=True),
                block.register_forward_pre_hook(taken, with_kwargs=True),
                block.register_forward_hook(returned, prepend=True),
                block.register_forward_hook(handed_on),
            ):
                stack.callback(handle.remove)
            for name, child in block.named_children():

                def wrote(_, args, output, note=note, name=name):
                    if (written := _first(output)) is not None:
                        note.children.setdefault(name, []).append(written)

                stack.callback(child.register_forward_hook(wrote).remove)
        model(input_ids=token_ids, use_cache=False)
    return notes


def _first(output: Any) -> Tensor | None:
    activation = output[0] if isinstance(output, tuple) else output
    return activation.clone() if isinstance(activation, Tensor) else None


def _hands_on(passed: list[_Pass]) -> bool:
    """Whether every block takes in what the one before gave out."""
    if any(value is None for each in passed for value in (each.entered, each.taken, each.returned, each.handed_on)):
        return False
    return all(
        block.handed_on.shape == next_block.entered.shape and torch.equal(block.handed_on, next_block.entered)  # type: ignore
        for block, next_block in pairwise(passed)
    )


def _writers(passed: list[_Pass], tolerance: float) -> tuple[tuple[str, str], float] | None:
    """The two children, in the order in which they run, whose sum a block adds to the stream, and times what."""
    once = [name for name, written in passed[0].children.items() if len(written) == 1]
    best, least = None, tolerance
    for pair in combinations(once, 2):
        parts = [part for each in passed if (part := _parts(each, pair)) is not None]
        if len(parts) < len(passed):
            continue
        for scale in dict.fromkeys((1.0, _scale(parts[0]))):
            error = max(_error(part, scale) for part in parts)
            if error < least:  # the first of several that agree: what follows it passes it on (dropout)
                best, least = (pair, scale), error
                break
    return best


def _parts(block: _Pass, pair: tuple[str, str]) -> tuple[Tensor, Tensor] | None:
    """What a pair of children wrote, and what the block added; float64. None where they did not write once a token."""
    written = [block.children.get(name, []) for name in pair]
    assert block.taken is not None
    assert block.returned is not None
    if any(len(each) != 1 or each[0].shape != block.taken.shape for each in written):
        return None
    total = written[0][0].double() + written[1][0].double()
    return total, block.returned.double() - block.taken.double()


def _scale(parts: tuple[Tensor, Tensor]) -> float:
    """By how much what was written would have to be multiplied to be what was added: the middle one of all tokens."""
    written, added = parts
    scale = ((written * added).sum(-1) / written.square().sum(-1)).median().item()
    return scale if math.isfinite(scale) and scale != 0 else 1.0


def _error(parts: tuple[Tensor, Tensor], scale: float) -> float:
    """How far `scale` times what was written is from what was added, relative to that."""
    written, added = parts
    # By token, the middle one of them: in a few, low precision loses what is added to a huge stream.
    off = (scale * written - added).norm(dim=-1) / added.norm(dim=-1)
    error = off.median().item()
    return error if math.isfinite(error) else math.inf
