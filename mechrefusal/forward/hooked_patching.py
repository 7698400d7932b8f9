"""Patching through the hooked transformer's own hooks: whole rows, patched at one layer a pass."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mechrefusal.forward.patches import HEAD_SITES, PairRun, Patch, activation_bytes, logit_bytes
from mechrefusal.forward.runner import Asked, Runner, by_continuation
from mechrefusal.forward.sites import Edit, Site
from mechrefusal.models.batches import split_by_cost


class HookedPatching:
    """See `PatchedPair`."""

    @torch.no_grad()
    def __init__(self, runner: Runner, pair: PairRun, site: Site, *, memory: int) -> None:
        self.model, self.pair, self.site, self.memory = runner.model, pair, site, memory
        self._source, self._target = (
            runner.batch([Asked(prompt, pair.reader.runs, pair.reader.kept)]) for prompt in (pair.source, pair.target)
        )
        self._n_layers, self._n_runs = self.model.cfg.n_layers, len(pair.reader.runs)
        self._activations: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[[Tensor], Tensor]:
            return lambda activation: self._activations.setdefault(layer, activation.detach())

        self._logits = (
            self._source.run([(layer, site, keep(layer)) for layer in range(self._n_layers)]).logits,
            self._target.run().logits,
        )

    def unpatched(self) -> list[Tensor]:
        """See `PatchedPair`."""
        return [torch.stack(both) for both in zip(*self._logits, strict=True)]

    @torch.no_grad()
    def scores(self, patches: Sequence[Patch]) -> Tensor:
        """See `PatchedPair`."""
        a_token, a_key = activation_bytes(self.model)
        n = self._target.n_tokens
        a_row = n * a_token + n * self._n_layers * a_key + logit_bytes(self.model, self.pair.reader)
        score_of: dict[Patch, Tensor] = {}
        for layer in dict.fromkeys(patch.layer for patch in patches):
            here = [patch for patch in patches if patch.layer == layer]
            for part in split_by_cost(([a_row] * len(here), self.memory)):
                chosen = [here[i] for i in part]
                rows = self._target.repeated(len(chosen))
                logits = rows.run([self._swap(layer, chosen)], layers=range(layer, self._n_layers)).logits
                scores = self.pair.reader.score(by_continuation(logits, self._n_runs))
                score_of |= dict(zip(chosen, scores, strict=True))
        return torch.stack([score_of[patch] for patch in patches])

    def _swap(self, layer: int, patches: Sequence[Patch]) -> Edit:
        """What patches the rows of each patch at one layer."""

        def put(activation: Tensor) -> Tensor:
            changed, source = self._by_head(activation).clone(), self._by_head(self._activations[layer])
            for number, patch in enumerate(patches):
                rows = slice(number * self._n_runs, (number + 1) * self._n_runs)
                place = self._where(patch)
                changed[(rows, *place)] = source[(slice(None), *place)]
            return changed.reshape(activation.shape)

        return layer, self.site, put

    def _by_head(self, activation: Tensor) -> Tensor:
        """With an axis of heads, also where an architecture holds them side by side."""
        beside = self.site in HEAD_SITES and activation.ndim == 3
        return activation.unflatten(-1, (-1, self.model.cfg.d_head)) if beside else activation

    def _where(self, patch: Patch) -> tuple:
        """Head and position of a patch, in the order in which the axes of the site stand."""
        position = slice(None) if patch.position is None else patch.position
        if patch.head is None:
            return (position,)
        return (patch.head, position) if self.site == "pattern" else (position, patch.head)
