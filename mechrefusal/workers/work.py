"""What workers are given."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

LOADING = "load"
"""Stage of which there is one at a time on a machine: while a model is loaded it takes more than later."""

Around = Callable[[str], AbstractContextManager[None]]
"""What is entered around each stage of a unit, by the stage's name."""


def alone(_: str) -> AbstractContextManager[None]:
    """Around the stages of what runs in this process: nothing."""
    return nullcontext()


class Work(Protocol):
    """Units of work of a folder. It can be pickled; what it needs besides it reads from the folder, and keeps there.

    A unit may be taken again, and by several at once, without harm: what is finished is kept, and not made again.
    """

    @property
    def name(self) -> str:
        """What it is called: the name of a folder of notes, and the verb of messages."""

    @property
    def folder(self) -> Path:
        """The folder that it is done in."""

    def left(self) -> Mapping[str, Sequence[str]]:
        """The stages that are left of each unit, in order, by what is on disk. It is asked every second."""

    def take(self, unit: str, around: Around) -> None:
        """Do what is left of a unit, each stage within `around`."""
