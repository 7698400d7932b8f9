"""Plain supervised fine-tuning: utility rows and static refusals in one loss."""

from trl import SFTConfig

from mechrefusal.training.arm import Arm, TrainerSetup
from mechrefusal.training.trainer import ArmTrainer


def _trainer(setup: TrainerSetup) -> ArmTrainer:
    settings = setup.inputs.settings
    arguments = setup.arguments(SFTConfig, harmful_per_step=settings.harmful_per_step)
    return ArmTrainer(**arguments, refusal_weight=settings.refusal_weight, tree=settings.tree)


SFT = Arm("sft", _trainer)
