"""What every measurement asks to run a model: prompts with continuations, edits, where to start, what to keep.

There are two runners behind one interface. The tree runner runs token trees on the unhooked model: what prompts begin
with in common is run once and nothing is padded. The hooked runner runs padded rows through the hooked transformer's
own hooks. A measure does not know which one it has; `runner_of` says which, and why, once.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrefusal.devices import TOKENS_AT_ONCE, at_once
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.patches import MEMORY, PairRun, Patch
from mechrefusal.forward.sites import Activations, Edit, Place, Site
from mechrefusal.forward.token_classes import TokenLayout
from mechrefusal.models.batches import context_tokens, split_by_cost

LOGIT_BYTES = 1 << 28
"""Logits of one pass."""

RunnerName = Literal["token trees", "hooks"]


@dataclass(frozen=True)
class Asked:
    """One prompt, and the continuations that are each run after it (token ids; an empty one is the prompt alone).

    Fields:
        kept: after each continuation, how many of its last logits are wanted; by default all, at the end of the prompt
            and at every token after it.
    """

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...] = ((),)
    kept: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        assert self.prompt, "a prompt has at least one token"
        assert self.continuations, "a prompt has at least one continuation (it may be empty)"
        assert self.kept is None or len(self.kept) == len(self.continuations)

    @property
    def n_kept(self) -> tuple[int, ...]:
        """Logits that are wanted after each continuation."""
        return self.kept if self.kept is not None else tuple(len(run) + 1 for run in self.continuations)

    @property
    def n_tokens(self) -> int:
        """Tokens to run, what continuations begin with in common counted once each."""
        return len(self.prompt) + sum(map(len, self.continuations))

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest continuation."""
        return len(self.prompt) + max(map(len, self.continuations))


Number = tuple[int, int]
"""Which prompt, and which of its continuations."""


def numbers_of(prompts: Sequence[Asked], *, times: int = 1) -> tuple[Number, ...]:
    """The numbers of all prompts and continuations, prompt by prompt; the prompts count on where they stand again."""
    repeated = enumerate([*prompts] * times)
    return tuple((number, run) for number, each in repeated for run in range(len(each.continuations)))


def by_continuation(
    logits: Sequence[Float[Tensor, "place vocab"]], n_continuations: int
) -> list[Float[Tensor, "prompt place vocab"]]:
    """Logits of a batch whose prompts all have the same continuations: one tensor a continuation, over the prompts."""
    return [torch.stack(list(logits[run::n_continuations])) for run in range(n_continuations)]


@dataclass(frozen=True)
class Output:
    """What a pass gave.

    Fields:
        logits: of each of the batch's `numbers`, float32, at the places that were asked for: the last is that of the
            last token. None at all where the pass ended below the last layer.
        cache: activations of the places that were asked for, flat.
    """

    logits: Sequence[Float[Tensor, "place vocab"]]
    cache: Activations = field(default_factory=Activations)


class Batch(Protocol):
    """Some prompts with their continuations, run in one pass after another.

    Fields:
        numbers: of the prompts and continuations in it, as `places` and logits are ordered.
        places: of each, the flat places of its tokens from the runner's `first` token on. A flat place counts the rows
            of an activation [row, column, ...] one after another.
        layout: where in its prompt each token stands, for interventions that need to know.
        n_tokens: flat places in all.
    """

    numbers: tuple[Number, ...]
    n_tokens: int

    @property
    def places(self) -> tuple[Int[Tensor, " token"], ...]:
        """See above."""
        ...

    @property
    def layout(self) -> TokenLayout:
        """See above."""
        ...

    def run(self, edits: Sequence[Edit] = (), *, layers: range | None = None, keep: Collection[Place] = ()) -> Output:
        """One pass, with gradients where they are enabled.

        Args:
            edits: what is done in `layers`, and at the input of the layer after them. A function gets the activation of
                all rows of the pass, [row, column, ...].
            layers: the first is entered with what enters it in an unedited pass; where the last layer is not among
                them there are no logits. By default all. A runner may run more than that; nobody sees it.
            keep: places whose activations are kept after the edits.
        """
        ...

    def repeated(self, n: int) -> "Batch":
        """The same prompts `n` times, row after row: each can be given activations of its own."""
        ...


class PatchedPair(Protocol):
    """A pair of prompts, ready for any number of patches at one site."""

    def unpatched(self) -> list[Float[Tensor, "two place vocab"]]:
        """Logits of source and target as they are, run by run."""
        ...

    def scores(self, patches: Sequence[Patch]) -> Float[Tensor, " patch"]:
        """The metric under each patch, in their order."""
        ...


class Runner(Protocol):
    """A way to run a model.

    Fields:
        model: the hooked transformer.
        name: which way.
        why: why it is not the faster one; empty where it is.
    """

    model: Any
    name: RunnerName
    why: str

    def batch(self, prompts: Sequence[Asked], *, first: int = 0, apart: bool = False) -> Batch:
        """These prompts as one pass.

        Args:
            first: tokens before it are the same in all prompts, run once, and are not edited.
            apart: no token from `first` on is shared by two prompts, so that each can be given other activations.
        """
        ...

    def patching(self, pair: PairRun, site: Site, *, memory: int = MEMORY) -> PatchedPair:
        """The pair, ready to be patched at `site`, in passes of `memory` bytes."""
        ...


def batches(
    runner: Runner,
    prompts: Sequence[Asked],
    *,
    first: int = 0,
    apart: bool = False,
    at_most: int | None = None,
) -> Iterator[tuple[list[int], Batch]]:
    """Prompts in passes of a size that fits, in their order: the numbers of the prompts, and the pass.

    The batch counts its prompts from 0; its `numbers` refer to the list of prompts that stands beside it.

    Args:
        at_most: prompts in one pass.
    """
    device = torch.device(runner.model.cfg.device)
    limits = [
        ([prompt.n_tokens for prompt in prompts], at_once(device, TOKENS_AT_ONCE)),
        ([4 * runner.model.cfg.d_vocab * sum(prompt.n_kept) for prompt in prompts], LOGIT_BYTES),
    ]
    if at_most is not None:
        limits.append(([1] * len(prompts), at_most))
    for part in split_by_cost(*limits):
        yield list(part), runner.batch([prompts[i] for i in part], first=first, apart=apart)


def require_context(model, prompts: Sequence[Asked]) -> None:
    """Raise `MechrefusalError` for a prompt that is longer with its answer than the model's context."""
    limit = context_tokens(model.original_model.config.get_text_config())
    n_tokens = max(prompt.longest for prompt in prompts)
    if n_tokens > limit:
        raise MechrefusalError(
            f"a prompt with its answer takes {n_tokens} tokens, more than this model's context of {limit}, inside "
            "which its passes are exact; shorten the prompt or the answer"
        )
