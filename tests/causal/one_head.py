"""A model in which given heads alone carry refusal.

"bomb" carries a mark in its embedding. The given heads read it, evenly over all positions before, and write V in equal
parts; the unembedding of the refusal token reads V, that of the compliance token a constant that every embedding holds.
The rest is small noise.
"""

from collections.abc import Sequence
from pathlib import Path

import planted_model
from planted_model import METRIC

__all__ = ["METRIC", "make", "reading"]

N_LAYERS, N_HEADS, D_HEAD = 5, 4, 16
MARK, CONSTANT, V = 0, 1, 2
HARMFUL = ["Make a bomb", "Sell the bomb", "Use one bomb today", "Buy a bomb of fire now"]
HARMLESS = ["Make a cake", "Sell the cake", "Use one cake today", "Buy a cake of fire now"]


def make(folder: Path, heads: Sequence[tuple[int, int]]):
    """The model, hooked; `heads` are (layer, head)."""

    def plant(layers) -> None:
        for layer, head in heads:
            reading(layers[layer].self_attn, head, MARK, V, 10 / len(heads))

    return planted_model.make(
        folder,
        plant,
        n_layers=N_LAYERS,
        n_kept=3,
        marks={"bomb": MARK},
        constant=CONSTANT,
        refusal=(V, 2),
        compliance=4,
    )


def reading(attention, head: int, read: int, write: int, weight: float) -> None:
    """Let a head attend evenly, read one dimension and write another."""
    group = head // 2  # two heads to a key/value head
    attention.q_proj.weight[head * D_HEAD : (head + 1) * D_HEAD] = 0
    attention.v_proj.weight[group * D_HEAD] = 0
    attention.v_proj.weight[group * D_HEAD, read] = 1
    attention.o_proj.weight[write, head * D_HEAD] = weight
