"""What moves it: interventions on the residual stream, and activation patching."""

from mechrefusal.causal import patching
from mechrefusal.causal.interventions import (
    Ablation,
    Addition,
    Intervention,
    ablate,
    add,
    intervened,
    orthonormal,
    random_like,
)
from mechrefusal.causal.passes import AnswerPasses, Passes

__all__ = [
    "Ablation",
    "Addition",
    "AnswerPasses",
    "Intervention",
    "Passes",
    "ablate",
    "add",
    "intervened",
    "orthonormal",
    "patching",
    "random_like",
]
