"""A training that diverges stops at the first number that is not finite, with the step and the remedy."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from mechrefusal.errors import MechrefusalError
from mechrefusal.training.sharding import own_part

REMEDY = "the training diverged; lower learning_rate, or train in float32"


def require_finite_loss(name: str, loss: Tensor, *, step: int) -> None:
    """Raise a MechrefusalError that names the step and the term, unless `loss` is finite."""
    if not torch.isfinite(loss).all():
        value = float(loss.detach().float().sum())
        raise MechrefusalError(f"loss term '{name}' is {value} at step {step}: {REMEDY}")


def require_finite_weights(model: nn.Module, step: int) -> None:
    """Raise a MechrefusalError for weights that are not finite: they are not to take the place of good ones on disk.

    Of sharded weights each process looks at its own part: one that raises ends all of them.
    """
    if not _are_finite([weight.detach() for weight in model.parameters()]):
        raise MechrefusalError(f"the weights are not finite after step {step}: {REMEDY}")


class FiniteGradients(TrainerCallback):
    """Stops before an optimiser step that would write NaN into the weights."""

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Check every gradient once, after clipping."""
        gradients = [weight.grad for weight in kwargs["model"].parameters() if weight.grad is not None]
        if not gradients or args.fp16:  # sharded elsewhere; the loss scaler of fp16 skips such steps itself
            return
        if not _are_finite(gradients):
            raise MechrefusalError(f"the gradient is not finite at step {state.global_step + 1}: {REMEDY}")


def _are_finite(tensors: list[Tensor]) -> bool:
    own = [part for tensor in tensors if (part := own_part(tensor)).numel()]
    return not own or bool(torch.isfinite(torch.stack(torch._foreach_norm(own))).all())
