"""Tables of many rows, drawn from their schema: which columns, under which heads, and what each means."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd

from mechrefusal import tables
from mechrefusal.files import checkpoint_id
from mechrefusal.report import wording
from mechrefusal.report.figures import catalogue
from mechrefusal.report.order import checkpoint_order

_SPEC = re.compile(r"(?P<names>[\w+]+)(?:\[(?P<low>\w+),(?P<high>\w+)\])?(?::(?P<format>\w+))?")
LONGEST = 60
"""Characters of a text in a cell; texts of prompts are `text`, which holds more."""

FORMATS: dict[str, Callable[[Any], str]] = {
    "rate": wording.rate,
    "whole": wording.whole,
    "percent": wording.percent,
    "seconds": wording.seconds,
    "grouped": wording.grouped,
    "number": wording.number,
    "one": lambda value: wording.number(value, 1),
    "three": lambda value: wording.number(value, 3),
    "four": lambda value: wording.number(value, 4),
    "change": lambda value: wording.number(value, signed=True),
    "yes": lambda value: wording.MISSING if wording.is_missing(value) else "yes" if value else "no",
    "words": lambda value: wording.readable(wording.shortened(value, LONGEST)),
    "site": lambda value: catalogue.words("site").get(value, wording.readable(value)),
    "suite": lambda value: wording.set_name(wording.shortened(value, LONGEST)),
    "reason": lambda value: wording.readable(wording.plain(value)),
    "text": lambda value: wording.shortened(value, 160),
    "short": lambda value: wording.shortened(value),
    "token": wording.token,
}
_NUMBERS = ("float", "int")


@dataclass(frozen=True)
class Head:
    """Head of a column: its words, and what the schema says of it."""

    words: str
    meaning: str = ""
    is_number: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: text, an interval or another detail beside it, the page that it leads to.

    `heads_of`: the checkpoint whose heads it names.
    """

    text: str
    detail: str = ""
    page: str = ""
    is_strong: bool = False
    is_number: bool = False
    heads_of: str = ""


@dataclass(frozen=True)
class Grid:
    """A table as a page shows it; `left_out` counts rows that are not shown."""

    heads: list[Head]
    rows: list[list[Cell]]
    left_out: int = 0

    def __bool__(self) -> bool:
        return bool(self.rows)


def grid(table: pd.DataFrame, columns: Mapping[str, str], *, name: str = "", most: int = 200) -> Grid:
    """Rows of a table under these heads.

    Args:
        columns: by `column`, `column[low,high]` (with an interval) or `arm+step` (joined), each with an optional
            `:format` of `FORMATS`, the head. `:page` links to the page of a checkpoint; `:change` is a signed number,
            strong where its interval excludes 0.
        name: table of the schema that says what the columns mean.
        most: rows that are shown at most.
    """
    specs = [match for spec in columns if (match := _SPEC.fullmatch(spec))]
    known = meanings(name)
    heads = [
        Head(words, known.get(spec["names"].split("+")[0], ""), _is_number(table, spec))
        for spec, words in zip(specs, columns.values(), strict=True)
    ]
    rows = [[_cell(row, spec, head) for spec, head in zip(specs, heads, strict=True)] for row in _records(table, most)]
    return Grid(heads, rows, max(0, len(table) - most))


@dataclass(frozen=True)
class Pivot:
    """A table with one row a checkpoint, and its columns as `grid` takes them."""

    table: pd.DataFrame
    columns: dict[str, str]


