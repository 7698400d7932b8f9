"""Where the time of a step goes, and how much memory it took."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from mechrefusal.devices import most_allocated, synchronise


class Clock:
    """Seconds by part of a step, added up until they are taken. Nested parts count for the inner one alone."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._inner = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the block under `name`."""
        outer, self._inner = self._inner, 0.0
        started = self._now()
        try:
            yield
        finally:
            spent = self._now() - started
            self._seconds[name] = self._seconds.get(name, 0.0) + spent - self._inner
            self._inner = outer + spent

    def take(self) -> dict[str, float]:
        """Seconds by part since they were last taken."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _now(self) -> float:
        synchronise(self._device)
        return time.perf_counter()


class StepTimes(TrainerCallback):
    """Times the optimiser by an `ArmTrainer`'s clock, and tells the trainer where a training begins or goes on."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._part: Any = nullcontext()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """What is logged begins here."""
        self._trainer.logged_at(state.global_step)

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._part = self._trainer.clock.part("optimizer")
        self._part.__enter__()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Stop it."""
        self._part.__exit__(None, None, None)


def peak_mib(device: torch.device) -> float:
    """Highest memory so far, MiB: of the accelerator where the model is on one, else of the process."""
    if (taken := most_allocated(device)) is not None:
        return taken / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
