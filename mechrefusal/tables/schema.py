"""The schema of every table: which columns it has, of what dtype, and what they mean.

It is written in `columns/*.yaml`. An entry is a name, or several that share a meaning, and the kind before the meaning:
`layer_low, layer_high: int? 95% interval of the layer`. Kinds:

    float   number, NaN where there is none
    int     whole number                            int?    or no value (pandas' Int64, <NA>)
    bool    True or False                           bool?   or no value (pandas' boolean, <NA>)
    str     text, "" where there is none            str?    text that may be "" and may be missing (NaN)
    str(a, b)   "a", "b", or "" where there is none

Tables of one checkpoint begin with the columns of `CHECKPOINT`. Rates carry `n`, `low` and `high` (95% interval).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import yaml

from mechrefusal.errors import MechrefusalError

CHECKPOINT = {
    "arm": "str base at step 0, warm-up, or the arm that trained it",
    "step": "int optimiser steps",
    "weights": "str hash of the checkpoint that was measured",
}
DTYPES = {
    "float": "float64",
    "int": "int64",
    "int?": "Int64",
    "bool": "bool",
    "bool?": "boolean",
    "str": "str",
    "str?": "str",
}
_ENTRY = re.compile(r"(?P<kind>(?:float|int|bool|str)\??)(?:\((?P<allowed>[^)]+)\))? (?P<meaning>.+)")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Fields:
        kind: a key of `DTYPES`.
        meaning: one sentence, with the unit.
        allowed: the texts that it may hold besides the empty one; none where any text may stand there.
    """

    name: str
    kind: str
    meaning: str
    allowed: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """Its pandas dtype."""
        return DTYPES[self.kind]


@dataclass(frozen=True)
class Table:
    """A table: what a row is, its columns in order, and the file of `columns` that describes it."""

    name: str
    rows: str
    columns: tuple[Column, ...]
    per_checkpoint: bool
    file: str


def _read(*names: str, per_checkpoint: bool) -> Iterator[Table]:
    folder = files("mechrefusal.tables") / "columns"
    for name in names:
        described = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")) or {}
        for table, description in described.items():
            entries = (CHECKPOINT if per_checkpoint else {}) | description["columns"]
            columns = [column for names, entry in entries.items() for column in _columns(table, names, entry)]
            yield Table(table, description["rows"], tuple(columns), per_checkpoint, name)


def _columns(table: str, names: str, entry: str) -> Iterator[Column]:
    match = _ENTRY.fullmatch(entry)
    if match is None or match["kind"] not in DTYPES:
        raise MechrefusalError(
            f"column '{names}' of table '{table}' is described as '{entry}': begin with one of {', '.join(DTYPES)}"
        )
    allowed = tuple(match["allowed"].split(", ")) if match["allowed"] else ()
    for name in names.split(", "):
        yield Column(name, match["kind"], match["meaning"], allowed)


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        *_read("behaviour", "geometry", "cause", "durability", per_checkpoint=True),
        *_read("training", "movement", "durability_pairs", "evaluation", per_checkpoint=False),
    )
}
PER_CHECKPOINT = tuple(name for name, table in TABLES.items() if table.per_checkpoint)
"""Names of the tables that every measured checkpoint has."""
ACROSS = tuple(name for name, table in TABLES.items() if not table.per_checkpoint)
"""Names of the tables that a run has one of."""


DURABILITY = tuple(name for name, table in TABLES.items() if table.file.startswith("durability"))
"""Names of the tables on what it takes to remove refusal."""


def table_of(name: str) -> Table:
    """The schema of table `name`."""
    if name not in TABLES:
        raise MechrefusalError(f"unknown table '{name}': expected one of {', '.join(TABLES)}")
    return TABLES[name]


def columns(name: str) -> tuple[str, ...]:
    """Column names of table `name`, in order."""
    return tuple(column.name for column in table_of(name).columns)
