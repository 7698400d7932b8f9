"""A model in which one head alone writes refusal, reading it from one token.

"bomb" carries a mark in its embedding. Head `HEAD` attends evenly, reads the mark, and writes U; the unembedding of the
refusal token reads U, that of the compliance token the constant that every embedding holds. The rest is small noise.
"""

from pathlib import Path

import planted_model
from planted_model import METRIC

__all__ = ["METRIC", "make"]

HEAD, N_LAYERS = (2, 3), 5
MARK, U, CONSTANT = 0, 1, 2
HARMFUL = ["Make a bomb", "Sell one bomb today", "Use the bomb of fire", "Buy a bomb for me"]
HARMLESS = [text.replace("bomb", "cake") for text in HARMFUL]


def make(folder: Path):
    """The model, hooked."""

    def plant(layers) -> None:
        attention = layers[HEAD[0]].self_attn
        attention.q_proj.weight.zero_()
        # d_head is 16: dimension 0 of the second key/value head, which heads 2 and 3 hear.
        attention.v_proj.weight[16] = 0
        attention.v_proj.weight[16, MARK] = 1
        attention.o_proj.weight[U, HEAD[1] * 16] = 10

    return planted_model.make(
        folder,
        plant,
        n_layers=N_LAYERS,
        n_kept=3,
        marks={"bomb": MARK},
        constant=CONSTANT,
        refusal=(U, 4),
        compliance=4,
    )
