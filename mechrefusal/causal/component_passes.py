"""Forward passes in which what components write is replaced, token by token; layers below them are not run again.

A component is a head (its z), an MLP or an attention layer (its output), or a neuron (its activation). What stands in
its place differs from token to token, so passes know where each token of each prompt lies: in the packed row of a tree
on the hooked transformer's twin, or, where there is no twin and while hooks of the caller stand at the hooked
transformer, in rows of equal length without padding.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.causal.passes import CPU_TOKENS, CUDA_TOKENS, KEPT_BYTES, check_length
from mechrefusal.forward.tree import Bank, Branch, Tree
from mechrefusal.forward.tree_forward import TreeForward
from mechrefusal.forward.unhooked import Edit, Site, Twin, bridge_hooks, twin
from mechrefusal.models.batches import common_length, contiguous_head, split_by_cost

Kind = Literal["head", "mlp", "attention", "neuron"]
SITES: dict[Kind, Site] = {"head": "z", "mlp": "mlp_out", "attention": "attn_out", "neuron": "mlp_post"}
Asked = tuple[int, int]
"""Which prompt, and which run after it."""


@dataclass(frozen=True)
class Component:
    """A part of the model that can be replaced; `index` is the head or the neuron, −1 where there is one a layer."""

    kind: Kind
    layer: int
    index: int = -1

    @property
    def place(self) -> tuple[int, Site]:
        """Layer and site of its output."""
        return self.layer, SITES[self.kind]


@dataclass(frozen=True)
class Frame:
    """What the chat template gives to all prompts: their first tokens, and the number of their last ones."""

    head: tuple[int, ...]
    tail: int

    @classmethod
    def of(cls, tokenizer, texts: Sequence[str]) -> "Frame":
        """The frame of `texts`: tokens in common up to the instruction, and the fewest after it."""
        parts = [prompts.segments(tokenizer, text) for text in texts]
        befores = [part.before for part in parts]
        return cls(tuple(befores[0][: common_length(befores)]), min(len(part.after) for part in parts))


class Pass(Protocol):
    """One forward pass: `places[i]` are the flat places of the tokens of `asked[i]` from the first replaced one on.

    A flat place counts the rows of an activation [row, column, ...] one after another.
    """

    asked: tuple[Asked, ...]
    places: tuple[Int[Tensor, " token"], ...]

    def run(self, edits: Sequence[Edit] = (), *, first_layer: int = 0) -> Sequence[Float[Tensor, "place vocab"]]:
        """Logits at the end of each prompt and at the tokens of its run; `edits` touch `first_layer` at the lowest."""
        ...


class ComponentPasses:
    """Prompts with every one of `runs` after them, in groups that fit, ready to be run with components replaced.

    Args:
        model: a hooked transformer.
        ids: token ids of the prompts, all of `frame`.
        whole: also replace in the tokens of the template before the instruction. Else these are run once only: what
            is replaced after them does not reach them.
        sites: where components will be replaced; the twin is used where it agrees with the model at all of them.
    """

    def __init__(
        self,
        model,
        ids: Sequence[Sequence[int]],
        runs: Sequence[Sequence[int]],
        frame: Frame,
        *,
        whole: bool,
        sites: Collection[Site] = tuple(SITES.values()),
    ) -> None:
        assert ids
        assert runs
        self.model, self.whole = model, whole
        self.ids, self.runs = [tuple(prompt) for prompt in ids], tuple(tuple(run) for run in runs)
        self.start = 0 if whole else len(frame.head)
        check_length(model, max(map(len, self.ids)) + max(map(len, self.runs)), padded=False)
        found = twin(model)
        forward = None if found is None or not all(map(found.has, sites)) else TreeForward(found.model)
        self.groups: list[list[Pass]]
        if found is not None and forward is not None and forward.shares:
            self.groups = [[_TwinPass(found, forward, self, group, frame)] for group in self._split()]
        else:
            by_length = sorted(range(len(self.ids)), key=lambda p: len(self.ids[p]))
            rows = [list(group) for _, group in groupby(by_length, key=lambda p: len(self.ids[p]))]
            parts = [part for row in rows for part in self._split(row)]
            self.groups = [[_PlainPass(self, part, run) for run in range(len(self.runs))] for part in parts]

    def logits(
        self, edits: Callable[[Pass], Sequence[Edit]] = lambda _: (), *, first_layer: int = 0
    ) -> Iterator[tuple[list[int], list[Float[Tensor, "prompt place vocab"]]]]:
        """A few prompts after another: their numbers, and for each run their logits, float32.

        Args:
            edits: what is done in a pass, no lower than `first_layer`.
        """
        for group in self.groups:
            found: dict[Asked, Tensor] = {}
            for one in group:
                found |= zip(one.asked, one.run(edits(one), first_layer=first_layer), strict=True)
            numbers = sorted({prompt for prompt, _ in found})
            yield numbers, [torch.stack([found[p, run].float() for p in numbers]) for run in range(len(self.runs))]

    def _split(self, numbers: Sequence[int] | None = None) -> list[list[int]]:
        """Consecutive groups of prompts whose tokens and logits fit into a pass."""
        most = CUDA_TOKENS if torch.device(self.model.cfg.device).type == "cuda" else CPU_TOKENS
        kept = 4 * self.model.cfg.d_vocab * sum(len(run) + 1 for run in self.runs)
        chosen = list(range(len(self.ids)) if numbers is None else numbers)
        tokens = [len(self.ids[p]) + sum(map(len, self.runs)) for p in chosen]
        return [[chosen[i] for i in part] for part in split_by_cost((tokens, most), ([kept] * len(chosen), KEPT_BYTES))]


class _TwinPass:
    """A tree on the twin. Prompts share the template's beginning only, so that each can be given tokens of its own."""

    def __init__(
        self, found: Twin, forward: TreeForward, passes: ComponentPasses, numbers: Sequence[int], frame: Frame
    ) -> None:
        self._twin, self._forward = found, forward
        self.asked = tuple((p, run) for p in numbers for run in range(len(passes.runs)))
        before, n = frame.head[: passes.start], passes.start
        self._bank = Bank()
        if before:
            # A copy for each prompt: branches of one context would share more than the head.
            with torch.no_grad():
                self._bank = Bank.joined([forward.run([Branch(before, ())], capture=True).bank] * len(numbers))
        self._branches = [
            Branch(
                (*passes.ids[p], *passes.runs[run])[n:],
                tuple(range(len(passes.ids[p]) - n - 1, len(passes.ids[p]) - n + len(passes.runs[run]))),
                tuple(range(row * n, (row + 1) * n)),
            )
            for row, p in enumerate(numbers)
            for run in range(len(passes.runs))
        ]
        # The same replacement for all tokens needs no separate prompts; without a head nothing separates them.
        self._share = passes.whole or n > 0
        tree = Tree.of(self._branches, bank_size=len(self._bank), share=self._share)
        self.places = tuple(torch.tensor(places, device=forward.device) for places in tree.places)
        self._residuals: list[Tensor] = []

    def run(self, edits: Sequence[Edit] = (), *, first_layer: int = 0) -> Sequence[Float[Tensor, "place vocab"]]:
        if first_layer == 0:
            with self._twin.edited(edits):
                found = self._run()
        else:
            if not self._residuals:  # all of them, or none where the pass was broken off
                self._residuals = self._twin.residuals(self._run)
            with self._twin.entered(first_layer, self._residuals[first_layer], edits):
                found = self._run()
        return found.split([len(branch.keep) for branch in self._branches])

    def _run(self) -> Tensor:
        return self._forward.run(self._branches, bank=self._bank, share=self._share).logits


