"""Tables as pandas frames of exactly their schema, written to parquet and read from it."""

from collections.abc import Iterable, Mapping
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pandas.api import types

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file
from mechrefusal.tables.schema import Column, columns, table_of


def describe(name: str) -> pd.DataFrame:
    """What the columns of table `name` mean: column, dtype, meaning (and the values it may hold, where they are fixed).

    In a notebook: `mr.tables.describe("carrier")`.
    """
    rows = [
        {
            "column": column.name,
            "dtype": column.dtype,
            "meaning": column.meaning + (f" ({', '.join(column.allowed)})" if column.allowed else ""),
        }
        for column in table_of(name).columns
    ]
    return pd.DataFrame(rows)


def frame(name: str, rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Rows as a table of schema `name`: its columns in order, each of its dtype, also without rows or values.

    None, NaN and <NA> alike are no value; what that becomes is said in `schema`.

    Raises:
        MechrefusalError: a missing or an extra column; a value that the column does not take, or none where one must
            be.
    """
    wanted = columns(name)
    rows = rows if isinstance(rows, pd.DataFrame) else list(rows)
    if not len(rows):
        return _empty(name).copy()
    untyped = pd.DataFrame(rows)
    missing, extra = [c for c in wanted if c not in untyped], [c for c in untyped if c not in wanted]
    if missing or extra:
        raise MechrefusalError(
            f"table '{name}' does not fit its schema: missing columns {missing}, extra columns {extra}"
        )
    given = {column: untyped[column] for column in wanted}
    typed = {column.name: _typed(name, column, given[column.name]) for column in table_of(name).columns}
    if list(untyped) == list(typed) and all(typed[column] is given[column] for column in typed):
        return untyped
    return pd.DataFrame(typed, index=untyped.index)


def write(table: pd.DataFrame, name: str, folder: Path) -> Path:
    """Write `table` (as `frame` makes it) to `<folder>/<name>.parquet`."""
    path = Path(folder) / f"{name}.parquet"
    with whole_file(path) as draft:
        frame(name, table).to_parquet(draft, index=False)
    return path


def read(name: str, folder: Path) -> pd.DataFrame:
    """Read `<folder>/<name>.parquet`; an absent file is an empty table of the right columns and dtypes.

    Raises:
        MechrefusalError: a file that is no parquet, or of another schema.
    """
    path = Path(folder) / f"{name}.parquet"
    if not path.is_file():
        return frame(name, [])
    try:
        with pq.ParquetFile(path) as file:  # what pandas' own reader asks beside takes twice as long
            return frame(name, file.read(use_threads=False).to_pandas(use_threads=False))
    except Exception as error:
        raise MechrefusalError(f"{path} cannot be read ({error}); delete it, and make it again") from error


@cache  # a run has few of the tables, and a report asks for all of them
def _empty(name: str) -> pd.DataFrame:
    return pd.DataFrame({column.name: pd.Series(dtype=column.dtype) for column in table_of(name).columns})


def _typed(table: str, column: Column, values: pd.Series) -> pd.Series:
    """The values as the column's dtype."""
    kind, is_typed = column.kind.removesuffix("?"), values.dtype == column.dtype
    if is_typed and column.kind != "str" and not column.allowed:
        return values
    missing = values.isna()
    if is_typed and not (column.kind == "str" and missing.any()) and _fits(column, values[~missing]).all():
        return values
    if missing.any() and column.kind in ("int", "bool"):
        row = values.index[missing][0]
        raise MechrefusalError(
            f"table '{table}', column '{column.name}' has no value in row {row}: it takes {_TAKES[kind]} in every row"
        )
    known = values[~missing]
    wrong = known[~_fits(column, known)]
    if len(wrong):
        takes = f"one of {', '.join(column.allowed)}" if column.allowed else _TAKES[kind]
        value = wrong.astype(object).iloc[0]  # numpy's numbers say that they are
        raise MechrefusalError(f"table '{table}', column '{column.name}' holds {value!r}: it takes {takes}")
    if kind == "str":
        nothing = None if column.kind == "str?" else ""
        return (values.astype(object).where(~missing, nothing) if missing.any() else values).astype(column.dtype)
    if kind == "bool":
        return (values.astype(object).where(~missing, pd.NA) if missing.any() else values).astype(column.dtype)
    if not types.is_numeric_dtype(values.dtype):
        values = values.astype(object).where(~missing, np.nan).astype("float64")
    return values.astype(column.dtype)


def _fits(column: Column, known: pd.Series) -> np.ndarray:
    """Which of these values, none of them missing, the column takes."""
    kind, dtype = column.kind.removesuffix("?"), known.dtype
    everything = np.ones(len(known), dtype=bool)
    if kind == "bool":
        return everything if types.is_bool_dtype(dtype) else _are(known, (bool, np.bool_))
    if kind == "str":
        fits = everything if isinstance(dtype, pd.StringDtype) else _are(known, str)
        return fits & known.isin([*column.allowed, ""]).to_numpy() if column.allowed else fits
    fits = everything
    if types.is_bool_dtype(dtype) or not types.is_numeric_dtype(dtype):
        fits = _are(known, Real) & ~_are(known, (bool, np.bool_))
    if kind == "int" and not types.is_integer_dtype(dtype):
        numbers = known[fits].to_numpy(dtype=float)
        fits[fits] = np.isfinite(numbers) & (numbers == np.rint(numbers))
    return fits


def _are(values: pd.Series, kinds: type | tuple[type, ...]) -> np.ndarray:
    return np.fromiter((isinstance(value, kinds) for value in values), dtype=bool, count=len(values))


_TAKES = {"float": "a number", "int": "a whole number", "bool": "True or False", "str": "a text"}
