"""What moves it: interventions, activation patching, knock-out, circuits, patching across checkpoints."""

from mechrefusal.causal import attribution_patching, cross_patching, knockout, patching
from mechrefusal.causal.circuit import Circuit, circuit
from mechrefusal.causal.interventions import (
    Ablation,
    Addition,
    Chain,
    Clamp,
    Intervention,
    Patch,
    ablate,
    add,
    clamp,
    intervened,
    orthonormal,
    patch,
    random_like,
)
from mechrefusal.causal.passes import AnswerPasses, Passes

__all__ = [
    "Ablation",
    "Addition",
    "AnswerPasses",
    "Chain",
    "Circuit",
    "Clamp",
    "Intervention",
    "Passes",
    "Patch",
    "ablate",
    "add",
    "attribution_patching",
    "circuit",
    "clamp",
    "cross_patching",
    "intervened",
    "knockout",
    "orthonormal",
    "patch",
    "patching",
    "random_like",
]
