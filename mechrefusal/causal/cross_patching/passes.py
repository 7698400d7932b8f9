"""Passes of one checkpoint with activations of another in them, and the control, the same change turned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.components import ComponentBatch, ComponentPasses, TemplateFrame
from mechrefusal.causal.cross_patching.activations import CrossSite, SourceActivations, stored, writer
from mechrefusal.forward import Edit, MetricReader, Site, flat

Positions = Literal["all", "last"]


@dataclass(frozen=True)
class Patch:
    """One site of one layer, of one head where it has heads; `rotation`: (seed, draw) of a control."""

    site: CrossSite
    layer: int
    head: int = -1
    rotation: tuple[int, int] | None = None


class Patched:
    """A target, ready to be run with activations of a source in it; `unpatched`: scores without any, nats."""

    @torch.no_grad()
    def __init__(self, target, taken: SourceActivations, positions: Positions) -> None:
        self.model, self.taken, self.positions = target, taken, positions
        self.reader = MetricReader.of(taken.metric)
        whole = positions == "all"
        frame = TemplateFrame((), 0) if whole else TemplateFrame.of(target.tokenizer, taken.texts)
        writes: list[Site] = ["attn_out"] if "result" in taken.sites else []
        sites = list(dict.fromkeys([*stored(taken.sites), *writes]))
        self.passes = ComponentPasses(target, taken.ids, self.reader.runs, frame, whole=whole, sites=sites)
        self._places = {id(batch): self._of(batch) for batch in self.passes.groups}
        self._rotations: dict[tuple[int, int, int], Tensor] = {}
        self.unpatched = self._scores(lambda _: (), first_layer=0)

    @torch.no_grad()
    def change(self, *patches: Patch) -> Float[Tensor, " prompt"]:
        """How the score of every prompt changes under these patches together, nats."""

        def edits(batch: ComponentBatch) -> list[Edit]:
            return [edit for patch in patches for edit in self._edits(patch, *self._places[id(batch)])]

        return self._scores(edits, first_layer=min(patch.layer for patch in patches)) - self.unpatched

    def _scores(self, edits: Callable[[ComponentBatch], Sequence[Edit]], *, first_layer: int) -> Tensor:
        scores = torch.empty(len(self.taken.ids))
        for numbers, logits in self.passes.logits(edits, first_layer=first_layer):
            read = [part[:, -n:] for part, n in zip(logits, self.reader.kept, strict=True)]
            scores[numbers] = self.reader.score(read).cpu()
        return scores

    def _of(self, batch: ComponentBatch) -> tuple[Tensor, Tensor]:
        """Places of the patched tokens in a pass, and in what was taken."""
        target_places, source_places = [], []
        for number, places in zip(batch.numbers, batch.places, strict=True):
            first = 0 if self.positions == "all" else len(self.taken.ids[number[0]]) - 1
            target_places.append(places[first - self.passes.start if first else 0 :])
            source_places.append(self.taken.places[number][first:])
        return torch.cat(target_places), torch.cat(source_places)

    def _edits(self, patch: Patch, target_places: Tensor, source_places: Tensor) -> list[Edit]:
        if patch.site == "result":
            return self._result(patch, target_places, source_places)
        site, layer, head = patch.site, patch.layer, patch.head
        from_source = self._given(layer, site, source_places)
        index = (target_places,) if head < 0 else (target_places, head)
        from_source = from_source if head < 0 else from_source[:, head]

        def put(activation: Tensor) -> Tensor:
            edited = flat(self.model, site, activation).clone()
            before, after = edited[index], from_source.to(edited)
            edited[index] = after if patch.rotation is None else before + self._turned(patch, after - before)
            return edited.reshape(activation.shape)

        return [(layer, site, put)]

    def _result(self, patch: Patch, target_places: Tensor, source_places: Tensor) -> list[Edit]:
        assert self.taken.writers is not None
        target_z: list[Tensor] = []
        source_z = self._given(patch.layer, "z", source_places)[:, patch.head]
        theirs, ours = self.taken.writers[patch.layer][patch.head], writer(self.model, patch.layer)[patch.head]

        def see(z: Tensor) -> Tensor:
            target_z[:] = [flat(self.model, "z", z)[target_places, patch.head]]
            return z

        def put(written: Tensor) -> Tensor:
            edited = flat(self.model, "attn_out", written).clone()
            change = source_z.to(edited) @ theirs.to(edited) - target_z[0] @ ours
            edited[target_places] = edited[target_places] + (
                change if patch.rotation is None else self._turned(patch, change)
            )
            return edited.reshape(written.shape)

        return [(patch.layer, "z", see), (patch.layer, "attn_out", put)]

    def _given(self, layer: int, site: Site, source_places: Tensor) -> Tensor:
        values = self.taken.values[layer, site]
        return values[source_places.to(values.device)]

    def _turned(self, patch: Patch, change: Tensor) -> Tensor:
        assert patch.rotation is not None
        key = (change.shape[-1], *patch.rotation)
        if key not in self._rotations:
            self._rotations[key] = rotation(*key).to(change)
        return change @ self._rotations[key]


def rotation(width: int, seed: int, draw: int) -> Float[Tensor, "width width"]:
    """A random orthogonal matrix (Haar: Mezzadri, math-ph/0609050), the one of the control."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + draw)
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign()).float()
