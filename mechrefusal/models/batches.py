"""Forward passes over many chat prompts: the tokens that all of them begin with are computed once.

Chat templates give every prompt the same head (system message, role marks). `TokenBatch` splits it off; the functions
here run it once and let every prompt continue from its key/value cache. This holds under interventions too, as the
head is the same text under the same hooks. They take a hooked transformer or a Hugging Face model alike.
"""

import copy
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from mechrefusal.devices import HOST
from mechrefusal.errors import MechrefusalError
from mechrefusal.models.caches import require_continued

IN_HEAD: ContextVar[bool] = ContextVar("mechrefusal_in_head", default=False)
"""Whether the pass under way is over a common head: what looks at it cannot tell where the prompts end."""


@dataclass(frozen=True)
class TokenBatch:
    """Prompts as token ids: a common head, and what follows it, padded on the left.

    Every prompt is `head` + the unmasked part of its row of `rest`; all of them end at the last column.
    """

    head: Int[Tensor, " head"]
    rest: Int[Tensor, "prompt column"]
    mask: Int[Tensor, "prompt column"]

    def __post_init__(self) -> None:
        assert self.head.ndim == 1
        assert self.rest.ndim == 2
        assert self.rest.shape == self.mask.shape
        assert len(self.rest) > 0
        assert self.mask[:, -1].all(), "a batch holds at least one prompt, padded on the left"

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], *, pad: int, device: torch.device | str = HOST, keep: int = 8
    ) -> "TokenBatch":
        """Batch `prompts`; at least the last `keep` tokens of each stay out of the common head."""
        if not prompts or not all(len(prompt) > 0 for prompt in prompts):
            raise ValueError("a batch needs at least one prompt, and no prompt may be empty")
        common = common_length(prompts)
        head = max(0, min(common, min(map(len, prompts)) - max(1, keep)))
        width = max(map(len, prompts)) - head
        rest = torch.full((len(prompts), width), pad, dtype=torch.long)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tail = torch.tensor(prompt[head:], dtype=torch.long)
            rest[row, width - len(tail) :] = tail
            mask[row, width - len(tail) :] = 1
        return cls(torch.tensor(prompts[0][:head], dtype=torch.long).to(device), rest.to(device), mask.to(device))

    def __len__(self) -> int:
        return len(self.rest)

    def __getitem__(self, rows: slice | Tensor) -> "TokenBatch":
        return TokenBatch(self.head, self.rest[rows], self.mask[rows])

    def chunks(self, size: int) -> Iterator["TokenBatch"]:
        """The batch in parts of at most `size` prompts, in order."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def full_mask(self) -> Int[Tensor, "prompt position"]:
        """Attention mask over head and rest."""
        ones = self.mask.new_ones(len(self), len(self.head))
        return torch.cat([ones, self.mask], dim=1)


@torch.no_grad()
def head_cache(model, batch: TokenBatch) -> DynamicCache | None:
    """Key/value cache of the common head under the hooks that are active now; None without a head."""
    if len(batch.head) == 0:
        return None
    token = IN_HEAD.set(True)
    try:
        _, cache = continue_from(model, batch.head[None], None, None, keep=1)
    finally:
        IN_HEAD.reset(token)
    return cache


@torch.no_grad()
def last_logits(
    model, batch: TokenBatch, *, keep: int = 1, cache: DynamicCache | None = None, chunk: int = 64
) -> Float[Tensor, "prompt keep vocab"]:
    """Logits at the last `keep` positions of every prompt.

    Args:
        cache: what `head_cache` gave for the same head under the same hooks; made here if None.
        chunk: prompts in one forward pass.
    """
    if keep > int(batch.mask.sum(1).min()):
        raise ValueError(f"keep is {keep}, but a prompt has only {int(batch.mask.sum(1).min())} tokens after the head")
    cache = cache if cache is not None else head_cache(model, batch)
    parts = []
    for part in batch.chunks(chunk):
        logits, _ = continue_from(model, part.rest, part.full_mask(), expanded(cache, len(part)), keep=keep)
        parts.append(logits[:, -keep:])
    return torch.cat(parts)


@contextmanager
def contiguous_head(model) -> Iterator[None]:
    """Give the output matrix contiguous inputs: `logits_to_keep` slices them, and a slice is multiplied row by row.

    On a CPU that takes a third of the time or less; the logits are the same.
    """
    head = model.unembed if hasattr(model, "hook_dict") else model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def _inner(model):
    return getattr(model, "original_model", model)


def continue_from(
    model, token_ids: Tensor, mask: Tensor | None, cache: DynamicCache | None, *, keep: int
) -> tuple[Tensor, DynamicCache]:
    """One forward pass that continues `cache`; the logits of (at least) the last `keep` positions, and the cache."""
    require_length(model, mask.shape[1] if mask is not None else token_ids.shape[1])
    arguments: dict = {"use_cache": True}
    if takes(_inner(model), "logits_to_keep"):
        arguments["logits_to_keep"] = keep
    if mask is not None:
        arguments["attention_mask"] = mask
    if cache is not None:
        arguments["past_key_values"] = cache
    with contiguous_head(model):
        if hasattr(model, "hook_dict"):
            logits, kept = model(token_ids, return_type="logits_and_cache", **arguments)
        else:
            logits, kept = _hugging_face_step(model, token_ids, mask, arguments)
    return logits, require_continued(model, kept)


def _hugging_face_step(model, token_ids: Tensor, mask: Tensor | None, arguments: dict) -> tuple[Tensor, Any]:
    if mask is not None and takes(model, "position_ids"):
        arguments["position_ids"] = positions(mask)[:, -token_ids.shape[1] :]
    output = model(input_ids=token_ids, **arguments)
    return output.logits, getattr(output, "past_key_values", None)


def takes(model, name: str) -> bool:
    """Whether a model's forward pass names an argument. (PEFT's names none, and hands on to that of its base.)"""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return name in inspect.signature(base.forward).parameters


def positions(mask: Int[Tensor, "row position"]) -> Int[Tensor, "row position"]:
    """Position of each token among the attended ones of its row (0 on padding), as padding on the left needs it."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def exact_length(config) -> tuple[int, str]:
    """Tokens up to which batched passes of a model with this text config are exact, and what sets that limit.

    It is the context; or the smallest window or chunk of attention, if that is smaller: it counts padded and cached
    columns, so that left padding would shift it.
    """
    context = context_tokens(config)
    slides = getattr(config, "use_sliding_window", True)
    sizes = {name: getattr(config, name, None) for name in _WINDOWS if slides or name != "sliding_window"}
    windows = {_WINDOWS[name]: n for name, n in sizes.items() if isinstance(n, int) and n > 0}
    what = min(windows, key=windows.__getitem__, default="context")
    return (windows[what], what) if windows.get(what, context) < context else (context, "context")


