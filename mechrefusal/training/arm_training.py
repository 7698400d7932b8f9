"""What every arm's trainer has in common, whichever trainer of TRL it is: its log, its clock, its checkpoints."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mechrefusal.attacks import AttackCase
from mechrefusal.training.clock import Clock, StepTimes, peak_mib
from mechrefusal.training.finite import FiniteGradients
from mechrefusal.training.sharding import require_usable, shard_on_cpu
from mechrefusal.training.term_means import TermMeans
from mechrefusal.training.whole_checkpoints import WholeCheckpoints


class ArmTraining(WholeCheckpoints):
    """A trainer that logs where its time goes, stops at the first gradient that is not finite, and can be resumed.

    It stands before a trainer of TRL among the bases of a class; `SftTrainer`s of the project are `ArmTrainer`s.
    """

    def __init__(self, *args: Any, callbacks: list[TrainerCallback] | None = None, **kwargs: Any) -> None:
        own = [_StepBegin(self), StepTimes(self), FiniteGradients()]
        super().__init__(*args, callbacks=[*(callbacks or []), *own], **kwargs)
        require_usable(self)
        self.clock = Clock(self.accelerator.device)
        self.term_means = TermMeans()
        self.refreshes: list[dict[str, Any]] = []
        self._logged_at = 0

    def create_accelerator_and_postprocess(self) -> None:
        """Transformers' own, on a CPU too."""
        shard_on_cpu()
        super().create_accelerator_and_postprocess()

    def begin_step(self) -> None:
        """What an arm does at the start of each optimiser step, before its first micro-batch."""

    @property
    def cases(self) -> list[AttackCase]:
        """The attacked cases that this arm trains on; none unless it has a pool."""
        return []

    @property
    def tree(self) -> bool:
        """Whether the training rows are run as a token tree."""
        return False

    def decide_tree(self) -> None:
        """Run a token tree wherever the model and the settings allow it, whatever the config says."""

    def tree_trouble(self) -> str:
        """Why the loss must be TRL's own; empty where it need not be."""
        return "whose loss is this arm's"

    def save_results(self, folder: Path) -> None:
        """Write what this arm leaves beside its anchors and its log. One process calls it."""

    def weights_of_terms(self) -> dict[str, float]:
        """The weight of every logged term; NaN for a figure that is logged and not trained on."""
        return {}

    def logged_at(self, step: int) -> None:
        """Forget what was counted: the next log covers the steps after `step`."""
        self._logged_at, self.term_means = step, TermMeans()
        self.clock.take()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the mean of each term since the last log, and the seconds a step of its parts, beside TRL's metrics."""
        if "loss" in logs:
            steps = max(1, self.state.global_step - self._logged_at)
            self._logged_at = self.state.global_step
            logs |= self.term_means.take(self._logged_terms(), self.accelerator)
            logs |= {f"seconds_{name}": seconds / steps for name, seconds in self.clock.take().items()}
            logs["peak_mib"] = peak_mib(self.accelerator.device)
        super().log(logs, start_time)

    def _logged_terms(self) -> list[str]:
        """Names of the terms whose means are logged: the same on every process, whatever rows it had."""
        return []


class _StepBegin(TrainerCallback):
    """Calls `begin_step` once an optimiser step, before its first micro-batch."""

    def __init__(self, trainer: ArmTraining) -> None:
        self._trainer = trainer

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Draw, attack, measure."""
        with self._trainer.clock.part("refresh"):
            self._trainer.begin_step()
