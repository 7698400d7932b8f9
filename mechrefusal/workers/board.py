"""What is known of the units of a work: who is at them, and what failed. It is all on disk, and no process keeps it.

Below `<folder>/workers/<work>` each attempt at a unit has a lease, `<unit>.<number>.lease`, and notes of its owner. The
number counts up: whoever takes a unit makes the next lease, which one alone can, so that nobody takes from a living
worker what was seen to be free a moment ago. What is finished says the work itself.
"""

import errno
import json
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mechrefusal.errors import MechrefusalError, without_secrets
from mechrefusal.files import is_disk_trouble, whole_file
from mechrefusal.leases import Lease, Owner, owner_of
from mechrefusal.workers.work import Around, Work

FOLDER = "workers"
INPUT, DISK, ERROR, VANISHED = "input", "disk", "error", "vanished"
"""Kinds of failures: what a user can set right, a disk, anything else, a worker that is gone."""
IN_THE_WAY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a disk says that will say the same again."""
TRIES = 20
"""How often a folder is made that others remove as soon as it is empty."""
_NAME = re.compile(r"(?P<unit>.+)\.(?P<number>\d+)\.lease")


@dataclass(frozen=True)
class Failure:
    """Why an attempt at a unit failed: at which stage, by whom, and the file that tells more, if there is one."""

    unit: str
    stage: str
    kind: str
    reason: str
    log: str = ""
    by: str = ""
    number: int | None = None

    @property
    def is_final(self) -> bool:
        """Whether another attempt would fail in the same way."""
        return self.kind == INPUT or (self.kind == DISK and self.number in IN_THE_WAY)

    def __str__(self) -> str:
        where = f" in stage '{self.stage}'" if self.stage else ""
        log = f" (log: {self.log})" if self.log else ""
        return f"{self.unit} failed{where}: {self.reason}{log}"


class LeaseLostError(Exception):
    """Others took this worker for dead, and its unit with it."""


@dataclass(frozen=True)
class Attempt:
    """An attempt at a unit, by its files."""

    unit: str
    number: int
    lease: Path

    @property
    def notes(self) -> Path:
        """The file of what its owner notes."""
        return self.lease.with_suffix(".json")

    @property
    def owner(self) -> Owner | None:
        """Who made it."""
        return owner_of(self.lease)

    def noted(self) -> dict[str, Any]:
        """What its owner has noted: the stage that is taken; how it failed."""
        try:
            return json.loads(self.notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    @property
    def failure(self) -> Failure | None:
        """How it failed, if it did."""
        failed = self.noted().get("failed")
        return Failure(**failed) if failed else None

    def note(self, **content: Any) -> None:
        """Note this, in place of what was noted."""
        with whole_file(self.notes) as draft:
            draft.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def vanished(self, why: str) -> None:
        """Note that its worker is gone."""
        by = str(self.owner or "an unknown process")
        reason = f"its worker is gone ({by}): {why}"
        failed = Failure(self.unit, self.noted().get("stage", ""), VANISHED, reason, by=by)
        self.note(failed=asdict(failed))


@dataclass(frozen=True)
class Look:
    """The units at one moment.

    Fields:
        left: stages left of each, none of those that are finished.
        last: the last attempt at each.
        taken: attempts under way. free: units that can be taken. given_up: how the others failed.
    """

    left: Mapping[str, Sequence[str]]
    last: Mapping[str, Attempt]
    taken: tuple[Attempt, ...]
    free: tuple[str, ...]
    given_up: tuple[Failure, ...]

    @property
    def finished(self) -> list[str]:
        """Units of which nothing is left."""
        return [unit for unit, stages in self.left.items() if not stages]

    @property
    def mark(self) -> tuple[int, int]:
        """A number that changes whenever something was begun or finished."""
        return len(self.finished), sum(attempt.number for attempt in self.last.values())


class Board:
    """The units of a work as this command sees them: attempts before it do not count.

    Fields:
        retries: how often a unit is tried again.
        before: number of the last attempt at each unit when the command was given.
    """

    def __init__(self, work: Work, *, retries: int, before: Mapping[str, int] | None = None) -> None:
        self.work, self.retries = work, retries
        self.folder = work.folder / FOLDER / work.name
        self._make_folder()
        self.before = {unit: each.number for unit, each in self._last().items()} if before is None else dict(before)

    def _make_folder(self) -> None:
        """Make the folder. Another command that ends now may remove what is empty on the way (`close`)."""
        for _ in range(TRIES):
            with suppress(FileNotFoundError):
                self.folder.mkdir(parents=True, exist_ok=True)
                return
        self.folder.mkdir(parents=True, exist_ok=True)

    def _files(self, pattern: str) -> list[Path]:
        """Files in the folder; none where another command has removed it."""
        try:
            return list(self.folder.glob(pattern))
        except FileNotFoundError:
            return []

    def _take(self, path: Path) -> Lease | None:
        """The lease at a path, in a folder that another command may remove while it is empty."""
        for _ in range(TRIES):
            self._make_folder()
            with suppress(FileNotFoundError):
                return Lease.take(path)
        return Lease.take(path)

    def _last(self) -> dict[str, Attempt]:
        last: dict[str, Attempt] = {}
        for path in self._files("*.lease"):
            if found := _NAME.fullmatch(path.name):
                attempt = Attempt(found["unit"], int(found["number"]), path)
                if attempt.unit not in last or last[attempt.unit].number < attempt.number:
                    last[attempt.unit] = attempt
        return last

    def look(self) -> Look:
        """The units now."""
        last, left = self._last(), self.work.left()  # in this order: what is finished later is no more than looked at
        taken, free, given_up = [], [], []
        for unit in (unit for unit, stages in left.items() if stages):
            attempt, before = last.get(unit), self.before.get(unit, 0)
            if attempt is None:
                free.append(unit)
            elif (failure := attempt.failure) is None:
                taken.append(attempt)
            elif attempt.number > before and (failure.is_final or attempt.number - before > self.retries):
                given_up.append(failure)
            else:
                free.append(unit)
        return Look(left, last, tuple(taken), tuple(free), tuple(given_up))

    def claim(self) -> "Claim | None":
        """A unit for this process, or None where there is none to be had."""
        look = self.look()
        for unit in look.free:
            number = look.last[unit].number + 1 if unit in look.last else 1
            attempt = Attempt(unit, number, self.folder / f"{unit}.{number}.lease")
            if (lease := self._take(attempt.lease)) is None:
                continue
            attempt.notes.unlink(missing_ok=True)
            claim = Claim(self, attempt, lease)
            if claim.left:
                return claim
            lease.release()  # it was finished meanwhile
        return None

    def clear(self, unit: str) -> None:
        """Remove the notes on a unit that is finished."""
        for path in self._files("*.*.*"):
            if path.suffix in (".lease", ".json", ".log") and path.name.rsplit(".", 2)[0] == unit:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove what is empty."""
        for folder in (self.folder, self.folder.parent):
            with suppress(OSError):
                folder.rmdir()


