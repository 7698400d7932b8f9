"""What runs are made of, and how much of it passes over known prompts take: tokens, logits, steps, decompositions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from transformers import PreTrainedModel

from mechrefusal.evaluation.generation import PADDED_TOKENS
from mechrefusal.forward.runner import LOGIT_BYTES
from mechrefusal.models import Checkpoint
from mechrefusal.models.batches import common_length, split_by_cost
from mechrefusal.models.capacity import HookedSize
from mechrefusal.prompts import PromptSet, prompt_ids, segments
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.selection import StudyPrompts

Ids = Sequence[tuple[int, ...]]
LOADED, HOOKED = 4.0, 0.1
"""Numbers that are copied for each parameter while a hooked transformer is made (read, folded and centred), and seconds
in which the hooks of a layer are made, whatever its width."""
PLACE = 0.6
"""Depth of a carrier before it is known: those that were published for six chat models of 2 to 8 billion parameters lie
at .38 to .63 of the layers (2406.11717, its code's runs), SmolLM2's after training at .73."""
ANSWERED_AT_ONCE = 64
"""Prompts that are answered at once."""
THROUGH_ACTIVATIONS = 2 / 3
"""Of a pass forward and back, what one takes that gives no gradients of weights."""


@dataclass(frozen=True)
class Work:
    """What a stage runs.

    Fields:
        tokens: forward tokens in passes of many, through all layers; a pass through half of them counts half.
        logits: places whose logits are read, of these and of generated tokens.
        generated: tokens that are generated one after another, of all prompts together.
        passes: passes through all layers, steps of generation among them: each reads all weights once.
        attended: pairs of tokens of one pass over a tree, all of which attention multiplies before it masks some.
        backward: tokens of passes forward and back, with gradients of the weights.
        decomposed: operations of singular value decompositions.
        copied, moved: numbers that are copied, to memory that is taken for them or is there already.
        hashed: numbers that are hashed, of four bytes.
        seconds: of a processor, for what hangs on no model's size: hooks, fits, resamples, tables.
        tokens_at_once, logits_at_once, backward_at_once: the most in one pass; they do not add up.
    """

    tokens: float = 0
    logits: float = 0
    generated: float = 0
    passes: float = 0
    attended: float = 0
    backward: float = 0
    decomposed: float = 0
    copied: float = 0
    moved: float = 0
    hashed: float = 0
    seconds: float = 0
    tokens_at_once: float = 0
    logits_at_once: float = 0
    backward_at_once: float = 0

    def __add__(self, other: "Work") -> "Work":
        values = zip(vars(self).items(), vars(other).values(), strict=True)
        return Work(*(max(a, b) if name.endswith("_at_once") else a + b for (name, a), b in values))

    def __mul__(self, times: float) -> "Work":
        return Work(*(each if name.endswith("_at_once") else times * each for name, each in vars(self).items()))

    __rmul__ = __mul__


OPENED = Work(143, 143, passes=6)
"""What a model is asked while it is opened, hooked and unhooked."""
UNHOOKING, SHARING = Work(240, 240, passes=10), Work(46, 46, passes=3)
"""Trying whether the unhooked model gives the numbers of the hooked one, and whether trees on it do: once a model."""
TRYING = UNHOOKING + SHARING


@dataclass(frozen=True)
class Size:
    """A model by its outline.

    Fields:
        flops: operations of a forward token.
        hooked: parameters of the hooked transformer, whose output matrix is one of its own where it was tied.
        opening: what counts while it is made.
        matrices: rows and columns of every matrix.
    """

    parameters: int
    flops: float
    hooked: int
    width: int
    inner: int
    n_layers: int
    n_heads: int
    vocab: int
    opening: HookedSize
    matrices: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Size":
        """Of a model on the meta device."""
        config, weights = model.config.get_text_config(), set(model.parameters())
        n, tied = sum(weight.numel() for weight in weights), config.tie_word_embeddings
        shapes = ((weight.shape[:-2].numel(), weight.shape[-2:]) for weight in weights if weight.ndim > 1)
        return cls(
            n,
            flops_of(model),
            n + tied * config.vocab_size * config.hidden_size,
            config.hidden_size,
            getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.vocab_size,
            HookedSize.of({name: weight.shape for name, weight in model.named_parameters()}),
            tuple((rows, columns) for times, (rows, columns) in shapes for _ in range(times)),
        )


@dataclass(frozen=True)
class Counting:
    """What the work of a recipe is counted by.

    Fields:
        tokens_at_once, patched_at_once: tokens in one pass on the device, and in one over patched rows.
        checkpoints: that will be measured; of given folders as many as are named.
        stored: bytes of a number in their files.
    """

    recipe: Recipe
    prompts: StudyPrompts
    tokenizer: Any
    size: Size
    tokens_at_once: int
    patched_at_once: int
    checkpoints: tuple[Checkpoint, ...]
    stored: int = 4

    def ids(self, *sets: PromptSet | None) -> list[tuple[int, ...]]:
        """Token ids of all prompts of these sets."""
        texts = tuple(text for each in sets if each is not None for text in each.texts)
        return list(_ids(self.tokenizer, texts))

    @cached_property
    def direction(self) -> tuple[Ids, Ids]:
        """The direction prompts, harmful and harmless."""
        return self.ids(self.prompts.direction.harmful), self.ids(self.prompts.direction.harmless)

    def validation(self, n: int | None = None) -> tuple[Ids, Ids]:
        """The first validation prompts of each side, harmful and harmless."""
        split = self.prompts.validation
        return self.ids(split.harmful)[:n], self.ids(split.harmless)[:n]

    def evaluation(self, n: int) -> tuple[Ids, Ids]:
        """The first held-out prompts of each side, harmful and harmless."""
        return self.ids(self.prompts.harmful.take(n)), self.ids(self.prompts.harmless.take(n))

    @cached_property
    def head(self) -> int:
        """Tokens of the chat template that all prompts begin with."""
        return len(segments(self.tokenizer, "a").before)

    @cached_property
    def tail(self) -> int:
        """Tokens of the chat template after the instruction."""
        return len(segments(self.tokenizer, "a").after)

    @property
    def opening(self) -> Work:
        """Opening a model as a hooked transformer, whose files are hashed before."""
        n = self.size.parameters
        files = Work(copied=LOADED * n, hashed=n * self.stored / 4)
        return OPENED + files + Work(seconds=HOOKED * self.size.n_layers)

    def from_layer(self, layers: Sequence[int], *, on: int = 0) -> float:
        """Share of all layers that passes run from one of `layers` on, or from `on` layers after it; on average."""
        n = self.size.n_layers
        return sum(max(0, n - layer - on) for layer in layers) / (n * max(1, len(layers)))

    @property
    def goes_to_means(self) -> bool:
        """Whether directions are ablated to means, from their layer on; else to zero at every layer."""
        return self.recipe.measuring.reference != "zero"

    @cached_property
    def place(self) -> float:
        """How deep the best candidate is taken to lie, as a share of the layers: `PLACE`, or the last that may win."""
        return min(PLACE, 1 - self.recipe.measuring.prune_layer_fraction)

    @property
    def after(self) -> float:
        """Share of the layers that an ablation runs: those from the direction's on, or all where it goes to zero."""
        return 1 - self.place if self.goes_to_means else 1.0

    def read(self, ids: Ids, *, depth: float = 1.0, logits: bool = True, at_most: int | None = None) -> Work:
        """Passes over prompts, through a share of the layers: what prompts of a pass begin with is run once."""
        if not ids:
            return Work()
        limits = [([len(each) for each in ids], self.tokens_at_once)]
        limits += [([4 * self.size.vocab] * len(ids), LOGIT_BYTES)] if logits else []
        limits += [([1] * len(ids), at_most)] if at_most is not None else []
        parts = [[ids[row] for row in part] for part in split_by_cost(*limits)]
        tokens, most = [packed(part) for part in parts], max(map(len, parts))
        attended = sum(n * n for n in tokens)
        once = {"tokens_at_once": max(tokens), "logits_at_once": most * logits}
        return Work(
            depth * sum(tokens), len(ids) * logits, passes=depth * len(parts), attended=depth * attended, **once
        )

    def ready(self, ids: Ids) -> Work:
        """Passes that are made ready to be begun at any layer: run once as they are, with what enters each kept."""
        return self.read(ids) if self.goes_to_means else Work()

    def apart(self, ids: Ids, *, depth: float = 1.0) -> Work:
        """Passes over prompts of which only the template's beginning is shared, and was run before."""
        own = [len(each) - self.head for each in ids]
        parts = list(split_by_cost(([len(each) for each in ids], self.tokens_at_once)))
        once = {"tokens_at_once": sum(own) / len(parts), "logits_at_once": len(ids) / len(parts)}
        return Work(depth * sum(own), len(ids), passes=depth * len(parts), **once)

    def answered(self, ids: Ids, n_tokens: int, *, openings: int = 0) -> Work:
        """Prompts that are answered in full: their beginning, the rest of them, then token by token.

        Answers that end before count in full, as nothing says how long they get.

        Args:
            openings: tokens of the prompts that are given of the answer.
        """
        work = Work()
        for part in _alike(ids):
            head = max(0, min(common_length(part), min(map(len, part)) - max(8, openings)))
            rest = len(part) * (max(map(len, part)) - head)
            steps = max(0, n_tokens - 1)
            once = {"tokens_at_once": rest, "logits_at_once": len(part)}
            work += Work(head + rest, len(part) * (1 + steps) + 1, len(part) * steps, 2 + steps, **once)
        return work


def _alike(ids: Ids) -> Iterator[list[tuple[int, ...]]]:
    """Prompts of like length that are answered at once."""
    batch: list[tuple[int, ...]] = []
    for prompt in sorted(ids, key=len):
        if batch and (len(batch) == ANSWERED_AT_ONCE or (len(batch) + 1) * len(prompt) > PADDED_TOKENS):
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


@lru_cache(maxsize=512)  # stages ask the same prompts
def _ids(tokenizer: Any, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(ids) for ids in prompt_ids(tokenizer, list(texts)))


def packed(ids: Ids) -> int:
    """Tokens that one pass over prompts runs: what several begin with in common is run once."""
    return _packed(tuple(ids))


@lru_cache(maxsize=512)
def _packed(ids: tuple[tuple[int, ...], ...]) -> int:
    return len({prompt[: end + 1] for prompt in ids for end in range(len(prompt))})


def flops_of(model: torch.nn.Module) -> float:
    """Operations of one forward token: two for each weight that multiplies, the output matrix among them."""
    embedded = model.get_input_embeddings().weight.numel()  # type: ignore[operator]
    head = model.get_output_embeddings().weight.numel()  # type: ignore[operator]
    return 2.0 * (sum(weight.numel() for weight in set(model.parameters())) - embedded + (
        head if model.get_output_embeddings().weight is model.get_input_embeddings().weight else 0  # type: ignore[operator]
    ))  # fmt: skip