def context_tokens(config) -> int:
    """Tokens of the context of a model with this text config; a very large number where the config names none."""
    return next((n for name in _CONTEXTS if (n := getattr(config, name, None))), sys.maxsize)


_CONTEXTS = ("max_position_embeddings", "max_seq_len", "n_ctx")
_WINDOWS = {
    "sliding_window": "sliding window",
    "window_size": "window of local attention",
    "local_attention": "window of local attention",
    "attention_window_size": "window of local attention",
    "attention_chunk_size": "chunk of attention",
}
"""How configs of transformers name the number of tokens that attention reaches at most, in all or in some layers."""


def require_length(model, n_tokens: int) -> None:
    """Raise `MechrefusalError` for more tokens than batched passes of a model are exact for."""
    limit, what = exact_length(_inner(model).config.get_text_config())
    if n_tokens > limit:
        raise MechrefusalError(
            f"a prompt with its answer takes {n_tokens} tokens, more than this model's {what} of {limit}, inside which "
            "batched passes are exact; shorten the prompt, or ask for fewer new tokens"
        )


def expanded(cache: DynamicCache | None, n: int) -> DynamicCache | None:
    """A copy of the cache of one row, repeated for `n` rows (None stays None)."""
    if cache is None:
        return None
    rows = copy.deepcopy(cache)
    rows.batch_repeat_interleave(n)
    return rows


def common_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts have in common."""
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    for index, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return index
    return min(len(first), len(last))


def split_by_cost(*budgets: tuple[Sequence[int], int]) -> Iterator[range]:
    """Consecutive places, of at least one each, whose costs add up to no more than a budget allows: (costs, most)."""
    n, start = len(budgets[0][0]), 0
    totals = [0] * len(budgets)
    for place in range(n):
        more = [costs[place] for costs, _ in budgets]
        if place > start and any(t + m > most for t, m, (_, most) in zip(totals, more, budgets, strict=True)):
            yield range(start, place)
            start, totals = place, [0] * len(budgets)
        totals = [t + m for t, m in zip(totals, more, strict=True)]
    if n:
        yield range(start, n)
