"""What an arm measures on its weights while it trains: directions and means, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mechrefusal.errors import MechrefusalError

State = Mapping[str, Tensor]
"""What was measured, by name."""


@dataclass(frozen=True)
class Measured:
    """Something that is measured on the weights before the first optimiser step, and anew every so many.

    It is kept in the training checkpoints, so that a training that goes on from one ends as one that never stopped.
    Terms and interventions that share one share its name and its numbers.

    Fields:
        name: in training checkpoints and errors.
        measure: what is measured, given the trainer.
        every: optimiser steps between two measurements; 0: it is measured once.
    """

    name: str
    measure: Callable[[Any], State]
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 0:
            raise MechrefusalError(f"'{self.name}' is measured every {self.every} steps: give at least 0, for once")

    def is_due(self, step: int) -> bool:
        """Whether it is to be measured before optimiser step `step` (from 0)."""
        return step % self.every == 0 if self.every else step == 0
