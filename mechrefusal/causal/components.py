"""Heads, MLPs, attention layers and neurons as things that can be replaced, in prompts of one chat template."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.forward import (
    Asked,
    Batch,
    Edit,
    Number,
    Place,
    Site,
    batches,
    by_continuation,
    require_context,
    runner_of,
)
from mechrefusal.models.batches import common_length

Kind = Literal["head", "mlp", "attention", "neuron"]
SITES: dict[Kind, Site] = {"head": "z", "mlp": "mlp_out", "attention": "attn_out", "neuron": "mlp_post"}


@dataclass(frozen=True)
class Component:
    """A part of the model that can be replaced; `index` is the head or the neuron, −1 where there is one a layer."""

    kind: Kind
    layer: int
    index: int = -1

    @property
    def place(self) -> Place:
        """Layer and site of its output."""
        return self.layer, SITES[self.kind]


@dataclass(frozen=True)
class TemplateFrame:
    """What the chat template gives to all prompts: their first tokens, and the number of their last ones."""

    head: tuple[int, ...]
    tail: int

    @classmethod
    def of(cls, tokenizer, texts: Sequence[str]) -> "TemplateFrame":
        """The frame of `texts`: tokens in common up to the instruction, and the fewest after it."""
        parts = [prompts.segments(tokenizer, text) for text in texts]
        befores = [part.before for part in parts]
        return cls(tuple(befores[0][: common_length(befores)]), min(len(part.after) for part in parts))


@dataclass(frozen=True)
class ComponentBatch:
    """One pass, and the prompts in it: `numbers[i]` are prompt and run of `places[i]`."""

    batch: Batch
    numbers: tuple[Number, ...]

    @property
    def places(self) -> tuple[Tensor, ...]:
        """Flat places of the tokens of each prompt and run from the first replaced one on."""
        return self.batch.places


class ComponentPasses:
    """Prompts with every one of `runs` after them, in groups that fit, ready to be run with components replaced.

    Args:
        model: a hooked transformer.
        ids: token ids of the prompts, all of `frame`.
        whole: also replace in the tokens of the template before the instruction. Else these are run once only: what
            is replaced after them does not reach them.
        sites: where components will be replaced.
    """

    def __init__(
        self,
        model,
        ids: Sequence[Sequence[int]],
        runs: Sequence[Sequence[int]],
        frame: TemplateFrame,
        *,
        whole: bool,
        sites: Collection[Site] = tuple(SITES.values()),
    ) -> None:
        assert ids
        assert runs
        self.model, self.whole = model, whole
        self.ids, self.runs = [tuple(prompt) for prompt in ids], tuple(tuple(run) for run in runs)
        self.start = 0 if whole else len(frame.head)
        requests = [Asked(prompt, self.runs) for prompt in self.ids]
        require_context(model, requests)
        runner = runner_of(model, sites=tuple(sites))
        # The same replacement for all tokens needs no separate prompts.
        self.groups = [
            ComponentBatch(batch, tuple((chosen[prompt], run) for prompt, run in batch.numbers))
            for chosen, batch in batches(runner, requests, first=self.start, apart=not whole)
        ]

    def logits(
        self, edits: Callable[[ComponentBatch], Sequence[Edit]] = lambda _: (), *, first_layer: int = 0
    ) -> Iterator[tuple[list[int], list[Float[Tensor, "prompt place vocab"]]]]:
        """A few prompts after another: their numbers, and for each run their logits, float32.

        Args:
            edits: what is done in a pass, no lower than `first_layer`.
        """
        layers, n = range(first_layer, self.model.cfg.n_layers), len(self.runs)
        for group in self.groups:
            logits = group.batch.run(edits(group), layers=layers).logits
            numbers = [prompt for prompt, run in group.numbers if run == 0]
            yield numbers, by_continuation(logits, n)

    @torch.no_grad()
    def activations(self, places: Collection[Place]) -> Iterator[tuple[ComponentBatch, dict[Place, Tensor]]]:
        """Every pass with nothing replaced, and its flat activations at these layers and sites."""
        for group in self.groups:
            cache = group.batch.run(keep=places).cache
            yield group, {place: cache[place] for place in places}


def by_place(components: Sequence[Component]) -> dict[Place, list[int]]:
    """Components by layer and site, with their indices there."""
    indices: dict[Place, list[int]] = defaultdict(list)
    for component in components:
        indices[component.place].append(component.index)
    return dict(indices)
