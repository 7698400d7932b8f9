"""Rows through the hooked transformer's own hooks, as a runner: for models that have no faster one, and under hooks of
the caller."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechrefusal.forward.hooked_patching import HookedPatching
from mechrefusal.forward.patches import MEMORY, PairRun
from mechrefusal.forward.runner import Asked, Output, PatchedPair, RunnerName, numbers_of
from mechrefusal.forward.sites import Activations, Edit, Place, Site, bridge_hooks, keeping
from mechrefusal.forward.stream import blocks_with_tuples, skipped
from mechrefusal.forward.token_classes import TokenLayout
from mechrefusal.models.bridge_internals import hooks_are_open


class HookedRunner:
    """See `Runner`. Rows are padded on the right: nothing that is read comes after the padding."""

    name: RunnerName = "hooks"

    def __init__(self, model: Any, why: str) -> None:
        self.model, self.why = model, why

    def batch(self, prompts: Sequence[Asked], *, first: int = 0, apart: bool = False) -> "RowsBatch":
        """See `Runner.batch`. Rows share nothing, whatever is asked for."""
        rows = [((*prompt.prompt, *run), len(prompt.prompt)) for prompt in prompts for run in prompt.continuations]
        width = max(len(tokens) for tokens, _ in rows)
        padded = [[*tokens, *[tokens[-1]] * (width - len(tokens))] for tokens, _ in rows]
        return RowsBatch(
            self.model,
            torch.tensor(padded, device=self.model.cfg.device),
            [len(tokens) for tokens, _ in rows],
            [n for _, n in rows],
            [n for prompt in prompts for n in prompt.n_kept],
            prompts,
            first,
        )

    def patching(self, pair: PairRun, site: Site, *, memory: int = MEMORY) -> PatchedPair:
        """See `Runner.patching`: whole rows, patched at one layer a pass."""
        return HookedPatching(self, pair, site, memory=memory)


class RowsBatch:
    """See `Batch`: a row a prompt and continuation. A pass starts at its first layer, unless hooks of the caller are
    open, which may act below."""

    def __init__(
        self,
        model: Any,
        rows: Tensor,
        lengths: list[int],
        prompt_lengths: list[int],
        n_kept: list[int],
        prompts: Sequence[Asked],
        first: int,
        alone: "RowsBatch | None" = None,
        *,
        times: int = 1,
    ) -> None:
        self._model, self._rows, self._first, self._alone = model, rows, first, alone
        self._lengths, self._prompt_lengths, self._n_kept, self._prompts = lengths, prompt_lengths, n_kept, prompts
        self.numbers = numbers_of(prompts, times=times)
        self.n_tokens = rows.numel()
        self._stream: dict[int, Tensor] = {}

    @cached_property
    def places(self) -> tuple[Tensor, ...]:
        """See `Batch`."""
        n, width = self._rows.shape
        ends = zip(range(n), self._lengths, strict=True)
        return tuple(torch.arange(self._first, end, device=self._rows.device) + row * width for row, end in ends)

    @cached_property
    def layout(self) -> TokenLayout:
        """See `Batch`."""
        return TokenLayout.of_rows(self._prompt_lengths, self._rows.shape[1])

    def run(self, edits: Sequence[Edit] = (), *, layers: range | None = None, keep: Collection[Place] = ()) -> Output:
        """See `Batch.run`."""
        cache = Activations()
        hooks = bridge_hooks([*edits, *keeping(self._model, keep, cache)])
        start = layers.start if layers is not None and 0 < layers.start < self._model.cfg.n_layers else 0
        read = layers is None or layers.stop == self._model.cfg.n_layers
        residual = self._entering(start) if start and not hooks_are_open(self._model) else None
        with ExitStack() as stack:
            if residual is not None:
                with_tuples = blocks_with_tuples(
                    self._model, list(self._model.blocks), self._model, device=self._rows.device
                )
                stack.enter_context(skipped(list(self._model.blocks)[:start], with_tuples))
            stack.enter_context(self._model.hooks(fwd_hooks=hooks))
            stack.enter_context(self._logits_at_ends())
            if residual is None:
                logits = self._model(self._rows, return_type="logits")
            else:
                position_ids = torch.arange(self._rows.shape[1], device=self._rows.device)[None]
                logits = self._model(
                    residual, start_at_layer=start, position_ids=position_ids, return_type="logits", use_cache=False
                )
        return Output(logits[0].to(self._rows.device).float().split(self._n_kept) if read else (), cache)

    def repeated(self, n: int) -> "RowsBatch":
        """See `Batch.repeated`."""
        each = (self._lengths * n, self._prompt_lengths * n, self._n_kept * n)
        return RowsBatch(self._model, self._rows.repeat(n, 1), *each, self._prompts, self._first, self, times=n)

    @torch.no_grad()
    def _entering(self, layer: int) -> Float[Tensor, "row column d_model"]:
        if self._alone is not None:
            return self._alone._entering(layer).repeat(len(self._rows) // len(self._alone._rows), 1, 1)
        if layer not in self._stream:
            streams: dict[int, Tensor] = {}

            def keep(layer: int):
                return lambda activation: streams.setdefault(layer, activation.detach())

            places: list[Edit] = [(layer, "resid_pre", keep(layer)) for layer in range(self._model.cfg.n_layers)]
            self.run(places)
            self._stream.update(streams)
        return self._stream[layer]

    @contextmanager
    def _logits_at_ends(self) -> Iterator[None]:
        """While open, logits are those at the wanted places of all rows, [1, place, vocab]."""
        width = self._rows.shape[1]
        ends = zip(self._lengths, self._n_kept, strict=True)
        places = [row * width + column for row, (end, n) in enumerate(ends) for column in range(end - n, end)]

        def choose(_: nn.Module, inputs: tuple) -> tuple:
            chosen = torch.tensor(places, dtype=torch.long, device=inputs[0].device)
            return (inputs[0].flatten(0, 1)[chosen][None], *inputs[1:])

        handle = self._model.unembed.register_forward_pre_hook(choose)
        try:
            yield
        finally:
            handle.remove()
