"""Token trees on the unhooked model, as a runner."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mechrefusal.forward.joined_rows import Rows, Suffix, branches_of
from mechrefusal.forward.low_precision import bfloat16_forward
from mechrefusal.forward.patches import MEMORY, PairRun
from mechrefusal.forward.patching_trials import patching_of_trees
from mechrefusal.forward.runner import Asked, Output, PatchedPair, RunnerName, numbers_of
from mechrefusal.forward.sites import Activations, Edit, Place, Site, keeping
from mechrefusal.forward.stream import StreamModules
from mechrefusal.forward.token_classes import TokenLayout
from mechrefusal.forward.tree import Branch, KeyValues, Tree
from mechrefusal.forward.tree_attention import Running
from mechrefusal.forward.tree_forward import TreeForward


class TreeRunner:
    """See `Runner`.

    Args:
        modules: of the unhooked model, which runs token trees.
        low_precision: weights in bfloat16 where that is faster (see `low_precision`), for screens.
    """

    name: RunnerName = "token trees"
    why = ""

    def __init__(self, model: Any, modules: StreamModules, *, low_precision: bool = False) -> None:
        self.model, self.modules = model, modules
        forward = _low_precision(modules.model) if low_precision else None
        self.low_precision = forward is not None
        self.forward = forward or TreeForward(modules.model)

    def batch(self, prompts: Sequence[Asked], *, first: int = 0, apart: bool = False) -> "TreeBatch":
        """See `Runner.batch`."""
        before = KeyValues()
        if first:
            with torch.no_grad():
                before = self.forward.run([Branch(prompts[0].prompt[:first], ())], capture=True).bank
        branches = [
            branch
            for number, each in enumerate(prompts)
            for branch in branches_of(each, first, row=number if apart else 0)
        ]
        return TreeBatch(self, Tree.of(branches, bank_size=first), before, prompts)

    def patching(self, pair: PairRun, site: Site, *, memory: int = MEMORY) -> PatchedPair:
        """See `Runner.patching`: rows join the pass at the layer in which they are patched (`TreePatching`).

        Whether that gives the numbers of the hooks is tried out once a model and site; where it does not, the hooked
        runner patches, and a line says so.
        """
        return patching_of_trees(self.model, self.modules, self.forward, pair, site, memory=memory)

    @contextmanager
    def within(self, layers: range, entering: Tensor | None, edits: Sequence[Edit]) -> Iterator[None]:
        """While open, passes run `layers` alone, and the first of them is entered with `entering` unless it is 0."""
        n_layers = len(self.modules.blocks)
        left_out = [layer for layer in range(n_layers) if layer not in layers]
        with ExitStack() as stack:
            if left_out:
                stack.enter_context(self.modules.skipping(left_out))
            if entering is not None:
                entry: Place = (n_layers - 1, "resid_post") if layers.start == n_layers else (layers.start, "resid_pre")
                edits = [(*entry, lambda _: entering), *edits]
            stack.enter_context(self.modules.edited(edits))
            yield


class TreeBatch:
    """See `Batch`: one packed row."""

    def __init__(
        self,
        runner: TreeRunner,
        tree: Tree,
        before: KeyValues,
        prompts: Sequence[Asked],
        alone: "TreeBatch | None" = None,
    ) -> None:
        self._runner, self._tree, self._before, self._prompts, self._alone = runner, tree, before, prompts, alone
        self.n_tokens = len(tree)
        self._times = 1 if alone is None else len(tree) // alone.n_tokens
        self.numbers = numbers_of(prompts, times=self._times)
        self._n_kept = [n for each in prompts for n in each.n_kept] * self._times
        self._stream: list[Tensor] = []

    @cached_property
    def places(self) -> tuple[Tensor, ...]:
        """See `Batch`."""
        device = self._runner.forward.device
        if self._alone is None:
            return tuple(torch.tensor(places, device=device) for places in self._tree.places)
        n = self._alone.n_tokens
        return tuple(places + row * n for row in range(self._times) for places in self._alone.places)

    @cached_property
    def layout(self) -> TokenLayout:
        """See `Batch`."""
        if self._alone is not None:
            return self._alone.layout.repeated(self._times)
        prompts = [len(self._prompts[number].prompt) for number, _ in self.numbers]
        return TokenLayout.of_tree(self._tree.places, prompts, before=len(self._before))

    @cached_property
    def _on_device(self) -> Tree:
        return self._tree.to(self._runner.forward.device)

    def run(self, edits: Sequence[Edit] = (), *, layers: range | None = None, keep: Collection[Place] = ()) -> Output:
        """See `Batch.run`."""
        n_layers = len(self._runner.modules.blocks)
        layers = range(n_layers) if layers is None else layers
        entering = self._entering(layers.start)[None] if layers.start else None
        cache = Activations()
        edits = [*edits, *keeping(self._runner.model, keep, cache)]
        tree = self._on_device
        if layers.stop < n_layers:
            tree = replace(tree, kept=tree.kept[:0])
        with self._runner.within(layers, entering, edits):
            logits = self._runner.forward.run_tree(Running(tree, self._before))
        logits = logits.to(tree.tokens.device).float()
        return Output(logits.split(self._n_kept) if layers.stop == n_layers else (), cache)

    def repeated(self, n: int) -> "TreeBatch":
        """See `Batch.repeated`."""
        runner, device = self._runner, self._runner.forward.device
        suffix = Suffix(len(self._before), self._tree, torch.arange(len(self._tree)))
        rows = Rows([suffix] * n, bank_size=len(self._before), device=device)
        return TreeBatch(runner, rows.tree(), self._before, self._prompts, alone=self)

    @torch.no_grad()
    def _entering(self, layer: int) -> Float[Tensor, "token d_model"]:
        """What enters a layer in an unedited pass, which is run once for all layers; n_layers: what the last gives."""
        if self._alone is not None:
            return self._alone._entering(layer).repeat(self._times, 1)
        if not self._stream:  # all of them, or none where the pass is broken off
            n_layers = len(self._runner.modules.blocks)
            places: list[Place] = [(layer, "resid_pre") for layer in range(n_layers)]
            places.append((n_layers - 1, "resid_post"))
            cache = self.run(keep=places).cache
            self._stream = [cache[place].detach() for place in places]
        return self._stream[layer]


_LOW_PRECISION: "WeakKeyDictionary[PreTrainedModel, ref[TreeForward]]" = WeakKeyDictionary()


def _low_precision(model: PreTrainedModel) -> TreeForward | None:
    """Weights in bfloat16 where that is faster; passes that live at the same time share one copy of them."""
    known = _LOW_PRECISION.get(model, lambda: None)()
    if known is None:
        known = bfloat16_forward(model)
        if known is not None:
            _LOW_PRECISION[model] = ref(known)
    return known
