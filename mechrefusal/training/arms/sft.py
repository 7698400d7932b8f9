"""Plain supervised fine-tuning: utility rows and static refusals in one loss."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechrefusal.errors import MechrefusalError
from mechrefusal.training.arm import Arm

if TYPE_CHECKING:
    from mechrefusal.training.trainer_setup import TrainerSetup


@dataclass(frozen=True)
class SFTSettings:
    """How plain SFT weighs its refusals (`harmful_per_step` of them in each step).

    `refusal_weight` is the weight of the static refusals as a term of their own, the mean over their tokens, as `r2d2`
    weighs its refusals by `toward_weight`. Null, TRL's own loss: refusals share one mean over all tokens of the step
    with utility, so that they count by their share of the tokens (a refusal is short); so they do in the warm-up.
    """

    refusal_weight: float | None = None

    def __post_init__(self) -> None:
        if self.refusal_weight is not None and not self.refusal_weight >= 0:
            raise MechrefusalError(f"sft refusal_weight is {self.refusal_weight}: give at least 0")


def _trainer(setup: "TrainerSetup"):
    return setup.trainer(
        static_refusals=setup.settings.harmful_per_step, refusal_weight=setup.arm_settings.refusal_weight
    )


SFT = Arm("sft", _trainer, SFTSettings, source="TRL SFTTrainer")
