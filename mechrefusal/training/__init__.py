"""How a model changes: matched arms of fine-tuning that leave a checkpoint at every anchor."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mechrefusal.training.settings import ARMS, WARM_UP, LoraSettings, R2D2Settings, TrainingSettings

if TYPE_CHECKING:
    from mechrefusal.training.arms import read_log, train
    from mechrefusal.training.callbacks import Probe
    from mechrefusal.training.losses import Term
    from mechrefusal.training.pool import CasePool
    from mechrefusal.training.r2d2 import R2D2Config, R2D2Trainer
    from mechrefusal.training.trainer import ArmTrainer

__all__ = [
    "ARMS",
    "WARM_UP",
    "ArmTrainer",
    "CasePool",
    "LoraSettings",
    "Probe",
    "R2D2Config",
    "R2D2Settings",
    "R2D2Trainer",
    "Term",
    "TrainingSettings",
    "read_log",
    "train",
]

_HOMES = {
    "ArmTrainer": "trainer",
    "CasePool": "pool",
    "Probe": "callbacks",
    "R2D2Config": "r2d2",
    "R2D2Trainer": "r2d2",
    "Term": "losses",
    "read_log": "arms",
    "train": "arms",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: what measures knows the settings of training, and must not wait for TRL and PEFT.
    if name in _HOMES:
        return getattr(import_module(f"mechrefusal.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mechrefusal.training' has no attribute '{name}'")
