"""Who works on what in a folder that several machines share, such that nothing stays taken when a process dies.

A lease is a file that is made exclusively (O_EXCL), which NFS, Lustre, BeeGFS and GPFS do in one step; the locks of a
file system (flock) are on some of these not there, or each machine's own, without a word. It says who holds it, and its
time is touched every few seconds. It is abandoned where its process is gone, which its own machine knows at once, or
where nobody has seen its time change for a while: clocks of machines are not compared.
"""

import hashlib
import json
import os
import platform
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

BEAT = 5.0
"""Seconds between signs of life."""
SILENCE = 60.0
"""Seconds without one after which a process of another machine counts as gone."""


@cache
def machine() -> str:
    """What tells this machine from others, as long as it is up: processes have numbers of their own in a container."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def is_alive(process: int, born: float | None = None) -> bool:
    """Whether a process of this machine runs; `born`: when it was started, since numbers are given again."""
    import psutil

    try:
        found = psutil.Process(process)
        same = born is None or abs(found.create_time() - born) < 1
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # somebody else's


@dataclass(frozen=True)
class Owner:
    """Who holds a lease: a process; `job`: of a queue, which it belongs to. `token`: no other lease has it."""

    machine: str
    host: str
    process: int
    born: float
    job: str = ""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def me(cls) -> "Owner":
        """This process."""
        import psutil

        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
        return cls(machine(), platform.node(), os.getpid(), psutil.Process().create_time(), job)

    @property
    def is_gone(self) -> bool:
        """Whether this machine knows that the process has ended; False where it is another machine's."""
        return self.machine == machine() and not is_alive(self.process, self.born)

    def __str__(self) -> str:
        return f"process {self.process} of {self.host}" + (f", job {self.job}" if self.job else "")


class Lease:
    """A lease that this process holds until `release`, or until it dies."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self.path, self.owner = path, owner

    @classmethod
    def take(cls, path: Path) -> "Lease | None":
        """The lease at a path, or None where it is held. The folder must be there."""
        owner = Owner.me()
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(owner), file)
        _keep_alive(path)
        return cls(path, owner)

    @property
    def is_lost(self) -> bool:
        """Whether others have taken it for abandoned: this process was stopped for too long."""
        found = owner_of(self.path)
        return found is None or found.token != self.owner.token

    def release(self, *, keep: bool = False) -> None:
        """Give it up; with `keep` the file stays, and no one keeps it alive."""
        _let_die(self.path)
        if not keep and not self.is_lost:
            self.path.unlink(missing_ok=True)


def owner_of(path: Path) -> Owner | None:
    """Who holds the lease at a path; None where there is none, or it does not say yet."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Watch:
    """What this process has seen of leases, to tell those that nobody holds any more."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Path, float], float] = {}

    def is_abandoned(self, path: Path) -> bool:
        """Whether the owner of the lease is gone, or was silent since it was first seen so, long ago."""
        if (owner := owner_of(path)) is not None and owner.is_gone:
            return True
        try:
            with path.open("rb") as file:  # opening asks the server, where a look might show what was remembered
                beat = os.fstat(file.fileno()).st_mtime
        except OSError:
            return False
        now = time.monotonic()
        if (path, beat) not in self._seen:
            self._seen = {key: at for key, at in self._seen.items() if key[0] != path}
        return now - self._seen.setdefault((path, beat), now) > SILENCE

    def remove(self, path: Path) -> None:
        """Remove a lease that is abandoned, and no other that has come in its place meanwhile."""
        judged, aside = owner_of(path), path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
        with suppress(OSError):
            path.rename(aside)
            found = owner_of(aside)
            if found is not None and (judged is None or found.token != judged.token):
                os.link(aside, path)  # somebody was faster
            aside.unlink()


_held: set[Path] = set()
_beating = threading.Lock()
_beats: threading.Thread | None = None


def _keep_alive(path: Path) -> None:
    global _beats
    with _beating:
        _held.add(path)
        if _beats is None or not _beats.is_alive():  # a process that was forked has none
            _beats = threading.Thread(target=_beat, name="leases", daemon=True)
            _beats.start()


def _let_die(path: Path) -> None:
    with _beating:
        _held.discard(path)


def _beat() -> None:
    while True:
        time.sleep(BEAT)
        with _beating:
            held = list(_held)
        for path in held:
            with suppress(OSError):
                os.utime(path)