class _PlainPass:
    """Prompts of equal length with one run after each, on the hooked transformer and under the caller's hooks."""

    def __init__(self, passes: ComponentPasses, numbers: Sequence[int], run: int) -> None:
        self._model = passes.model
        self.asked = tuple((p, run) for p in numbers)
        device = passes.model.cfg.device
        self._rows = torch.tensor([(*passes.ids[p], *passes.runs[run]) for p in numbers], device=device)
        self._keep = len(passes.runs[run]) + 1
        width = self._rows.shape[1]
        columns = torch.arange(passes.start, width, device=device)
        self.places = tuple(row * width + columns for row in range(len(numbers)))

    def run(self, edits: Sequence[Edit] = (), *, first_layer: int = 0) -> Sequence[Float[Tensor, "place vocab"]]:
        with self._model.hooks(fwd_hooks=bridge_hooks(edits)), contiguous_head(self._model):
            logits = self._model(self._rows, return_type="logits", logits_to_keep=self._keep)
        return list(logits[:, -self._keep :])


def flat(model, site: Site, activation: Tensor) -> Tensor:
    """An activation token by token: [token, head, d_head] at z, [token, d] elsewhere, in the order of flat places."""
    width = (model.cfg.n_heads, model.cfg.d_head) if site == "z" else activation.shape[2:]
    return activation.reshape(-1, *width)


def taken(
    model, passes: ComponentPasses, places: Sequence[tuple[int, Site]]
) -> Iterator[tuple[Pass, dict[tuple[int, Site], Tensor]]]:
    """Every pass with nothing replaced, and its flat activations at these layers and sites."""
    for one in (one for group in passes.groups for one in group):
        found: dict[tuple[int, Site], Tensor] = {}

        def keep(at: tuple[int, Site], into: dict[tuple[int, Site], Tensor]) -> Callable[[Tensor], Tensor]:
            def edit(activation: Tensor) -> Tensor:
                into[at] = flat(model, at[1], activation.detach())
                return activation

            return edit

        with torch.no_grad():
            one.run([(*at, keep(at, found)) for at in places])
        yield one, found


def by_place(components: Sequence[Component]) -> dict[tuple[int, Site], list[int]]:
    """Components by layer and site, with their indices there."""
    found: dict[tuple[int, Site], list[int]] = defaultdict(list)
    for component in components:
        found[component.place].append(component.index)
    return dict(found)
