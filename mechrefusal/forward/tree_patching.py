"""Exact patching on token trees: what a patch changes is computed, and nothing else.

Three passes a pair, each over all layers:

1. Both prompts as they are; the target's keys and values become the bank that patched rows read.
2. What each patch makes of its own block's output. The blocks' inputs are those of the unpatched run, so that one pass
   serves all layers. Every patch in attention is another z: of a head's output it is given, and for q, k, v and
   pattern it is the attention of one run's queries, keys or values in place of the other's.
3. Rows from the patched position on, which enter above the patched block, so that higher layers are shared by all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.devices import PATCHED_TOKENS_AT_ONCE, at_once
from mechrefusal.forward.joined_rows import Rows, RowsRunning, Suffix, branches_of, join
from mechrefusal.forward.patched_attention import OtherHeads, OtherProjections, Recording, UnpatchedRun
from mechrefusal.forward.patches import PairRun, Patch, activation_bytes, logit_bytes, n_heads
from mechrefusal.forward.runner import Asked
from mechrefusal.forward.sites import Edit, Site
from mechrefusal.forward.stream import StreamModules
from mechrefusal.forward.tree import Tree
from mechrefusal.forward.tree_forward import TreeForward
from mechrefusal.models.batches import split_by_cost

"""Tokens in one pass: more at once gains nothing."""


@dataclass(frozen=True)
class _Outputs:
    """Outputs of the patched blocks: `values[layer]` [token, d_model], and where each kind of patch begins in them."""

    values: dict[int, Float[Tensor, "token d_model"]]
    start: dict[tuple[int | None, int | None], int]


class TreePatching:
    """See `PatchedPair`.

    Args:
        modules, forward: of the unhooked model of `model`.
        memory: bytes of one pass.
    """

    @torch.no_grad()
    def __init__(
        self, model: Any, modules: StreamModules, forward: TreeForward, pair: PairRun, site: Site, *, memory: int
    ) -> None:
        self.model, self.modules, self.forward = model, modules, forward
        self.pair, self.site, self.memory = pair, site, memory
        self.n_layers = len(self.modules.blocks)
        self.asked = Asked(pair.target, pair.reader.runs, pair.reader.kept)
        self.whole = Tree.of(branches_of(self.asked))
        self.source, self.target = self._both()
        self._known: dict[int, Suffix] = {}

    @torch.no_grad()
    def unpatched(self) -> list[Float[Tensor, "two place vocab"]]:
        """Logits of source and target as they are, run by run."""
        rows = torch.stack([self.source.logits, self.target.logits])
        return list(rows.float().split(list(self.asked.n_kept), dim=1))

    @torch.no_grad()
    def scores(self, patches: Sequence[Patch]) -> Tensor:
        """The metric under each patch, in their order."""
        scores: dict[Patch, Tensor] = {}
        unpatched = self.pair.reader.score([part[1:] for part in self.unpatched()])[0]
        for group, outputs in self._outputs(patches):
            # After the last block, what stands before the end is read by no one.
            last = len(self.pair.target) - 1
            alive = [p for p in group if self._enters(p) < self.n_layers or p.position in (None, last) or self._whole]
            scores |= dict.fromkeys(group, unpatched)
            alive.sort(key=self._enters)
            for part in self._passes(alive):
                scores |= dict(zip(part, self._joined(part, outputs), strict=True))
        return torch.stack([scores[patch] for patch in patches])

    # 1. Both prompts as they are

    def _both(self) -> tuple[UnpatchedRun, UnpatchedRun]:
        """Source and target; what they begin with in common is run once."""
        branches = [
            branch
            for prompt in (self.pair.source, self.pair.target)
            for branch in branches_of(Asked(prompt, self.asked.continuations, self.asked.kept))
        ]
        tree = Tree.of(branches).to(self.forward.device)
        running = Recording(tree)
        stream: list[Tensor] = []
        written: list[Tensor] = []

        def keep(into: list[Tensor]) -> Callable[[Tensor], Tensor]:
            def record(activation: Tensor) -> Tensor:
                into.append(activation[0])
                return activation

            return record

        edits: list[Edit] = [(layer, "resid_pre", keep(stream)) for layer in range(self.n_layers)]
        edits.append((self.n_layers - 1, "resid_post", keep(stream)))
        if self.site == "attn_out" or self.site == "mlp_out":
            edits += [(layer, self.site, keep(written)) for layer in range(self.n_layers)]
        with self.modules.edited(edits):
            logits = self.forward.run_tree(running).chunk(2)
        bank, n = running.bank(), len(self.asked.continuations)
        runs = []
        for logits_of_run, places in zip(logits, (tree.places[:n], tree.places[n:]), strict=True):
            packed_places = torch.zeros(len(self.whole), dtype=torch.long)
            for in_whole, packed in zip(self.whole.places, places, strict=True):
                packed_places[list(in_whole)] = torch.tensor(packed)
            packed_places = packed_places.to(self.forward.device)
            streams, writes, queries, z = (
                [part[packed_places.to(part.device)] for part in parts]
                for parts in (stream, written, running.queries, running.z)
            )
            runs.append(UnpatchedRun(bank.at(packed_places.tolist()), logits_of_run, streams, writes, queries, z))
        return runs[0], runs[1]

    def _suffix(self, start: int) -> Suffix:
        if start not in self._known:
            self._known[start] = Suffix.of(self.asked, start, self.whole)
        return self._known[start]

    def _rows(self, starts: Sequence[int]) -> Rows:
        suffixes = [self._suffix(start) for start in starts]
        return Rows(suffixes, bank_size=len(self.whole), device=self.forward.device)

    # 2. What patches make of their blocks

    @property
    def _whole(self) -> bool:
        """Whether a patch changes its block's output at all positions after it, and not at its own only."""
        return self.site in ("k", "v")

    def _outputs(self, patches: Sequence[Patch]) -> Iterator[tuple[list[Patch], _Outputs]]:
        """Patches in groups whose block outputs fit in memory at once, and those outputs."""
        if self.site in ("resid_pre", "resid_mid", "resid_post"):
            after = 0 if self.site == "resid_pre" else 1
            layers = {patch.layer for patch in patches}
            yield list(patches), _Outputs({layer: self.source.stream[layer + after] for layer in layers}, {})
            return
        kinds: dict[tuple[int | None, int | None], list[Patch]] = {}
        for patch in patches:
            kinds.setdefault((patch.head, patch.position if self._whole else None), []).append(patch)
        # Patches of one position share what they need of attention.
        keys = sorted(kinds, key=lambda kind: (kind[1] or 0, kind[0] or 0))
        starts = [self.pair.first if position is None else position for _, position in keys]
        layers = {patch.layer for patch in patches}
        width = activation_bytes(self.model)[0] + 4 * self.model.cfg.d_model * len(layers)
        costs = [len(self._suffix(start)) * width for start in starts]
        for part in split_by_cost((costs, self.memory // 2)):
            chosen = [keys[i] for i in part]
            yield [p for kind in chosen for p in kinds[kind]], self._of_kinds(chosen, layers)

    def _of_kinds(self, kinds: Sequence[tuple[int | None, int | None]], layers: set[int]) -> _Outputs:
        rows = self._rows([self.pair.first if position is None else position for _, position in kinds])
        if self.site == "attn_out" or self.site == "mlp_out":
            written = [part[rows.base.to(part.device)][None] for part in self.source.written]
            edits: list[Edit] = [(layer, self.site, _puts(written[layer])) for layer in sorted(layers)]
            values = self._block_outputs(RowsRunning(rows, self.target.bank), layers, edits)
        else:
            values = self._block_outputs(self._heads(rows, kinds, layers), layers, [])
        return _Outputs(values, dict(zip(kinds, rows.offsets, strict=False)))

    def _heads(self, rows: Rows, kinds: Sequence[tuple[int | None, int | None]], layers: set[int]) -> RowsRunning:
        n_query, n_site = self.model.cfg.n_heads, n_heads(self.model, self.site)
        lengths = torch.tensor([len(suffix) for suffix in rows.suffixes])
        group = torch.arange(n_query) // (n_query // n_site)
        heads = torch.stack([group == head for head, _ in kinds]).repeat_interleave(lengths, 0)
        if self.site == "z":
            others = {layer: z[rows.base.to(z.device)] for layer, z in enumerate(self.source.z) if layer in layers}
        else:
            positions = list(dict.fromkeys(position for _, position in kinds))
            starts = [self.pair.first if position is None else position for position in positions]
            attention = self._rows(starts)
            running = OtherProjections(attention, self.site, self.source, self.target.bank, positions)
            self._block_outputs(running, layers, [])
            places = torch.cat(
                [
                    torch.arange(attention.offsets[row], attention.offsets[row + 1])
                    for row in (positions.index(position) for _, position in kinds)
                ]
            ).to(self.forward.device)
            others = {layer: z[places.to(z.device)] for layer, z in running.z.items()}
        return OtherHeads(rows, self.target.bank, heads.to(self.forward.device), self.target.z, others)

    def _block_outputs(self, running: RowsRunning, layers: set[int], edits: list[Edit]) -> dict[int, Tensor]:
        """Outputs of blocks `layers`, each given the input that it has in the unpatched run. No other block is run."""
        outputs: dict[int, Tensor] = {}

        def forced(layer: int, stream: Tensor) -> Tensor:
            if layer - 1 in layers:
                outputs[layer - 1] = stream[0]
            base = self.target.stream[layer]
            return base[running.rows.base.to(base.device)][None]

        every: list[Edit] = [(layer, "resid_pre", partial(forced, layer)) for layer in range(self.n_layers)]
        every.append((self.n_layers - 1, "resid_post", partial(forced, self.n_layers)))
        running.tree = replace(running.tree, kept=running.tree.kept[:0])  # no logits
        with self.modules.skipping(set(range(self.n_layers)) - layers), self.modules.edited([*every, *edits]):
            self.forward.run_tree(running)
        return outputs

    # 3. Rows on the way up

    def _enters(self, patch: Patch) -> int:
        return patch.layer + (self.site != "resid_pre")

    def _start(self, patch: Patch) -> int:
        return self.pair.first if patch.position is None else patch.position

    def _passes(self, patches: list[Patch]) -> Iterator[list[Patch]]:
        a_token, a_key = activation_bytes(self.model)
        logits, most = logit_bytes(self.model, self.pair.reader), at_once(self.forward.device, PATCHED_TOKENS_AT_ONCE)
        costs, total = [], len(self.whole)
        for patch in patches:
            n = len(self._suffix(self._start(patch)))
            # A pass ends at its number of tokens, or of bytes, whichever comes first.
            costs.append(max(n * a_token + total * a_key + logits, n * self.memory // most))
        for part in split_by_cost((costs, self.memory)):
            yield [patches[i] for i in part]

    def _joined(self, patches: list[Patch], outputs: _Outputs) -> Tensor:
        rows = self._rows([self._start(patch) for patch in patches])
        enters = [self._enters(patch) for patch in patches]

        def entering(layer: int, new: range) -> Tensor:
            begin, end = rows.offsets[new.start], rows.offsets[new.stop]
            base = self.target.stream[layer]
            stream = base[rows.base[begin:end].to(base.device)]
            to: list[int] = []
            taken: list[int] = []
            for row in new:
                patch, offset = patches[row], rows.offsets[row] - begin
                n = len(rows.suffixes[row]) if patch.position is None or self._whole else 1
                to += range(offset, offset + n)
                place = self._place(patch, outputs)
                taken += range(place, place + n)
            stream[to] = outputs.values[patches[new.start].layer][taken]
            return stream

        logits = join(self.modules, self.forward, rows, self.target.bank, enters, entering)
        by_run = logits.float().unflatten(0, (len(patches), -1)).split(list(self.asked.n_kept), dim=1)
        return self.pair.reader.score(list(by_run))

    def _place(self, patch: Patch, outputs: _Outputs) -> int:
        """Where the values that a patch's row enters with begin in `outputs`."""
        if not outputs.start:
            return self._start(patch)  # the source's own stream, over the whole prompt
        if self._whole or patch.position is None:
            return outputs.start[patch.head, patch.position]
        return outputs.start[patch.head, None] + patch.position - self.pair.first


def _puts(activation: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: activation
