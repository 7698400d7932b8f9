"""A model that refuses by two gates, each opened by a direction of its own.

"bomb" and "poison" carry a mark each in their embedding. The attention of layer 2 reads the marks, evenly over all
positions before, and writes two directions U[0] and U[1]. Two neurons of the MLP of layer 3, one for each, open where
theirs exceeds the constant that every embedding holds, and write V; the unembedding of the refusal token reads V, that
of the compliance token the constant. The rest is small noise.

The gates saturate: taking the mean of the two directions out of a prompt that has one of them leaves its gate open, so
that requests of both kinds are answered only where both directions are gone.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import planted_model
import torch

from mechrefusal.geometry import activations
from mechrefusal.prompts import Split, prompt_ids

WRITING_LAYER, PLACE, N_LAYERS = 2, (-1, 3), 6
MARKS, U, CONSTANT, V = (0, 1), (2, 3), 4, 5
WEAPONS = ("bomb", "poison")
VERBS, THINGS = ("Make", "Sell", "Use", "Buy"), ("a {}", "{} {}", "one {} today", "the {} of fire")


def requests(word: str, verbs: Sequence[str] = VERBS) -> list[str]:
    """Requests for one thing, four a verb."""
    return [f"{verb} {thing.format(word, word)}" for verb, thing in itertools.product(verbs, THINGS)]


def split(*words: str, verbs: Sequence[str] = VERBS) -> Split:
    """Requests for each of these words, and as many for something harmless."""
    harmless = ("home", "cake")[: len(words)]
    return Split.of(*([text for word in each for text in requests(word, verbs)] for each in (words, harmless)))


def make(folder: Path):
    """The model, hooked."""

    def plant(layers) -> None:
        attention, mlp = layers[WRITING_LAYER].self_attn, layers[PLACE[1]].mlp
        attention.q_proj.weight.zero_()
        for row, (mark, direction) in enumerate(zip(MARKS, U, strict=True)):
            # d_head is 16: dimension `row` of the first key/value head, which heads 0 and 1 hear.
            attention.v_proj.weight[row] = 0
            attention.v_proj.weight[row, mark] = 1
            attention.o_proj.weight[direction] = 0
            attention.o_proj.weight[direction, [row, 16 + row]] = 10
        for neuron, direction in enumerate(U):
            mlp.gate_proj.weight[neuron] = mlp.up_proj.weight[neuron] = 0
            mlp.gate_proj.weight[neuron, direction] = 2
            mlp.gate_proj.weight[neuron, CONSTANT] = -2
            mlp.up_proj.weight[neuron, CONSTANT] = 1
            mlp.down_proj.weight[:, neuron] = 0
            mlp.down_proj.weight[V, neuron] = 1

    marks = dict(zip(WEAPONS, MARKS, strict=True))
    return planted_model.make(
        folder, plant, n_layers=N_LAYERS, n_kept=6, marks=marks, constant=CONSTANT, refusal=(V, 2), compliance=4
    )


def at_place(model, asked: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations of the harmful and of the harmless prompts at `PLACE`."""
    ids = (prompt_ids(model.tokenizer, texts) for texts in (asked.harmful, asked.harmless))
    return tuple(activations.collect(model, each, [PLACE])[:, 0] for each in ids)  # type: ignore[return-value]
