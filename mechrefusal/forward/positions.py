"""Which tokens of a pass an intervention acts on, also where a prompt and its answer come in several cached passes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.token_classes import FAR, Layout
from mechrefusal.models.batches import IN_HEAD

Positions = Sequence[int] | Literal["prompt"]
"""Token positions: from 0 counted from the beginning of the row, negative ones from the end of the prompt (−1 is its
last token); or "prompt", every token that is not generated (with the key/value cache that generation has by default,
whose later passes bring one token each)."""


@dataclass
class Pass:
    """The pass under way: how many tokens stand in the key/value cache before it, and whether rows are padded."""

    n_past: int = 0
    padded: bool = False
    n_passes: int = 0
    after_prompt: Tensor | None = None
    """Tokens that stand after the prompt, row by row, in the passes over prompts; None: none do."""
    is_head: bool = False
    """Whether the pass is over what prompts begin with, their ends being in a later one."""
    mask: Tensor | None = None
    met: set[int] = field(default_factory=set)
    """Positions that stood in some pass."""

    def columns(self, positions: Positions, n_tokens: int) -> dict[int, int]:
        """Column in the pass of the i-th of `positions`, for those that stand in it.

        Raises:
            MechrefusalError: positions that this pass cannot tell.
        """
        if positions == "prompt":
            return {i: i for i in range(n_tokens)} if n_tokens > 1 or self.n_past == 0 else {}
        assert not isinstance(positions, str)
        columns = {i: self._column(p, n_tokens) for i, p in enumerate(positions)}
        here = {i: column for i, column in columns.items() if column is not None}
        self.met |= {positions[i] for i in here}
        return here

    def places(self, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Index and distance from the prompt's end of each token of the pass (see `token_classes.TokenClasses.of`).

        A pass of one token after others is a generated one; any other pass over more ends with the prompt, or
        `after_prompt` tokens after it.
        """
        columns = torch.arange(n_tokens)[None]
        index = self.n_past + columns
        if self.mask is not None and self.mask.shape[1] == self.n_past + n_tokens:
            index = (self.mask.cumsum(1) - 1)[:, self.n_past :].cpu()
        if self.is_head:
            return index, torch.full_like(index, FAR)
        if self.after_prompt is None and self.n_past > 0 and n_tokens == 1:
            return index, torch.zeros_like(index)
        distance = n_tokens - columns
        return index, distance if self.after_prompt is None else distance - self.after_prompt[:, None]

    def _column(self, position: int, n_tokens: int) -> int | None:
        if position >= 0:
            if self.padded:
                raise MechrefusalError(
                    f"position {position} is counted from the beginning of the row, but rows of this batch are padded; "
                    "count from the end of the prompt (negative), or run prompts of one length"
                )
            column = position - self.n_past
            return column if 0 <= column < n_tokens else None
        if self.n_past > 0:
            if n_tokens > 1:
                raise MechrefusalError(
                    f"position {position} is counted from the end of the prompt, but this prompt comes in several "
                    "passes (a cached head); run prompts in one pass"
                )
            return None
        if n_tokens + position < 0:
            raise MechrefusalError(
                f"position {position} is not in a prompt of {n_tokens} tokens; give -{n_tokens} to -1"
            )
        return n_tokens + position

    @contextmanager
    def following(self, backbone: nn.Module, positions: Sequence[Positions]) -> Iterator[None]:
        """Follow the passes of `backbone` (the module that hands tokens from block to block) while open.

        Raises:
            MechrefusalError: at the end, a position of `wanted` that stood in none of the passes.
        """

        def note(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            caches = [value for value in chain(args, kwargs.values()) if isinstance(value, Cache)]
            self.n_past = int(caches[0].get_seq_length()) if caches else 0
            mask = kwargs.get("attention_mask")
            self.mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
            self.padded = self.mask is not None and bool((self.mask == 0).any())
            self.is_head = IN_HEAD.get()
            self.n_passes += 1

        handle = backbone.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        all_wanted = {position for each in positions if not isinstance(each, str) for position in each}
        if self.n_passes and (never := sorted(all_wanted - self.met)):
            raise MechrefusalError(
                f"positions {never} stood in none of the passes that were run; nothing was done there"
            )


def check_positions(positions: Positions | None) -> None:
    """Raise `MechrefusalError` for positions that are none."""
    if positions is None or positions == "prompt":
        return
    numbers = isinstance(positions, Sequence | range) and not isinstance(positions, str)
    if not numbers or not positions or not all(type(position) is int for position in positions):
        raise MechrefusalError(
            f"positions are {positions!r}; give whole numbers, at least one, or 'prompt' for all that is not generated"
        )


def at_positions(
    edit: Callable[[Tensor], Tensor], positions: Positions | None, passing: Pass | Layout | None
) -> Callable[[Tensor], Tensor]:
    """`edit` at some positions only; the rest stays as it is."""
    if positions is None:
        return edit
    following = required(passing)

    def there(activation: Tensor) -> Tensor:
        columns = list(following.columns(positions, activation.shape[1]).values())
        if not columns:
            return activation
        edited = activation.clone()
        edited[:, columns] = edit(activation)[:, columns]
        return edited

    return there


def required(passing: Pass | Layout | None) -> Pass:
    """The pass; MechrefusalError where passes are not followed."""
    if not isinstance(passing, Pass):
        raise MechrefusalError(
            "an intervention at some positions is followed pass by pass: open it with causal.intervened and run the "
            "model; passes over token trees take interventions at all positions only"
        )
    return passing
