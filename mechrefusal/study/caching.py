"""What a stage gave, kept on disk: read where it was made from the same inputs and is whole, else made.

The manifest holds an entry for each unit (a stage, and what it is of) that is finished: the stamp of its inputs, the
hashes of its files, the seconds that it took, and a note. `Run.cached` is what reads and writes it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pandas as pd

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError


class Saved(Protocol):
    """What can be written to a file, whole or not at all."""

    def save(self, path: Path) -> Path:
        """Write the content to `path`, whole or not at all, and return the path."""


@dataclass(frozen=True)
class Written:
    """A file that the stage has written by itself, whole.

    `shared`: others add to it too, so that it is finished where it is there, whatever stands in it.
    """

    shared: bool = False


Inputs = dict[str, Any]
"""Plain data that a result hangs on."""

Content: TypeAlias = pd.DataFrame | Saved | Written | None
"""What a file of a unit is to hold: a table (the file's name is its schema's), what saves itself, or what was written;
None: the file must not be there."""


@dataclass(frozen=True)
class Made:
    """What a stage has made: the content of every file that it may give, and why it is not all that was asked for."""

    files: Mapping[Path, Content]
    note: str = ""


@dataclass(frozen=True)
class Unit:
    """A unit that is finished.

    Fields:
        folder: the run's. files: hash of each file, by its path below the folder; empty where others add to the file.
        stamp: fingerprint of the inputs that it was made from.
        seconds: how long it took. note: why it is not all that was asked for.
    """

    folder: Path
    stamp: str
    files: Mapping[str, str]
    seconds: float
    note: str

    @property
    def is_whole(self) -> bool:
        """Whether every file is what was written."""
        return all(self.holds(path) for path in self.files)

    def holds(self, path: str) -> bool:
        """Whether the file at this path below the folder is what was written."""
        sha, file = self.files[path], self.folder / path
        return file.is_file() and sha in ("", file_hash(file))

    def table(self, name: str) -> pd.DataFrame:
        """The table of schema `name` among the files.

        Raises:
            MechrefusalError: there is none.
        """
        for path in map(Path, self.files):
            if path.name == f"{name}.parquet":
                return tables.read(name, self.folder / path.parent)
        raise MechrefusalError(f"there is no table '{name}' among {', '.join(self.files)}: measure again")


def write(path: Path, content: Content) -> str | None:
    """Write a file of a unit, whole; its hash for the manifest, or None where there is to be no file."""
    if content is None:
        path.unlink(missing_ok=True)
        return None
    if isinstance(content, pd.DataFrame):
        tables.write(content, path.stem, path.parent)
    elif not isinstance(content, Written):
        content.save(path)
    elif content.shared:
        return ""
    return file_hash(path)


def file_hash(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def fingerprint(value: Any) -> str:
    """Hash of plain data (what JSON holds), to tell whether it is still the same."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
