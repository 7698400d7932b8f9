"""Rows of tables to be filled in: nothing where a column may have no value, else 0, False or an empty text."""

from typing import Any

from mechrefusal import tables

_NOTHING = {"int": 0, "bool": False, "str": ""}


def blank(name: str) -> dict[str, Any]:
    """A row of table `name` without values."""
    return {column.name: _NOTHING.get(column.kind) for column in tables.TABLES[name].columns}
