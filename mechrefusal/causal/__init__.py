"""What moves it: interventions on the residual stream, and activation patching."""

from mechrefusal.causal import patching
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
    "Clamp",
    "Intervention",
    "Passes",
    "Patch",
    "ablate",
    "add",
    "clamp",
    "intervened",
    "orthonormal",
    "patch",
    "patching",
    "random_like",
]
