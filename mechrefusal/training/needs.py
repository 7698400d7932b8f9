"""What an arm may need of its behaviours and settings, named before anything is written. Imports no trainer."""

from collections.abc import Callable
from typing import Any

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PromptSet
from mechrefusal.training.settings import TrainingSettings


def needs_refusals_and_targets(arm: str) -> Callable[[Any, TrainingSettings, PromptSet], None]:
    """The `Arm.check` of an arm that learns to prefer refusals to targets."""

    def check(own: Any, settings: TrainingSettings, behaviours: PromptSet) -> None:
        require_harmful(arm, settings)
        require_targets(arm, behaviours)

    return check


def require_targets(arm: str, behaviours: PromptSet) -> None:
    """Raise a MechrefusalError unless every behaviour has a target, which the arm is to learn not to begin with."""
    for id, target in zip(behaviours.ids, behaviours.targets, strict=True):
        if not target.strip():
            raise MechrefusalError(
                f"behaviour '{id}' has no target, which arm '{arm}' rejects: give behaviours.with_targets()"
            )


def require_harmful(arm: str, settings: TrainingSettings) -> None:
    """Raise a MechrefusalError unless there are behaviours in each step."""
    if not settings.harmful_per_step:
        raise MechrefusalError(
            f"training harmful_per_step is 0: arm '{arm}' needs behaviours in each step, 1 or more a micro-batch"
        )
