"""KTO, Kahneman-Tversky optimisation (2402.01306): answers that are desirable or not, each by itself."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechrefusal.errors import MechrefusalError
from mechrefusal.training.arm import Arm
from mechrefusal.training.needs import needs_refusals_and_targets

if TYPE_CHECKING:
    from mechrefusal.training.preference_trainers import KTOArmTrainer
    from mechrefusal.training.trainer_setup import TrainerSetup


@dataclass(frozen=True)
class KTOSettings:
    """KTO (2402.01306, equation 7). The published learning rate, 1e-6, is the recipe's.

    With r = log π − log π_ref of an answer, loss = `desirable_weight` · (1 − σ(β·(r − z))) of a desirable answer and
    `undesirable_weight` · (1 − σ(β·(z − r))) of another, the mean over answers. z, the point of reference, is the mean
    of r over mismatched prompts and answers of the micro-batch, at least 0, and has no gradient. π_ref is the model
    that the arm starts from, with adapters too. Dropout is off, as TRL has it.

    Each step has the refusal (desirable) and the affirmative target (undesirable) of `harmful_per_step` behaviours, the
    answer (desirable) and the refusal (undesirable) of `utility_per_step` utility rows: as many of either kind, which
    is what weights of 1 are for. A micro-batch estimates its own z, so `gradient_accumulation` makes it noisier.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta", "desirable_weight", "undesirable_weight"):
            if not getattr(self, name) > 0:
                raise MechrefusalError(f"kto {name} is {getattr(self, name)}: give a number above 0")


def _trainer(setup: "TrainerSetup") -> "KTOArmTrainer":
    from trl import KTOConfig

    from mechrefusal.training.preference_trainers import KTOArmTrainer, preference_trainer

    own: KTOSettings = setup.arm_settings
    config = setup.config(
        KTOConfig,
        max_length=None,
        beta=own.beta,
        desirable_weight=own.desirable_weight,
        undesirable_weight=own.undesirable_weight,
    )
    return preference_trainer(setup, config, KTOArmTrainer)


KTO = Arm(
    "kto",
    _trainer,
    KTOSettings,
    source="2402.01306; TRL KTOTrainer",
    logs=("rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "kl"),
    check=needs_refusals_and_targets("kto"),
)
