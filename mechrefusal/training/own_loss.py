"""Arms whose loss is the one that their trainer of TRL publishes, and no sum of terms."""

from typing import Any

from torch import Tensor

from mechrefusal.training.arm_training import ArmTraining
from mechrefusal.training.finite import require_finite_loss


class OwnLoss(ArmTraining):
    """A trainer with a loss of its own, which stops where the loss is not finite.

    It stands before a trainer of TRL among the bases of a class; what that trainer logs and `Arm.logs` names stands in
    the table `terms`, without a weight.
    """

    def tree_trouble(self) -> str:
        """Nothing to say: no such arm runs its rows as a tree."""
        return ""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's; what is neither forward pass nor sampling counts as backward pass."""
        with self.clock.part("backward"):
            return super().training_step(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's.

        Raises:
            MechrefusalError: it is not finite.
        """
        with self.clock.part("forward"):
            loss = super().compute_loss(*args, **kwargs)
        if isinstance(loss, Tensor) and self.model.training:
            require_finite_loss(self._name.lower(), loss, step=self.state.global_step + 1)
        return loss
