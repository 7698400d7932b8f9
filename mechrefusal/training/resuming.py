"""A training that was stopped goes on: what there is of it on disk, and whether it is the same training."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import sweep, whole_file

STATE, LOG = "unfinished", "log"
"""Folders beside the anchors: the training checkpoints of an arm that is not complete, and its tables."""


def note_unfinished(out: Path, fingerprint: str) -> None:
    """Note in `out` which training its checkpoints are of."""
    _write_fingerprint(out / STATE / "of.json", fingerprint)


def note_complete(out: Path, fingerprint: str) -> None:
    """Note in `out` that its training is complete; its checkpoints go."""
    _write_fingerprint(out / LOG / "complete.json", fingerprint)
    shutil.rmtree(out / STATE, ignore_errors=True)


def is_complete(out: Path, fingerprint: str) -> bool:
    """Whether this very training is complete in `out`."""
    note = out / LOG / "complete.json"
    return note.is_file() and json.loads(note.read_text(encoding="utf-8")).get("fingerprint") == fingerprint


def checkpoint_to_resume(out: Path, fingerprint: str) -> str | None:
    """The last training checkpoint in `out`; None where the training is to begin.

    Raises:
        MechrefusalError: it is of another training.
    """
    state = out / STATE
    note = state / "of.json"
    if not note.is_file():
        shutil.rmtree(state, ignore_errors=True)
        return None
    sweep(state)
    try:
        known = json.loads(note.read_text(encoding="utf-8")).get("fingerprint")
    except ValueError:
        known = None
    if known != fingerprint:
        raise MechrefusalError(
            f"'{state}' holds an unfinished training of another model, other rows or other settings: go on with "
            "those, delete the folder, or give another one"
        )
    return get_last_checkpoint(str(state))


@contextmanager
def empty_folder_removed(folder: Path) -> Iterator[None]:
    """Transformers makes the folder of its checkpoints at once; where the rest fails it is not left behind."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it holds something, or is not there
            folder.rmdir()
        raise


def _write_fingerprint(note: Path, fingerprint: str) -> None:
    with whole_file(note) as draft:
        draft.write_text(json.dumps({"fingerprint": fingerprint}), encoding="utf-8")