class Claim:
    """A unit that this process has taken."""

    def __init__(self, board: Board, attempt: Attempt, lease: Lease) -> None:
        self.board, self.attempt, self.lease = board, attempt, lease
        self.unit, self.stage = attempt.unit, ""
        self.at_first = len(self.left)

    @property
    def left(self) -> Sequence[str]:
        """Its stages that are left."""
        return self.board.work.left().get(self.unit, ())

    def around(self, outer: Around) -> Around:
        """`outer`, and a note of the stage that is taken."""

        @contextmanager
        def noting(stage: str) -> Iterator[None]:
            if self.lease.is_lost or self.attempt.failure is not None:
                raise LeaseLostError
            self.stage = stage
            self.attempt.note(stage=stage)
            with outer(stage):
                yield

        return noting

    def finish(self) -> None:
        """Say that the unit was taken; it failed where something is left of it."""
        if left := self.left:
            self.fail(RuntimeError(f"it ended with these stages left: {', '.join(left)}"))
        else:
            self.lease.release(keep=True)
            self.board.clear(self.unit)

    def fail(self, error: Exception) -> None:
        """Say how the unit failed. The traceback of what nobody expects goes to a file."""
        reason, log = without_secrets(" ".join(str(error).split())), ""
        kind = INPUT if isinstance(error, MechrefusalError) else DISK if is_disk_trouble(error) else ERROR
        if kind != INPUT:
            reason = reason if kind == DISK else f"{type(error).__name__}: {reason}"
            path = self.attempt.lease.with_suffix(".log")
            with suppress(OSError):  # the disk may be what is at fault
                path.write_text(without_secrets("".join(traceback.format_exception(error))), encoding="utf-8")
                log = str(path)
        number = getattr(error, "errno", None)
        failed = Failure(self.unit, self.stage, kind, reason, log, str(self.lease.owner), number)
        self.lease.release(keep=True)
        self.attempt.note(failed=asdict(failed))

    def drop(self) -> None:
        """Give the unit back as if it had not been taken."""
        self.attempt.notes.unlink(missing_ok=True)
        self.lease.release()
