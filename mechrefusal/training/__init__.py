"""How a model changes: matched arms of fine-tuning that leave a checkpoint at every anchor."""

from typing import TYPE_CHECKING

from mechrefusal.lazy import on_first_use
from mechrefusal.training.arm import Arm
from mechrefusal.training.guide_settings import GuideSettings
from mechrefusal.training.registry import ARMS, register
from mechrefusal.training.settings import WARM_UP, LoraSettings, TrainingSettings

if TYPE_CHECKING:
    from mechrefusal.training.arms.dpo import DPOSettings
    from mechrefusal.training.arms.kto import KTOSettings
    from mechrefusal.training.arms.r2d2 import R2D2Settings
    from mechrefusal.training.arms.rlhf import RLHFSettings
    from mechrefusal.training.arms.sft import SFTSettings
    from mechrefusal.training.callbacks import Probe
    from mechrefusal.training.fine_tuning import read_log, train
    from mechrefusal.training.losses import Hidden, Reads, Term
    from mechrefusal.training.measured import Measured
    from mechrefusal.training.pool import CasePool
    from mechrefusal.training.r2d2_trainer import R2D2Config, R2D2Trainer
    from mechrefusal.training.trainer import ArmTrainer
    from mechrefusal.training.trainer_setup import TrainerSetup
    from mechrefusal.training.under import Under

__all__ = [
    "ARMS",
    "WARM_UP",
    "Arm",
    "ArmTrainer",
    "CasePool",
    "DPOSettings",
    "GuideSettings",
    "Hidden",
    "KTOSettings",
    "LoraSettings",
    "Measured",
    "Probe",
    "R2D2Config",
    "R2D2Settings",
    "R2D2Trainer",
    "RLHFSettings",
    "Reads",
    "SFTSettings",
    "Term",
    "TrainerSetup",
    "TrainingSettings",
    "Under",
    "read_log",
    "register",
    "train",
]

# What measures knows the settings of training, and must not wait for TRL and PEFT.
__getattr__ = on_first_use(
    __name__,
    {
        "ArmTrainer": "trainer",
        "CasePool": "pool",
        "DPOSettings": "arms.dpo",
        "KTOSettings": "arms.kto",
        "Probe": "callbacks",
        "Hidden": "losses",
        "Measured": "measured",
        "R2D2Config": "r2d2_trainer",
        "R2D2Settings": "arms.r2d2",
        "R2D2Trainer": "r2d2_trainer",
        "RLHFSettings": "arms.rlhf",
        "Reads": "losses",
        "SFTSettings": "arms.sft",
        "Term": "losses",
        "TrainerSetup": "trainer_setup",
        "Under": "under",
        "read_log": "fine_tuning",
        "train": "fine_tuning",
    },
)
