"""Maps of every checkpoint of an arm on one scale: what a report's step slider moves through, as JSON."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mechrefusal.files import checkpoint_id
from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.figures.catalogue import Map, slider_maps
from mechrefusal.report.figures.heatmaps import position_labels, position_tokens
from mechrefusal.report.order import SHARED, checkpoint_order


def maps(tables: Mapping[str, pd.DataFrame], *, arm: str) -> dict[str, Any]:
    """Every map of the catalogue that the tables hold: of the base, the shared warm-up and the checkpoints of one arm.

    Args:
        tables: by name, of all checkpoints of one kind of model, with `arm` and `step` (`patching`, `knockout`,
            `attribution_compared`, `directions`, `carriers`); the range of colours is that of all arms, so that maps of
            two arms can be compared.
        arm: whose checkpoints are steps of the slider.

    Returns:
        `arm`, `steps`, `checkpoints` (names of their folders) and `maps`, each with `name`, `title`, `subtitle`,
        `definition`, `kind`, `x` (labels, safe for plotly), `y` (layers), `unit`, `scale`, `limit`, and by step `z`,
        `low`, `high` (layer x column; None where a cell, or all of a step, was not measured), `marks` (the layer and,
        counted from 0, the column of marked cells) and `n`. Colours go from -limit to limit, of a sequential scale from
        0 to limit.
    """
    known = {name: table for name, table in tables.items() if len(table)}
    measured = {key for table in known.values() for key in zip(table["arm"], table["step"].astype(int), strict=True)}
    subset = {step for name, step in measured if name == arm}
    keys = sorted(
        (key for key in measured if key[0] == arm or (key[0] in SHARED and key[1] not in subset)), key=checkpoint_order
    )
    drawn_maps = [_map(entry, known[entry.table], keys) for entry in slider_maps() if entry.table in known]
    return {
        "arm": arm,
        "steps": [step for _, step in keys],
        "checkpoints": [checkpoint_id(name, step) for name, step in keys],
        "maps": [one for one in drawn_maps if one is not None],
    }


def rows_of(entry: Map, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table that one map draws: those that have a value, of its kind of column."""
    rows = table
    for column, value in entry.where.items():
        rows = rows[rows[column].isin(value if isinstance(value, list) else [value])]
    if entry.value not in rows:
        return rows.iloc[:0]
    rows = rows.dropna(subset=[entry.kind, entry.value])
    return rows[rows["head"] >= 0] if entry.kind == "head" else rows


def head_values(entry: Map, rows: pd.DataFrame, shape: tuple[int, int]) -> list[list[float | None] | None]:
    """Value, ends of the interval and p of every head of one checkpoint; None for a head that was not measured.

    Args:
        entry: a map of kind `head`.
        rows: `rows_of` its table at one checkpoint.
        shape: n_layers and n_heads; head h of layer l stands at l * n_heads + h.
    """
    values: list[list[float | None] | None] = [None] * (shape[0] * shape[1])
    for row in rows.to_dict("records"):
        numbers = [row.get(name, math.nan) for name in (entry.value, entry.low, entry.high)]
        p = row.get("p", math.nan) if entry.mark == "p" else math.nan
        shown = [float(number) - entry.minus for number in numbers] + [p]
        values[int(row["layer"]) * shape[1] + int(row["head"])] = [
            None if wording.is_missing(number) or math.isinf(number) else _rounded(number) for number in shown
        ]
    return values


def _map(entry: Map, table: pd.DataFrame, keys: list[tuple[str, int]]) -> dict[str, Any] | None:
    """One map at every step; None where no checkpoint of the arm has a value."""
    rows = rows_of(entry, table)
    subset = [rows[(rows["arm"] == arm) & (rows["step"] == step)] for arm, step in keys]
    if not any(len(each) for each in subset):
        return None
    of_arm = pd.concat(subset)
    layers, columns = (sorted({int(key) for key in of_arm[name]}) for name in ("layer", entry.kind))
    names = [str(key) for key in columns]
    if entry.kind == "position":
        names = position_labels(columns, position_tokens(of_arm))
    cells = {
        name: [_cells(each, column, entry, layers, columns) for each in subset]
        for name, column in (("z", entry.value), ("low", entry.low), ("high", entry.high))
    }
    n = [None if not len(each) or entry.n not in each else int(each[entry.n].max()) for each in subset]
    values = rows[entry.value].to_numpy(dtype=float) - entry.minus
    return {
        "name": entry.name,
        "title": entry.title,
        "subtitle": "; ".join(part for part in (entry.unit, wording.counts([k for k in n if k])) if part),
        "definition": entry.definition,
        "kind": entry.kind,
        "x": names,
        "y": layers,
        "unit": entry.unit,
        "scale": entry.scale,
        "limit": _rounded(float(np.abs(values).max())) or 1.0,
        **cells,
        "marks": [_marks(each, entry, columns) for each in subset],
        "n": n,
    }


def _cells(rows: pd.DataFrame, column: str, entry: Map, layers: list[int], columns: list[int]) -> list | None:
    """Layers x columns, None where not measured; None alone where nothing was."""
    if column not in rows or not rows[column].notna().any():
        return None
    grid = np.full((len(layers), len(columns)), np.nan)
    for layer, across, value in zip(rows["layer"], rows[entry.kind], rows[column].astype(float), strict=True):
        grid[layers.index(layer), columns.index(across)] = value - entry.minus
    return [[None if math.isnan(value) else _rounded(value) for value in line] for line in grid.tolist()]


def _marks(rows: pd.DataFrame, entry: Map, columns: list[int]) -> list[list[int]]:
    if entry.mark not in rows:
        return []
    marked = rows[style.is_clear(rows) if entry.mark == "p" else rows[entry.mark].fillna(False).astype(bool)]
    return [[int(layer), columns.index(at)] for layer, at in zip(marked["layer"], marked[entry.kind], strict=True)]


def _rounded(value: float) -> float:
    """Five significant digits: a page holds thousands of them."""
    return float(f"{value:.5g}")
