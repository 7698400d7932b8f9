"""What stands in for a component that is knocked out: nothing, its mean, or what it does in another prompt.

Mean (Wang et al., 2211.00593, section 2.1, who average over prompts of one template, position by position). Prompts of
a chat template correspond in their frame, not in their instruction: tokens of the template after the instruction, and
those of a forced opening, get the mean over the reference prompts at the same token, counted from the end of the
prompt; tokens of the instruction get one mean over all instruction tokens of the reference prompts. Tokens before the
instruction are the same in every prompt, and so is what is computed at them: their mean is what they have, and they
stay. A plain mean over all tokens would be one of the template's beginning above all (half of a short prompt or more,
with the first token's outsized activations), and would move every component that only marks positions.

Resample (Chan et al., "Causal scrubbing", 2022): each prompt gets the component's output in another reference prompt,
aligned from the end of the prompt; where that one's instruction is shorter, its first token stands in again.

Zero: at all tokens, those before the instruction too.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mechrefusal.causal.components import Component, ComponentBatch, ComponentPasses, TemplateFrame, by_place
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import Edit, Site, flat

How = Literal["mean", "zero", "resample"]
HOWS = ("mean", "zero", "resample")


class Replacements:
    """Replaces components in `ComponentPasses` of the same frame and runs.

    Args:
        reference: token ids of the prompts that give means, or the activations of others.
        places: layers and sites at which components are replaced.
        draws: other prompts drawn for each, with `seed`, where `how` is "resample".
    """

    def __init__(
        self,
        model,
        reference: Sequence[Sequence[int]],
        runs: Sequence[Sequence[int]],
        frame: TemplateFrame,
        *,
        how: How,
        places: Sequence[tuple[int, Site]],
        draws: int,
        seed: int,
    ) -> None:
        self._model, self._frame, self.how = model, frame, how
        self._lengths, self._runs = [len(prompt) for prompt in reference], runs
        self._reference, self._seed = [tuple(prompt) for prompt in reference], seed
        self.draws = draws if how == "resample" else 1
        # What stands in, a row a class of tokens (mean) or a token of the reference prompts (resample).
        self._rows: dict[tuple[int, Site], Tensor] = {}
        self._rows_of: dict[tuple[int, int], Tensor] = {}
        if how != "zero":
            passes = ComponentPasses(
                model, self._reference, runs, frame, whole=False, sites={site for _, site in places}
            )
            (self._take_means if how == "mean" else self._take_all)(passes, places)

    def edits(
        self, components: Sequence[Component], passes: ComponentPasses, *, draw: int = 0
    ) -> Callable[[ComponentBatch], list[Edit]]:
        """What to do in each pass of `passes` to replace `components`."""
        chosen = by_place(components)

        def of(batch: ComponentBatch) -> list[Edit]:
            places, index = self.index(batch, passes, draw)
            return [(*place, self._edit(place, indices, places, index)) for place, indices in chosen.items()]

        return of

    def index(self, batch: ComponentBatch, passes: ComponentPasses, draw: int) -> tuple[Tensor, Tensor]:
        """Flat places of a pass that are replaced, and the row that stands in at each."""
        places = torch.cat(batch.places)
        if self.how == "zero":
            return places, torch.zeros_like(places)
        parts = []
        for prompt, run in batch.numbers:
            ids = passes.ids[prompt]
            if self.how == "mean":
                parts.append(self._classes(len(ids), run))
            else:
                parts.append(self._donated(ids, run, self._donor(ids, prompt, draw)))
        return places, torch.cat(parts).to(places.device)

    def values(self, place: tuple[int, Site], index: Tensor) -> Tensor | float:
        """What stands in at a layer and site for each row of `index`, [token, ...] as `flat` has it; zero if that."""
        return 0.0 if self.how == "zero" else self._rows[place][index.to(self._rows[place].device)]

    def _edit(
        self, place: tuple[int, Site], indices: Sequence[int], places: Tensor, index: Tensor
    ) -> Callable[[Tensor], Tensor]:
        whole = list(indices) == [-1]

        def put(activation: Tensor) -> Tensor:
            changed = flat(self._model, place[1], activation).clone()
            which = torch.tensor(indices, device=changed.device)
            at, rows = places.to(changed.device), index.to(changed.device)
            if self.how == "zero":
                if whole:
                    changed[at] = 0
                else:
                    changed[at[:, None], which] = 0
            elif whole:
                changed[at] = self._rows[place][rows].to(changed)
            else:
                changed[at[:, None], which] = self._rows[place][:, which][rows].to(changed)
            return changed.reshape(activation.shape)

        return put

    def _take_means(self, passes: ComponentPasses, places: Sequence[tuple[int, Site]]) -> None:
        n_classes = 1 + self._frame.tail + sum(map(len, self._runs))
        counts = torch.zeros(n_classes, dtype=torch.float64)
        for batch, activations in passes.activations(places):
            where = torch.cat(batch.places)
            parts = [self._classes(len(passes.ids[prompt]), run) for prompt, run in batch.numbers]
            classes = torch.cat(parts)
            counts += torch.bincount(classes, minlength=n_classes)
            for place, activation in activations.items():
                if place not in self._rows:
                    shape = (n_classes, *activation.shape[1:])
                    self._rows[place] = torch.zeros(shape, dtype=torch.float64, device=activation.device)
                own, taken = classes.to(activation.device), activation[where.to(activation.device)]
                self._rows[place].index_add_(0, own, taken.double())
        for place, sums in self._rows.items():
            n = counts.clamp(min=1).to(sums.device)
            self._rows[place] = (sums / n.view(-1, *[1] * (sums.ndim - 1))).float()

    def _take_all(self, passes: ComponentPasses, places: Sequence[tuple[int, Site]]) -> None:
        rows: dict[tuple[int, Site], list[Tensor]] = {place: [] for place in places}
        before = 0
        for batch, activations in passes.activations(places):
            for number, where in zip(batch.numbers, batch.places, strict=True):
                self._rows_of[number] = before + where
            for place, activation in activations.items():
                rows[place].append(activation)
            before += len(next(iter(activations.values())))
        self._rows = {place: torch.cat(parts) for place, parts in rows.items()}

    def _classes(self, length: int, run: int) -> Tensor:
        """Class of each token after the head: 0 the instruction, then those of the tail, then those of the runs."""
        instruction = torch.zeros(length - len(self._frame.head) - self._frame.tail, dtype=torch.long)
        tail = 1 + torch.arange(self._frame.tail)
        first = 1 + self._frame.tail + sum(map(len, self._runs[:run]))
        return torch.cat([instruction, tail, first + torch.arange(len(self._runs[run]))])

    def _donated(self, ids: tuple[int, ...], run: int, donor: int) -> Tensor:
        """Row of the reference that stands in at each token after the head."""
        rows = self._rows_of[donor, run]
        head = len(self._frame.head)
        shift = self._lengths[donor] - len(ids)
        tokens = torch.arange(head, len(ids) + len(self._runs[run]))
        return rows[(tokens + shift - head).clamp(min=0).to(rows.device)]

    def _donor(self, ids: tuple[int, ...], prompt: int, draw: int) -> int:
        """One of the reference prompts other than this one: the same for every component."""
        others = [i for i, other in enumerate(self._reference) if other != ids]
        if not others:
            raise MechrefusalError(
                "resampling needs a reference prompt other than the prompt itself; give at least two different ones"
            )
        # Each other prompt once before any comes twice.
        order = np.random.default_rng([self._seed, prompt]).permutation(others)
        return int(order[draw % len(others)])
