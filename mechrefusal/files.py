"""Files that are written whole or not at all."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mechrefusal.errors import MechrefusalError
from mechrefusal.leases import Lease, Watch, is_alive, machine

DRAFT = ".mechrefusal-draft-"
LOCK, LEASE = "lock", "lease"
"""Drafts that say that something is being made."""
ABANDONED = 24 * 3600
"""Seconds after which a draft of another machine, of whose processes nothing is known here, counts as left behind."""


def checkpoint_id(arm: str, step: int) -> str:
    """Name of a checkpoint in files and tables, e.g. `sft-step-00050`."""
    return f"{arm}-step-{step:05d}"


def is_disk_trouble(error: Exception) -> bool:
    """Whether a disk or a path is at fault: the system's word on a file, or what safetensors makes of one.

    Connections, pipes and processes have OSErrors too, and libraries raise it for anything: without a number it is none
    of the system's.
    """
    if isinstance(error, (ConnectionError, ChildProcessError, ProcessLookupError)):
        return False
    # Importing safetensors would load torch.
    return (isinstance(error, OSError) and error.errno is not None) or type(error).__name__ == "SafetensorError"


def require_writable(*paths: Path | str, folder: bool = False) -> None:
    """Raise MechrefusalError where one of these files could not be written whole; it is tried, and nothing is left.

    Args:
        folder: the paths are folders that files are to be written to.
    """
    for path in map(Path, paths):
        if not folder and os.path.isdir(path):  # False for what cannot be looked at
            raise MechrefusalError(f"'{path}' is a folder: give the path of a file")
        try:
            _try_to_write(path / "file" if folder else path)
        except OSError as error:
            raise MechrefusalError(
                f"cannot write '{path}' ({error.strerror or error}): free this path, or give another"
            ) from error


def _try_to_write(path: Path) -> None:
    folder, missing = path.absolute().parent, [path.name]
    while not os.path.lexists(folder):
        folder, missing = folder.parent, [folder.name, *missing]
    for name in missing[:-1]:
        with suppress(FileNotFoundError):
            (folder / name).lstat()  # too long a name is found out so
    handle, draft = tempfile.mkstemp(prefix=_draft_prefix(path), suffix=path.suffix, dir=folder)
    os.close(handle)
    os.unlink(draft)


def sweep(folder: Path | str) -> None:
    """Remove the drafts that killed processes left anywhere below `folder`; those of living processes stay.

    Those of other machines stay for a day, and locks that are held.
    """
    for draft in sorted(Path(folder).rglob(f"{DRAFT}*")):
        if not _is_left_behind(draft):
            continue
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def _is_left_behind(draft: Path) -> bool:
    owner = draft.name.removeprefix(DRAFT).split("-")[0]
    process, _, of_machine = owner.partition("x")
    if owner == LEASE:
        return Watch().is_abandoned(draft)
    if owner == LOCK:
        return _is_free(draft)
    if of_machine not in ("", machine()):
        with suppress(OSError):
            return time.time() - draft.stat().st_mtime > ABANDONED
        return False
    return not (process.isdigit() and is_alive(int(process)))


def _is_free(lock: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return True
    except (Timeout, OSError, NotImplementedError):
        return False


def _draft_prefix(path: Path) -> str:
    return f"{DRAFT}{os.getpid()}x{machine()}-{path.name}."


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name `path` only if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_draft_prefix(path), suffix=path.suffix, dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        draft.chmod(0o644)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: Path | str) -> Iterator[Path]:
    """A folder below `parent` for what is only tried; it goes at the end."""
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_draft_prefix(Path("trial")), dir=parent) as name:
        yield Path(name)


@contextmanager
def whole_folder(path: Path | str, *, unless: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """Like `whole_file` for a folder. An existing folder of that name is replaced at the end, never mixed with.

    Args:
        unless: asked at the end; where it is true, what stands there stays and the draft goes: another process was
            faster.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=_draft_prefix(path), dir=path.parent))
    try:
        yield draft
        draft.chmod(0o755)
        if not unless():
            _take_place(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _take_place(draft: Path, path: Path) -> None:
    """Give the folder `draft` the name `path`, whatever has it, and whoever else is doing the same."""
    while True:
        try:
            draft.replace(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        # A folder that holds something is moved away in one step: nobody sees half of it, and only one succeeds.
        aside = Path(tempfile.mkdtemp(prefix=_draft_prefix(path), dir=path.parent))
        with suppress(FileNotFoundError):
            path.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def one_at_a_time(path: Path | str) -> Iterator[None]:
    """Wait until no other process is making `path`, and keep others waiting until the block ends.

    Processes of a machine wait for a lock of the file system, those of several for a lease beside it (see `leases`):
    not every file system that machines share has locks that hold for all of them.
    """
    from filelock import FileLock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, taken = (path.with_name(f"{DRAFT}{kind}-{path.name}") for kind in (LOCK, LEASE))
    with ExitStack() as held:
        with suppress(NotImplementedError):  # a file system without locks
            held.enter_context(FileLock(lock))
            held.callback(_remove, lock)  # while it is held: whoever waits for it looks whether it is still there
        watch = Watch()
        while (lease := Lease.take(taken)) is None:
            if watch.is_abandoned(taken):
                watch.remove(taken)
            else:
                time.sleep(0.02)
        held.callback(lease.release)
        yield


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()