def pivot(rows: pd.DataFrame, keys: Sequence[str], wanted: Mapping[Any, str]) -> Pivot:
    """Rates of a tidy table side by side: each with its interval and, where it is known, its correction.

    Args:
        rows: `value`, `low`, `high`, `n`, `nulls`, and `corrected` where there is one.
        keys: columns that a row of the result has; where arm and step are among them, rows go by checkpoint.
        wanted: (column, value, column, value, ...) that a rate has, and what it is called. `n` and `nulls` are those of
            the rates in their order, `24/23` where they differ.
    """
    chosen = {}
    for place, key in enumerate(wanted):
        matching = rows
        for column, value in zip(key[::2], key[1::2], strict=True):
            matching = matching[matching[column] == value]
        chosen[f"rate{place}"] = matching.drop_duplicates(list(keys)).set_index(list(keys))
    lines = rows[list(keys)].drop_duplicates()
    table = lines.reset_index(drop=True)
    counts: dict[str, list[Any]] = {"n": [], "nulls": []}
    columns: dict[str, str] = {}
    for name, words in zip(chosen, wanted.values(), strict=True):
        of_name = chosen[name].reindex(pd.MultiIndex.from_frame(lines))
        known = {f"{name}_{end}": of_name[end].to_numpy() for end in ("low", "high")} | {
            name: of_name["value"].to_numpy()
        }
        columns[f"{name}[{name}_low,{name}_high]:rate"] = words
        if "corrected" in of_name and of_name["corrected"].notna().any():
            known |= {f"{name}c{end}": of_name[f"corrected{end}"].to_numpy() for end in ("", "_low", "_high")}
            columns[f"{name}c[{name}c_low,{name}c_high]:rate"] = f"{words}, corrected"
        table = table.assign(**known)
        for count, values in counts.items():
            values.append(of_name[count].to_numpy())
    for count, values in counts.items():
        shown = [
            [wording.whole(each[place]) for each in values if not wording.is_missing(each[place])]
            for place in range(len(lines))
        ]
        table[count] = ["/".join(dict.fromkeys(texts)) or wording.MISSING for texts in shown]
    ordered = _in_order(table) if "arm" in keys else table
    return Pivot(ordered, columns | {"n": "n", "nulls": "nulls"})


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by checkpoint, those without attack and intervention first."""
    rows = _records(table, len(table))

    def place(number: int) -> tuple:
        row = rows[number]
        under = [(row.get(name, "none") != "none", str(row.get(name, ""))) for name in ("attack", "intervention")]
        return (*checkpoint_order((str(row["arm"]), row["step"])), *under)

    return table.iloc[sorted(range(len(rows)), key=place)]


def _records(table: pd.DataFrame, most: int) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.head(most).to_dict("records")]


@cache
def meanings(name: str) -> dict[str, str]:
    """What the columns of a table mean, by their names; nothing where the schema has no such table."""
    if name not in tables.TABLES:
        return {}
    described = tables.describe(name)
    return dict(zip(described["column"], described["meaning"], strict=True))


def _is_number(table: pd.DataFrame, spec: re.Match[str]) -> bool:
    name = spec["names"]
    return name in table and pd.api.types.is_numeric_dtype(table[name]) and spec["format"] != "page"


def _cell(row: Mapping[str, Any], spec: re.Match[str], head: Head) -> Cell:
    names, chosen = spec["names"].split("+"), spec["format"]
    if len(names) > 1:
        text = " ".join(wording.shortened(row[name], 40) for name in names if not wording.is_missing(row[name]))
        page = checkpoint_id(str(row[names[0]]), int(row[names[1]])) if chosen == "page" else ""
        return Cell(text, page=page)
    value = row[names[0]]
    is_strong, detail = False, ""
    if spec["low"] and not wording.is_missing(value):
        low, high = row[spec["low"]], row[spec["high"]]
        detail = (
            wording.rate_interval(low, high)
            if chosen == "rate"
            else wording.ends(low, high, 3 if chosen == "three" else 2)
        )
        is_strong = chosen == "change" and not wording.is_missing(low) and bool(low > 0 or high < 0)
    if chosen is None:
        chosen = "text" if not head.is_number else "whole" if isinstance(value, int) else "number"
    return Cell(FORMATS[chosen](value), detail, is_strong=is_strong, is_number=head.is_number)
