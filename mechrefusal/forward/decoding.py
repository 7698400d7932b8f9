"""Greedy continuations of many prompts at once, on a hooked transformer or a Hugging Face model alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrefusal.forward.unhooked import unhooked_model
from mechrefusal.models.batches import TokenBatch, continue_from, expanded, head_cache
from mechrefusal.prompts import ThoughtMarks, end_of_turn_tokens


@dataclass(frozen=True)
class Continuation:
    """What a model said after one prompt: token ids without the end token, and whether it ended its turn itself."""

    tokens: tuple[int, ...]
    ended: bool


class Decoder(Protocol):
    """What says the next token of every row: one model, or several that are run together."""

    def start(self, batch: TokenBatch) -> Float[Tensor, "row vocab"]:
        """Logits of the first token after every prompt."""
        ...

    def step(self, tokens: Int[Tensor, " row"], open_rows: Int[Tensor, " row"] | None) -> Float[Tensor, "row vocab"]:
        """Logits after one more token of every row that is still open; `open_rows`: which these are, None for all."""
        ...


class ModelDecoder:
    """One model with its cache of keys and values, a hooked transformer or a Hugging Face model alike."""

    def __init__(self, model) -> None:
        self.model = model
        self.cache: Any = None
        self.mask = torch.empty(0)

    def start(self, batch: TokenBatch) -> Float[Tensor, "row vocab"]:
        """See `Decoder`; the common head is run once."""
        self.mask = batch.full_mask()
        head = expanded(head_cache(self.model, batch), len(batch))
        logits, self.cache = continue_from(self.model, batch.rest, self.mask, head, keep=1)
        return logits[:, -1]

    def step(self, tokens: Int[Tensor, " row"], open_rows: Int[Tensor, " row"] | None) -> Float[Tensor, "row vocab"]:
        """See `Decoder`."""
        if open_rows is not None:
            self.mask = self.mask[open_rows]
            self.cache.batch_select_indices(open_rows)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        logits, self.cache = continue_from(self.model, tokens[:, None], self.mask, self.cache, keep=1)
        return logits[:, -1]


def continuations(
    model,
    batch: TokenBatch,
    *,
    max_new_tokens: int,
    end: set[int],
    thoughts: ThoughtMarks | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[Continuation]:
    """Greedy continuations of every prompt, of at most `max_new_tokens` tokens beside those of a thought.

    Prompts that have ended leave the batch, so that a batch costs what its open prompts cost. Those of a hooked
    transformer come from its unhooked model, where it has one and no hooks stand at it: they are the same, in two
    thirds of the time.

    Args:
        end: tokens that end a turn.
        thoughts: marks of thoughts, with the number of tokens that one may take (marks included); a thought that is
            longer is cut off, with no answer after it. None, or a number of 0: a thought takes the answer's tokens.
    """
    decoder = ModelDecoder(unhooked_model(model))
    return decoded(decoder, batch, max_new_tokens=max_new_tokens, end=end, thoughts=thoughts, on_step=on_step)


@torch.no_grad()
def decoded(
    decoder: Decoder,
    batch: TokenBatch,
    *,
    max_new_tokens: int,
    end: set[int],
    thoughts: ThoughtMarks | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[Continuation]:
    """`continuations` by what a decoder says."""
    spent = [_Spent(max_new_tokens, thoughts) for _ in range(len(batch))]
    rows, logits = torch.arange(len(batch)), decoder.start(batch)
    while True:
        chosen, open_rows = logits.argmax(-1), None
        goes_on = [spent[row].take(token, end) for row, token in zip(rows.tolist(), chosen.tolist(), strict=True)]
        is_open = torch.tensor(goes_on)
        if on_step is not None:
            on_step()
        if not is_open.any():
            return [Continuation(tuple(each.tokens), each.ended) for each in spent]
        if not is_open.all():
            open_rows = is_open.nonzero()[:, 0].to(chosen.device)
            rows, chosen = rows[is_open], chosen[open_rows]
        logits = decoder.step(chosen, open_rows)


def generate(
    model, batch: TokenBatch, *, max_new_tokens: int, end: set[int], on_step: Callable[[], None] | None = None
) -> list[list[int]]:
    """Greedy continuations of every prompt, without the end token, of at most `max_new_tokens` tokens."""
    generated = continuations(model, batch, max_new_tokens=max_new_tokens, end=end, on_step=on_step)
    return [list(each.tokens) for each in generated]


class _Spent:
    """The tokens of one continuation, counted against those that its thought and its answer may take."""

    def __init__(self, max_new_tokens: int, thoughts: ThoughtMarks | None) -> None:
        self.tokens: list[int] = []
        self.ended = False
        self.left = max_new_tokens
        self.marks = thoughts if thoughts is not None and thoughts.at_most else ThoughtMarks()
        self.thinks, self.thought_left = self.marks.begun, self.marks.at_most

    def take(self, token: int, end: set[int]) -> bool:
        """Note a token; whether another one may follow."""
        if token in end:
            self.ended = True
            return False
        self.tokens.append(token)
        if not self.thinks and tuple(self.tokens) in self.marks.opens:
            self.thinks = True
            self.left += len(self.tokens) - 1  # its first tokens could have been an answer's
            self.thought_left -= len(self.tokens) - 1
        if not self.thinks:
            self.left -= 1
            return self.left > 0
        self.thought_left -= 1
        self.thinks = not any(tuple(self.tokens[-len(mark) :]) == mark for mark in self.marks.closes)
        return self.thought_left > 0 if self.thinks else self.left > 0


def end_tokens(model, tokenizer, *, chat: bool = True) -> set[int]:
    """Token ids that end an answer: what the chat template writes behind one, and the folder's own end tokens.

    Those are the tokenizer's end token and the generation config's. They may be wrong or lack the end of a turn, which
    is why the template is asked; without `chat` it is not.

    Raises:
        MechrefusalError: a chat template that writes no token behind an answer (`prompts.end_of_turn_tokens`).
    """
    config = getattr(model, "generation_config", None) or getattr(
        getattr(model, "original_model", model), "generation_config", None
    )
    listed = getattr(config, "eos_token_id", None)
    ids = [listed] if isinstance(listed, int) else list(listed or [])
    end_ids = {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}
    return end_ids | end_of_turn_tokens(tokenizer) if chat else end_ids
