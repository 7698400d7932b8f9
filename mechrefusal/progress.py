"""Progress bars with counts and time left, silent when the output is not a terminal."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

Item = TypeVar("Item")

IS_FIRST_PROCESS = os.environ.get("RANK", "0") == "0"
"""Whether this process speaks: of those that torchrun or accelerate starts, the first."""

console = Console(stderr=True, quiet=not IS_FIRST_PROCESS)


def say(text: str) -> None:
    """Say what is done, or was, on one line that no terminal breaks."""
    console.print(text, highlight=False, soft_wrap=True)


def tell_once(owner: Any, message: str, *, level: int = logging.WARNING) -> None:
    """Log a message that concerns `owner` (such as a model), the first time that it is said of it."""
    messages = owner.__dict__.setdefault("_mechrefusal_told", set())
    if message not in messages:
        messages.add(message)
        logging.getLogger("mechrefusal").log(level, message)


def be_silent() -> None:
    """Show and say nothing in this process any more: another one speaks for it."""
    global IS_FIRST_PROCESS
    IS_FIRST_PROCESS, console.quiet = False, True


def _display() -> Progress:
    return Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        BarColumn(bar_width=10),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=console,
        expand=True,
        disable=not (console.is_terminal and IS_FIRST_PROCESS),
    )


@contextmanager
def bar(description: str, total: int) -> Iterator["Bar"]:
    """A progress bar over `total` units of work; call `advance()` on what it yields."""
    with _display() as progress:
        yield Bar(progress, progress.add_task(description, total=total))


@contextmanager
def units(description: str, total: int) -> Iterator["Units"]:
    """Progress of units that others take: a bar of all `total` stages, and a line for each unit that is under way."""
    with _display() as progress:
        yield Units(progress, progress.add_task(description, total=total), description)


class Units:
    """Handle on the display of units that are under way."""

    def __init__(self, progress: Progress, whole: TaskID, description: str) -> None:
        self._progress, self._whole, self._description = progress, whole, description
        self._lines: dict[str, TaskID] = {}

    def show(self, rest: str, finished: int, lines: Mapping[str, tuple[str, int, int]]) -> None:
        """Show so many finished stages, and lines by unit: text, finished stages, all stages."""
        self._progress.update(
            self._whole, completed=finished, description=f"{self._description} ({rest})" if rest else self._description
        )
        for unit in [unit for unit in self._lines if unit not in lines]:
            self._progress.remove_task(self._lines.pop(unit))
        for unit, (text, done, total) in lines.items():
            if unit not in self._lines:
                self._lines[unit] = self._progress.add_task(text, total=total)
            self._progress.update(self._lines[unit], description=text, completed=done)


class Bar:
    """Handle on one task of a `rich` progress display."""

    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: int = 1, *, description: str | None = None) -> None:
        """Count `amount` units as done; `description` replaces the text beside the bar."""
        self._progress.update(self._task, advance=amount, description=description)  # type: ignore[arg-type]


def track(items: Sequence[Item] | Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` behind a progress bar."""
    if total is None:
        total = len(items)  # type: ignore[arg-type]
    with bar(description, total) as progress:
        for item in items:
            yield item
            progress.advance()
