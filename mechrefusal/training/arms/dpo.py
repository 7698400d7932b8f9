"""DPO, direct preference optimisation (2305.18290): refusals of what is harmful, answers to what is not."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechrefusal.errors import MechrefusalError
from mechrefusal.training.arm import Arm
from mechrefusal.training.needs import needs_refusals_and_targets

if TYPE_CHECKING:
    from mechrefusal.training.preference_trainers import DPOArmTrainer
    from mechrefusal.training.trainer_setup import TrainerSetup


@dataclass(frozen=True)
class DPOSettings:
    """DPO (2305.18290, equation 7) with a term of SFT beside it. The published learning rate, 1e-6, is the recipe's.

    With r = log π − log π_ref of an answer, loss = −log σ(β·(r(chosen) − r(rejected))), the mean over pairs, +
    `sft_weight` · cross-entropy of the chosen answers, the mean over their tokens. π_ref is the model that the arm
    starts from, with adapters too. Dropout is off, as TRL has it.

    Each step has `harmful_per_step` behaviours (chosen: the refusal; rejected: the affirmative target) and
    `utility_per_step` utility rows (chosen: the answer; rejected: the refusal).

    `sft_weight` 0 is DPO as published. 1 is that of iterative RPO (2404.19733, equation 1), which keeps the likelihood
    of chosen answers from falling with that of the rejected; a deviation: there the mean is over the tokens of each
    answer, here, as in TRL, over those of all chosen answers of a micro-batch.
    """

    beta: float = 0.1
    sft_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise MechrefusalError(f"dpo beta is {self.beta}: give a number above 0")
        if not self.sft_weight >= 0:
            raise MechrefusalError(f"dpo sft_weight is {self.sft_weight}: give at least 0")


def _trainer(setup: "TrainerSetup") -> "DPOArmTrainer":
    from trl import DPOConfig

    from mechrefusal.training.preference_trainers import DPOArmTrainer, preference_trainer

    own: DPOSettings = setup.arm_settings
    losses = {"sigmoid": 1.0} | ({"sft": own.sft_weight} if own.sft_weight else {})
    config = setup.config(
        DPOConfig, max_length=None, beta=own.beta, loss_type=list(losses), loss_weights=list(losses.values())
    )
    return preference_trainer(setup, config, DPOArmTrainer)


DPO = Arm(
    "dpo",
    _trainer,
    DPOSettings,
    source="2305.18290; TRL DPOTrainer",
    logs=(
        "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected",
    ),
    check=needs_refusals_and_targets("dpo"),
)  # fmt: skip
