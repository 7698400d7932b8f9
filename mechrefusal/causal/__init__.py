"""What moves it: interventions, activation patching, knock-out, circuits, patching across checkpoints.

Interventions are in `interventions`; every other measure is a package of its own. `attribution_patching`, `circuit`,
`cross_patching` and `knockout` build on `patching`, `circuit` on `attribution_patching` and `knockout` too. Passes
under many interventions are in `passes`, those with single components replaced in `component_passes`.
"""

from mechrefusal.causal import attribution_patching, cross_patching, knockout, patching
from mechrefusal.causal.circuits import Circuit, EdgeScores, Node, attribute_edges, circuit
from mechrefusal.causal.interventions import (
    Ablation,
    Addition,
    Chain,
    Clamp,
    Intervention,
    Patch,
    Reference,
    ablate,
    add,
    clamp,
    intervened,
    orthonormal,
    patch,
    put_in,
    random_like,
    taken_out,
)
from mechrefusal.causal.knockout import head_sets
from mechrefusal.causal.passes import AnswerPasses, Passes
from mechrefusal.forward.direction import Carrier, Direction

__all__ = [
    "Ablation",
    "Addition",
    "AnswerPasses",
    "Carrier",
    "Chain",
    "Circuit",
    "Clamp",
    "Direction",
    "EdgeScores",
    "Intervention",
    "Node",
    "Passes",
    "Patch",
    "Reference",
    "ablate",
    "add",
    "attribute_edges",
    "attribution_patching",
    "circuit",
    "clamp",
    "cross_patching",
    "head_sets",
    "intervened",
    "knockout",
    "orthonormal",
    "patch",
    "patching",
    "put_in",
    "random_like",
    "taken_out",
]
