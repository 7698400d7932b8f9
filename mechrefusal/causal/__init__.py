"""What moves it: interventions, activation patching, knock-out, circuits, patching across checkpoints.

Interventions are context managers (`interventions`) around values that say what is done (`operations`); `passes` runs
prompts under many of them, `components` with single heads, MLPs and neurons replaced. Every other measure is a package
of its own: `attribution_patching`, `circuits`, `cross_patching` and `knockout` build on `patching`.
"""

from mechrefusal.causal import attribution_patching, cross_patching, knockout, patching
from mechrefusal.causal.circuits import Circuit, EdgeScores, Node, attribute_edges, circuit
from mechrefusal.causal.interventions import ablate, add, clamp, intervened, patch
from mechrefusal.causal.knockout import head_sets
from mechrefusal.causal.operations import (
    Ablation,
    Addition,
    Chain,
    Clamp,
    Intervention,
    orthonormal,
    put_in,
    random_like,
    taken_out,
)
from mechrefusal.causal.passes import AnswerPasses, Passes
from mechrefusal.causal.patch_operation import Patch
from mechrefusal.causal.reference import Reference
from mechrefusal.causal.weighted_ablation import WeightedAblation
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
    "WeightedAblation",
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
