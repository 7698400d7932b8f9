"""A model that refuses by a cone: any direction between two does it, alone.

"bomb" carries a mark. The attention of layer 2 reads it, evenly over all positions before, and writes two directions
U[0] and U[1] alike. One neuron of the MLP of layer 3 opens where their sum exceeds `THRESHOLD` times what harmful
requests have of one of them, and writes V, which the refusal token reads.

Taking cos t · U[0] + sin t · U[1] out of s · (U[0] + U[1]) leaves a sum of s · (1 − sin 2t), which is s at most;
putting it in at the length of that, s · √2, adds s · √2 · (cos t + sin t), which is s · √2 at least. A threshold
between s and s · √2 is passed by every direction of the cone, and by none far outside it.
"""

from pathlib import Path

import planted_model
from gated import CONSTANT, MARKS, N_LAYERS, PLACE, VERBS, WRITING_LAYER, U, V

from mechrefusal.prompts import Split

S = 5.85
"""What harmful requests have of U[0], and of U[1], at the place (`test_cones` says so)."""
THRESHOLD = 1.2


def split(half: int) -> Split:
    """Requests of the same length, so that the marks are read as strongly in all of them; every other one."""
    harmful = [f"{verb} {form} bomb" for verb in VERBS for form in ("a", "the", "one", "my")][half::2]
    return Split.of(harmful, [text.replace("bomb", "home") for text in harmful])


def make(folder: Path):
    """The model, hooked."""

    def plant(layers) -> None:
        attention, mlp = layers[WRITING_LAYER].self_attn, layers[PLACE[1]].mlp
        attention.q_proj.weight.zero_()
        attention.v_proj.weight[0] = 0
        attention.v_proj.weight[0, MARKS[0]] = 1
        for direction in U:
            attention.o_proj.weight[direction] = 0
            attention.o_proj.weight[direction, [0, 16]] = 10
        mlp.gate_proj.weight[0] = mlp.up_proj.weight[0] = 0
        mlp.gate_proj.weight[0, list(U)] = 2
        mlp.gate_proj.weight[0, CONSTANT] = -2 * THRESHOLD * S
        mlp.up_proj.weight[0, CONSTANT] = 4
        mlp.down_proj.weight[:, 0] = 0
        mlp.down_proj.weight[V, 0] = 4

    return planted_model.make(
        folder,
        plant,
        n_layers=N_LAYERS,
        n_kept=6,
        marks={"bomb": MARKS[0]},
        constant=CONSTANT,
        refusal=(V, 2),
        compliance=4,
    )
