"""mechrefusal: where a chat model's refusal lives, and how that place moves under adversarial fine-tuning.

import mechrefusal as mr

run = mr.study.open("checkpoints/demo")
model = mr.models.load_hooked(run.checkpoint("r2d2", step=18))
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from mechrefusal.errors import MechrefusalError

if TYPE_CHECKING:
    from mechrefusal import (
        attacks,
        attribution,
        causal,
        durability,
        evaluation,
        forward,
        geometry,
        models,
        playground,
        prompts,
        report,
        statistics,
        study,
        tables,
        training,
    )

try:
    __version__ = version("mechrefusal")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

_ROOMS = (
    "attacks", "attribution", "causal", "durability", "evaluation", "forward", "geometry", "models", "playground",
    "prompts", "report", "statistics", "study", "tables", "training",
)  # fmt: skip

__all__ = ["MechrefusalError", "attacks", "attribution", "causal", "durability", "evaluation", "forward", "geometry",
           "models", "playground", "prompts", "report", "statistics", "study", "tables", "training"]  # fmt: skip


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})


def __getattr__(name: str):
    # Loaded on first use: `mechrefusal --help` must not wait for torch.
    if name in _ROOMS:
        return import_module(f"mechrefusal.{name}")
    raise AttributeError(f"module 'mechrefusal' has no attribute '{name}'")
