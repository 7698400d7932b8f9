"""What an arm is: a name, settings of its own, and a trainer. All else is the same for every arm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechrefusal.prompts import PromptSet
    from mechrefusal.training.arm_training import ArmTraining
    from mechrefusal.training.settings import TrainingSettings
    from mechrefusal.training.trainer_setup import TrainerSetup


@dataclass(frozen=True)
class NoSettings:
    """The settings of an arm that has none of its own."""


@dataclass(frozen=True)
class Arm:
    """An arm of a study, as a file in `arms/` or a cell of a notebook describes it.

    Fields:
        name: in recipes, tables and folders.
        trainer: makes its trainer, with `TrainerSetup.trainer` or from `TrainerSetup.arguments`.
        settings: frozen dataclass of its own settings, whose defaults are the published ones, checked when made.
        source: where the method is published.
        logs: metrics of its trainer that table `terms` keeps beside its terms, without a weight.
        check: raises `MechrefusalError` for what the arm lacks, before anything is written, given its settings, those
            of training and the behaviours; None: it lacks nothing that other arms have.
    """

    name: str
    trainer: "Callable[[TrainerSetup], ArmTraining]"
    settings: type = NoSettings
    source: str = ""
    logs: tuple[str, ...] = ()
    check: "Callable[[Any, TrainingSettings, PromptSet], None] | None" = None
