"""How workers are started and watched. All of them do the same: `worker.take_all`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mechrefusal.leases import Owner
from mechrefusal.workers.board import Board
from mechrefusal.workers.worker import take_one


class Executor:
    """Starts workers of a board, at most `n` at once, and knows which of them are there."""

    n = 1
    tell: Callable[[], None] = staticmethod(lambda: None)
    """Called as each stage begins, where this process is the worker."""

    def start(self, n: int) -> None:
        """Start so many more."""
        raise NotImplementedError

    def alive(self) -> int:
        """Workers that are there, or are waited for."""
        return 0

    def waiting(self) -> int:
        """Those of them that are waited for, in a queue."""
        return 0

    def owns(self, owner: Owner) -> bool:
        """Whether this is one of its workers."""
        return False

    def ended(self, owner: Owner) -> str:
        """Why one of its workers is gone; empty where it is not, or that is not known."""
        return ""

    def last_words(self) -> str:
        """What is known of workers that have ended."""
        return ""

    def wait(self) -> None:
        """Wait a moment, or until a worker has ended."""
        time.sleep(0.2)

    def stop(self) -> None:
        """End all workers."""


class Here(Executor):
    """One worker, which is this process: to start it is to take a unit. `raising`: as `take_one` has it."""

    def __init__(self, board: Board, *, raising: bool) -> None:
        self.board, self.raising = board, raising

    def start(self, n: int) -> None:
        """Take a unit."""
        take_one(self.board, self._around, raising=self.raising)

    @contextmanager
    def _around(self, stage: str) -> Iterator[None]:
        self.tell()
        yield
