"""How a model changes: matched arms of fine-tuning that leave a checkpoint at every anchor."""

from typing import TYPE_CHECKING

from mechrefusal.lazy import on_first_use
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

# What measures knows the settings of training, and must not wait for TRL and PEFT.
__getattr__ = on_first_use(
    __name__,
    {
        "ArmTrainer": "trainer",
        "CasePool": "pool",
        "Probe": "callbacks",
        "R2D2Config": "r2d2",
        "R2D2Trainer": "r2d2",
        "Term": "losses",
        "read_log": "arms",
        "train": "arms",
    },
)
