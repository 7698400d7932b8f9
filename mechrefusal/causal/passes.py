"""Forward passes of one set of prompts under many interventions, sharing what can be shared.

What prompts begin with in common is run once a pass and nothing is padded (`forward.tree_forward`); layers below an
addition are not run again; logits are computed where a score reads them only. The work is done by the hooked
transformer's twin, or by the hooked transformer itself where it has none and while hooks of the caller stand at it.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mechrefusal.causal.interventions import Chain, Intervention, intervened, is_held, tail_of
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.low_precision import bfloat16_forward
from mechrefusal.forward.token_classes import TreeLayout
from mechrefusal.forward.tree import Branch, Tree
from mechrefusal.forward.tree_forward import TreeForward
from mechrefusal.forward.unhooked import Twin, twin
from mechrefusal.models import TokenBatch, last_logits
from mechrefusal.models.batches import contiguous_head, exact_length, split_by_cost

CPU_TOKENS, CUDA_TOKENS = 4096, 1 << 16
"""Tokens in one pass: more at once gains nothing."""
KEPT_BYTES = 1 << 28
"""Logits of one pass."""

Logits = list[Float[Tensor, "prompt place vocab"]]


class _Passes:
    """What both kinds of passes share: prompts with continuations, in groups that fit."""

    def __init__(self, model, asked: Sequence["_Asked"], *, low_precision: bool) -> None:
        assert asked, "passes need at least one prompt"
        self.model = model
        self.twin: Twin | None = twin(model)
        forward = None
        if self.twin is not None:
            forward = _low_precision(self.twin) if low_precision else None
            forward = forward if forward is not None else TreeForward(self.twin.model)
        self.low_precision = forward is not None and forward.call is not forward.model
        self._forward = forward
        check_length(model, max(one.longest for one in asked), padded=forward is None)
        self._groups = [_Group(part) for part in self._split(asked)]

    def _run(self, intervention: Intervention | None) -> Iterator[Float[Tensor, "place vocab"]]:
        """Logits prompt by prompt and run by run, at the end of the prompt and at each token of the run; float32."""
        return chain.from_iterable(self._by_group(intervention))

    def _by_group(self, intervention: Intervention | None) -> Iterator[Sequence[Tensor]]:
        if intervention is not None:
            intervention.check(self.model)
            if getattr(intervention, "positions", None):
                raise MechrefusalError(
                    f"{type(intervention).__name__} at chosen positions: these passes hold many prompts and their "
                    "answers at once; open it on the model with causal.intervened instead"
                )
        for group in self._groups:
            yield self._group_logits(group, intervention)

    def _group_logits(self, group: "_Group", intervention: Intervention | None) -> Sequence[Tensor]:
        if self.twin is None or self._forward is None or twin(self.model) is None:
            return self._plain(group, intervention)
        if intervention is not None and is_held(intervention) and not self._forward.shares:
            return self._plain(group, intervention)  # rows that are padded have no layout of a tree
        start = 0 if intervention is None else intervention.first_layer
        edits = [] if intervention is None else intervention.edits(self.model, group.layout)
        branches = group.branches
        if start == 0:
            with self.twin.edited(edits):
                found = self._forward.run(branches).logits
        else:
            residual = self._residuals(group, branches)[start]
            with self.twin.entered(start, residual, edits):
                found = self._forward.run(branches).logits
        return found.float().split([len(branch.keep) for branch in branches])

    def _residuals(self, group: "_Group", branches: list[Branch]) -> list[Tensor]:
        """resid_pre of every layer without intervention, taken once."""
        assert self.twin is not None
        assert self._forward is not None
        if not group.residuals:  # all of them, or none where the pass was broken off
            forward = self._forward
            group.residuals = self.twin.residuals(lambda: forward.run(branches))
        return group.residuals

    def _plain(self, group: "_Group", intervention: Intervention | None) -> list[Tensor]:
        pad, device = self.model.tokenizer.pad_token_id, str(self.model.cfg.device)
        rows = [branch.tokens for branch in group.branches]
        keep = max(len(branch.keep) for branch in group.branches)
        check_length(self.model, max(map(len, rows)), padded=True)
        after = [len(branch.keep) - 1 for branch in group.branches]
        with intervened(self.model, intervention, after_prompt=after):
            if _wants_gradients(intervention) or keep > min(map(len, rows)):
                whole = TokenBatch.of(rows, pad=pad, device=device, keep=max(map(len, rows)))
                with contiguous_head(self.model):
                    logits = self.model(
                        whole.rest, attention_mask=whole.mask, return_type="logits", logits_to_keep=keep
                    )
                found = logits[:, -keep:]
            else:
                batch = TokenBatch.of(rows, pad=pad, device=device, keep=keep + tail_of(intervention))
                found = last_logits(self.model, batch, keep=keep, chunk=len(rows))
        return [logits[keep - len(b.keep) :].float() for logits, b in zip(found, group.branches, strict=True)]

    def _split(self, asked: Sequence["_Asked"]) -> list[list["_Asked"]]:
        """Consecutive groups whose tokens and logits fit."""
        device = torch.device(self.model.cfg.device)
        most = CUDA_TOKENS if device.type == "cuda" else CPU_TOKENS
        tokens = [one.n_tokens for one in asked]
        kept = [4 * self.model.cfg.d_vocab * sum(len(run) + 1 for run in one.runs) for one in asked]
        return [[asked[i] for i in part] for part in split_by_cost((tokens, most), (kept, KEPT_BYTES))]


class Passes(_Passes):
    """Prompts, each followed by every one of `runs`, ready to be run under one intervention after another.

    Args:
        model: a hooked transformer.
        prompts: token ids up to the start of the answer.
        runs: token ids to run after each prompt; by default nothing. `RefusalMetric.runs` is meant for this.
        low_precision: weights in bfloat16 where that is faster (see `forward.low_precision`), for screens.
    """

    def __init__(
        self,
        model,
        prompts: Sequence[Sequence[int]],
        runs: Sequence[Sequence[int]] = ((),),
        *,
        low_precision: bool = False,
    ) -> None:
        assert runs, "passes need at least one run (it may be empty)"
        self.runs = tuple(tuple(run) for run in runs)
        asked = [_Asked(tuple(prompt), self.runs) for prompt in prompts]
        super().__init__(model, asked, low_precision=low_precision)

    def logits(self, intervention: Intervention | None = None) -> Logits:
        """For each run, the logits at the end of every prompt and at each of the run's tokens, float32.

        Gradients reach the intervention's directions where they ask for them, and no weight.
        """
        return [torch.cat(parts) for parts in zip(*self.by_group(intervention), strict=True)]

    def by_group(self, intervention: Intervention | None = None) -> Iterator[Logits]:
        """The same for a few prompts after another, so that memory does not grow with them."""
        n = len(self.runs)
        for found in self._by_group(intervention):
            yield [torch.stack(list(found[run::n])) for run in range(n)]


class AnswerPasses(_Passes):
    """Prompts, each followed by an answer of its own (token ids, at least one), ready to be run in the same way."""

    def __init__(
        self, model, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, low_precision: bool = False
    ) -> None:
        assert all(len(answer) > 0 for answer in answers), "an answer has at least one token"
        self._answers = [torch.tensor(answer) for answer in answers]
        asked = [_Asked(tuple(p), (tuple(a[:-1]),)) for p, a in zip(prompts, answers, strict=True)]
        super().__init__(model, asked, low_precision=low_precision)

    def losses(self, intervention: Intervention | None = None) -> Float[Tensor, " prompt"]:
        """Cross-entropy of each prompt's own answer, mean nats a token."""
        losses = [
            torch.nn.functional.cross_entropy(logits, answer.to(logits.device))
            for logits, answer in zip(self._run(intervention), self._answers, strict=True)
        ]
        return torch.stack(losses)


