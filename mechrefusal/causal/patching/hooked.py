"""Patching through the hooked transformer's own hooks: where it has no twin, and while hooks of the caller stand at it.

Rows are whole prompts from the first difference on, patched at one layer. A pass starts at that layer, but under hooks
of the caller, which may act below it on each row, at the first.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mechrefusal.causal.patching.resume import blocks_return_tuple, logits_from
from mechrefusal.causal.patching.sites import PairRun, Patch, Site, activation_bytes, hook_name, logit_bytes
from mechrefusal.models import TokenBatch, head_cache, last_logits
from mechrefusal.models.batches import expanded, split_by_cost


class HookedPatching:
    """One pair, ready for any number of patches at one site.

    Args:
        memory: bytes of one pass.
    """

    def __init__(self, model, pair: PairRun, site: Site, *, memory: int) -> None:
        self.model, self.pair, self.site, self.memory = model, pair, site, memory
        self.resumes = not any(point.fwd_hooks for point in model.hook_dict.values())
        blocks_return_tuple(model)  # found out now: later, hooks are open
        self.runs = [
            _Run(model, pair, run, kept, site, resumes=self.resumes)
            for run, kept in zip(pair.reading.runs, pair.reading.kept, strict=True)
        ]

    def unpatched(self) -> list[Tensor]:
        """Logits [two, place, vocab] of source and target as they are, run by run."""
        return [run.logits.float() for run in self.runs]

    @torch.no_grad()
    def scores(self, patches: Sequence[Patch]) -> Tensor:
        """The metric under each patch, in their order."""
        a_token, a_key = activation_bytes(self.model)
        n = sum(run.n_tokens for run in self.runs)
        a_row = n * a_token + n * self.model.cfg.n_layers * a_key + logit_bytes(self.model, self.pair.reading)
        found: dict[Patch, Tensor] = {}
        for layer in dict.fromkeys(patch.layer for patch in patches):
            here = [patch for patch in patches if patch.layer == layer]
            for part in split_by_cost(([a_row] * len(here), self.memory)):
                chosen = [here[i] for i in part]
                logits = [run.patched(chosen) for run in self.runs]
                found |= dict(zip(chosen, self.pair.reading.score(logits), strict=True))
        return torch.stack([found[patch] for patch in patches])


class _Run:
    """The pair with one run after it: what the two prompts share, and activations of both from there on."""

    @torch.no_grad()
    def __init__(self, model, pair: PairRun, run: tuple[int, ...], kept: int, site: Site, *, resumes: bool) -> None:
        self.model, self.pair, self.site, self.kept, self.resumes = model, pair, site, kept, resumes
        both = [[*prompt, *run] for prompt in (pair.source, pair.target)]
        keep = len(both[0]) - pair.first
        self.batch = TokenBatch.of(
            both, pad=model.tokenizer.pad_token_id, device=str(model.cfg.device), keep=max(keep, kept)
        )
        self.head = len(self.batch.head)
        self.n_tokens = self.batch.rest.shape[1]
        self.cache = head_cache(model, self.batch)
        self.stream: dict[int, Tensor] = {}
        self.activations: dict[int, Tensor] = {}

        def store(activation: Tensor, hook, into: dict, layer: int) -> None:
            into[layer] = activation.detach()

        hooks = []
        for layer in range(model.cfg.n_layers):
            hooks.append((f"blocks.{layer}.{hook_name(site)}", partial(store, into=self.activations, layer=layer)))
            hooks.append((f"blocks.{layer}.hook_resid_pre", partial(store, into=self.stream, layer=layer)))
        with model.hooks(fwd_hooks=hooks):
            self.logits = last_logits(model, self.batch, keep=kept, cache=self.cache)

    def patched(self, patches: Sequence[Patch]) -> Tensor:
        """Logits [row, place, vocab] under patches of one layer."""
        layer, n = patches[0].layer, len(patches)
        hook = swap(self.model, self.site, list(enumerate(patches)), self.activations[layer][:1], before=self.head)
        with self.model.hooks(fwd_hooks=[hook]):
            if not self.resumes:
                rest, mask = (part[1:].expand(n, -1) for part in (self.batch.rest, self.batch.mask))
                rows = TokenBatch(self.batch.head, rest, mask)
                return last_logits(self.model, rows, keep=self.kept, cache=self.cache, chunk=n).float()
            mask, stream = self.batch.full_mask()[1:].expand(n, -1), self.stream[layer][1:].repeat(n, 1, 1)
            cache = expanded(self.cache, n)
            return logits_from(self.model, layer, stream, mask=mask, cache=cache, keep=self.kept).float()


def swap(
    model, site: Site, rows: Sequence[tuple[int, Patch]], source: Tensor, *, before: int = 0
) -> tuple[str, Callable[..., Tensor]]:
    """The hook that patches some rows of a batch at one layer, for TransformerLens' `fwd_hooks`.

    Args:
        rows: places in the batch, and the patch of each.
        source: [1, ...], the activation that is copied.
        before: positions that come before those of the batch (in a cache).
    """

    def by_head(activation: Tensor) -> Tensor:
        flat = site.startswith("head_") and activation.ndim == 3
        return activation.unflatten(-1, (-1, model.cfg.d_head)) if flat else activation

    def where(patch: Patch) -> tuple:
        position = slice(None) if patch.position is None else patch.position - before
        if patch.head is None:
            return (position,)
        return (patch.head, position) if site == "head_pattern" else (position, patch.head)

    def put(activation: Tensor, hook) -> Tensor:
        changed = by_head(activation).clone()
        for row, patch in rows:
            changed[(row, *where(patch))] = by_head(source)[(0, *where(patch))]
        return changed.reshape(activation.shape)

    return f"blocks.{rows[0][1].layer}.{hook_name(site)}", put
