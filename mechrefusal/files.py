"""Files that are written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DRAFT = ".mechrefusal-draft-"


def checkpoint_id(arm: str, step: int) -> str:
    """Name of a checkpoint in files and tables, e.g. `sft-step-00050`."""
    return f"{arm}-step-{step:05d}"


def is_disk_trouble(error: Exception) -> bool:
    """Whether a disk or a path is at fault: an OSError, or what safetensors makes of one when it writes."""
    return isinstance(error, OSError) or type(error).__name__ == "SafetensorError"  # importing it would load torch


def sweep(folder: Path | str) -> None:
    """Remove the drafts that killed processes left anywhere below `folder`; those of living processes stay."""
    for draft in sorted(Path(folder).rglob(f"{DRAFT}*")):
        owner = draft.name.removeprefix(DRAFT).split("-")[0]
        if owner.isdigit() and _is_alive(int(owner)):
            continue
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def _draft_prefix(path: Path) -> str:
    return f"{DRAFT}{os.getpid()}-{path.name}."


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
def whole_folder(path: Path | str) -> Iterator[Path]:
    """Like `whole_file` for a folder. An existing folder of that name is replaced at the end, never mixed with."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=_draft_prefix(path), dir=path.parent))
    try:
        yield draft
        draft.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        draft.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