@dataclass(frozen=True)
class _Asked:
    prompt: tuple[int, ...]
    runs: tuple[tuple[int, ...], ...]

    @property
    def n_tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.runs))

    @property
    def longest(self) -> int:
        return len(self.prompt) + max(map(len, self.runs))


class _Group:
    """Prompts that are run at once; `residuals`: resid_pre of every layer without intervention, where it was taken."""

    def __init__(self, asked: list[_Asked]) -> None:
        self.residuals: list[Tensor] = []
        self.branches = [
            Branch((*one.prompt, *run), tuple(range(len(one.prompt) - 1, len(one.prompt) + len(run))))
            for one in asked
            for run in one.runs
        ]

    @cached_property
    def layout(self) -> TreeLayout:
        """Where the packed tokens of the branches stand."""
        prompts = [len(branch.tokens) - len(branch.keep) + 1 for branch in self.branches]
        return TreeLayout.of(Tree.of(self.branches).places, prompts)


_LOW_PRECISION: "WeakKeyDictionary[PreTrainedModel, ref[TreeForward]]" = WeakKeyDictionary()


def _low_precision(found: Twin) -> TreeForward | None:
    """Passes that live at the same time share one copy of the weights."""
    known = _LOW_PRECISION.get(found.model, lambda: None)()
    if known is None:
        known = bfloat16_forward(found.model)
        if known is not None:
            _LOW_PRECISION[found.model] = ref(known)
    return known


def check_length(model, n_tokens: int, *, padded: bool) -> None:
    """Raise `MechrefusalError` for more tokens than the context, or (for padded rows) a smaller sliding window."""
    config = model.original_model.config.get_text_config()
    limit, what = exact_length(config)
    if not padded and what != "context":
        limit, what = getattr(config, "max_position_embeddings", None) or sys.maxsize, "context"
    if n_tokens > limit:
        raise MechrefusalError(
            f"a prompt with its answer takes {n_tokens} tokens, more than this model's {what} of {limit}, inside which "
            "its passes are exact; shorten the prompt or the answer"
        )


def _wants_gradients(intervention: Intervention | None) -> bool:
    given = (
        getattr(one, "directions", getattr(one, "direction", None))
        for one in (intervention.flat if isinstance(intervention, Chain) else [intervention])
    )
    return torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in given)
