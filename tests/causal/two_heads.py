"""A model in which one head writes what a later head reads, and that one alone carries refusal.

"bomb" carries a mark in its embedding. Head `FIRST` reads it, evenly over all positions before, and writes U at every
token after; head `SECOND` reads U and writes V; the unembedding of the refusal token reads V, that of the compliance
token a constant that every embedding holds. The rest is small noise.
"""

from pathlib import Path

import one_head
import planted_model
from one_head import CONSTANT, MARK, METRIC, N_LAYERS, V

FIRST, SECOND, U = (1, 0), (3, 2), 3
__all__ = ["FIRST", "METRIC", "SECOND", "make"]


def make(folder: Path):
    """The model, hooked."""

    def plant(layers) -> None:
        for (layer, head), read, write, weight in ((FIRST, MARK, U, 2), (SECOND, U, V, 10)):
            one_head.reading(layers[layer].self_attn, head, read, write, weight)

    return planted_model.make(
        folder,
        plant,
        n_layers=N_LAYERS,
        n_kept=4,
        marks={"bomb": MARK},
        constant=CONSTANT,
        refusal=(V, 2),
        compliance=0.5,
        level=8,  # so large that U does not move the norms, and with them the logits, by itself
    )
