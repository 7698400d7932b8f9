"""Maps that a step slider drives together, and the values of every head for its card."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.figures.heatmaps import position_labels, position_tokens
from mechrefusal.report.order import SHARED
from mechrefusal.report.reading import MeasuredCheckpoint, MeasuredRun
from mechrefusal.report.sections import Page

LARGEST_ATTENTION = 600_000
"""Entries of attention patterns that are kept for the cards of heads, over all checkpoints."""
_DECIMALS = 4

Spec = Mapping[str, Any]
SPECS: list[dict[str, Any]] = yaml.safe_load(
    (files("mechrefusal.report") / "pages" / "maps.yaml").read_text(encoding="utf-8")
)


class Cells(NamedTuple):
    """Values of one map at one checkpoint: `rows` with `layer`, `at` (head or position), value, low, high, mark."""

    rows: pd.DataFrame
    n: int | None


class MapsPage(Page):
    """One block an arm: each map of `pages/maps.yaml` that was measured at one of its checkpoints."""

    name = "maps"

    @cached_property
    def arms(self) -> list[tuple[str, dict[str, Any]]]:
        """(arm, what the slider drives): each arm from where it starts, the base and the warm-up first."""
        arms = [arm for arm in dict.fromkeys(c.arm for c in self.run.checkpoints) if arm not in SHARED]
        shared = [c for c in self.run.checkpoints if c.arm in SHARED]
        found = []
        for arm in arms or list(dict.fromkeys(c.arm for c in shared)):
            own = [c for c in self.run.checkpoints if c.arm == arm]
            kind = next((kind for kind in self.run.kinds if own[0] in kind), [])
            start = [c for c in shared if c in kind and arm not in SHARED and (not own or c.step <= own[0].step)]
            if maps := _maps([*start, *own], self.limits):
                points = {"steps": [c.step for c in [*start, *own]], "checkpoints": [c.id for c in [*start, *own]]}
                found.append((arm, {"arm": arm, **points, "maps": maps}))
        return found

    @cached_property
    def limits(self) -> dict[str, float]:
        """Where the colour of each map ends: one range for all checkpoints of the run."""
        furthest = {
            spec["name"]: max(
                (float(cells.rows["value"].abs().max()) for c in self.run.checkpoints if (cells := cells_of(c, spec))),
                default=0.0,
            )
            for spec in SPECS
        }
        return {name: round(limit, _DECIMALS) or 1.0 for name, limit in furthest.items()}


def cells_of(checkpoint: MeasuredCheckpoint, spec: Spec) -> Cells | None:
    """The values of one map at one checkpoint; None where nothing was measured."""
    rows = checkpoint.tables[spec["table"]]
    for column, wanted in spec.get("where", {}).items():
        rows = rows[rows[column].isin(wanted if isinstance(wanted, list) else [wanted])]
    rows = rows[rows[spec["value"]].notna()]
    if not len(rows):
        return None
    low, high = spec.get("ends", ["low", "high"])
    sign, centre = -1.0 if spec.get("flip") else 1.0, float(spec.get("centre", 0.0))
    ends = [rows[end].astype(float) if end in rows else pd.Series(np.nan, rows.index) for end in (low, high)]
    own_p = (
        rows["p"]
        if "p" in rows and spec["value"] in ("effect", "difference", "refusal")
        else pd.Series(np.nan, rows.index)
    )
    marked = (
        rows[spec["marks"]] if "marks" in spec else style.told(rows) if "p" in rows else pd.Series(False, rows.index)
    )
    values = {
        "layer": rows["layer"].astype(int),
        "at": rows["head" if spec["kind"] == "head" else "position"],
        "value": sign * (rows[spec["value"]] - centre),
        "low": sign * (ends[0 if sign > 0 else 1] - centre),
        "high": sign * (ends[1 if sign > 0 else 0] - centre),
        "p": own_p,
        "mark": marked.fillna(False).astype(bool),
    }
    n = rows["n"].max() if "n" in rows else rows["n_harmful"].max() if "n_harmful" in rows else None
    cells = pd.DataFrame(values)[rows["layer"] >= 0].dropna(subset=["at"])
    return Cells(
        cells[cells["at"] >= 0] if spec["kind"] == "head" else cells,
        None if n is None or wording.is_missing(n) else int(n),
    )


def _maps(checkpoints: Sequence[MeasuredCheckpoint], limits: Mapping[str, float]) -> list[dict[str, Any]]:
    found = []
    for spec in SPECS:
        cells = [cells_of(checkpoint, spec) for checkpoint in checkpoints]
        known = [one for one in cells if one is not None]
        if not known:
            continue
        at = sorted({int(place) for one in known for place in one.rows["at"]})
        layers = list(range(1 + max(int(one.rows["layer"].max()) for one in known)))
        if spec["kind"] == "head":
            at = list(range(1 + max(at)))
        tokens: dict[int, str] = {}
        for checkpoint in checkpoints:
            tokens |= position_tokens(checkpoint.tables[spec["table"]]) if spec["kind"] == "position" else {}
        counts = wording.counts([one.n for one in known], "").strip()
        found.append(
            {
                **{name: spec[name] for name in ("name", "title", "definition", "kind", "unit")},
                "subtitle": f"{spec['unit']}{f'; {counts}' if counts else ''}",
                "x": position_labels(at, tokens) if spec["kind"] == "position" else [str(head) for head in at],
                "y": layers,
                "scale": spec.get("scale", "diverging"),
                "limit": limits[spec["name"]],
                **{
                    key: [_grid(one, layers, at, name) for one in cells]
                    for key, name in (("z", "value"), ("low", "low"), ("high", "high"))
                },
                "marks": [_marks(one, at) for one in cells],
                "n": [one.n if one else None for one in cells],
            }
        )
    return found


def _grid(cells: Cells | None, layers: Sequence[int], at: Sequence[int], name: str) -> list[list[float | None]] | None:
    if cells is None or not cells.rows[name].notna().any():
        return None
    grid = np.full((len(layers), len(at)), np.nan)
    columns = {place: number for number, place in enumerate(at)}
    rows = cells.rows
    grid[rows["layer"], [columns[int(place)] for place in rows["at"]]] = rows[name]
    return [[None if np.isnan(value) else round(float(value), _DECIMALS) for value in line] for line in grid]


def _marks(cells: Cells | None, at: Sequence[int]) -> list[list[int]]:
    if cells is None:
        return []
    own = cells.rows[cells.rows["mark"]]
    return [[int(layer), at.index(int(place))] for layer, place in zip(own["layer"], own["at"], strict=True)]


def heads_data(run: MeasuredRun) -> dict[str, Any]:
    """What the card of a head shows: its values at every checkpoint, source tokens, and attention patterns."""
    specs = [spec for spec in SPECS if spec["kind"] == "head"]
    values: dict[str, dict[str, list]] = {}
    n_layers = n_heads = 0
    known = {c.id: {spec["name"]: cells for spec in specs if (cells := cells_of(c, spec))} for c in run.checkpoints}
    for found in known.values():
        for cells in found.values():
            n_layers = max(n_layers, 1 + int(cells.rows["layer"].max()))
            n_heads = max(n_heads, 1 + int(cells.rows["at"].max()))
    for identifier, found in known.items():
        values[identifier] = {}
        for name, cells in found.items():
            column: list[list[float | None] | None] = [None] * (n_layers * n_heads)
            for row in cells.rows[["layer", "at", "value", "low", "high", "p"]].itertuples(index=False):
                column[int(row.layer) * n_heads + int(row.at)] = [
                    _short(row.value),
                    _short(row.low),
                    _short(row.high),
                    _short(row.p),
                ]
            values[identifier][name] = column
    limit = LARGEST_ATTENTION // max(1, len(run.checkpoints))
    return {
        "checkpoints": [{"id": c.id, "arm": c.arm, "step": c.step, "label": c.label} for c in run.checkpoints],
        "n_layers": n_layers,
        "n_heads": n_heads,
        "columns": {spec["name"]: {key: spec[key] for key in ("title", "unit", "definition")} for spec in specs},
        "values": values,
        "sources": {c.id: _sources(c.tables["token_sources"]) for c in run.checkpoints},
        "attention": {c.id: _attention(c.tables, limit) for c in run.checkpoints},
    }


def _sources(table: pd.DataFrame) -> dict[str, list[list[Any]]]:
    rows = table[(table["by"] == "token") & (table["set"] == "harmful")].dropna(subset=["value"])
    rows = rows.iloc[np.argsort(-rows["value"].abs().to_numpy(), kind="stable")]
    return {
        f"{layer}.{head}": [
            [wording.token(row.name_), _short(row.value)]
            for row in own.rename(columns={"name": "name_"}).head(8).itertuples()
        ]
        for (layer, head), own in rows.groupby(["layer", "head"], sort=False)
    }


def _attention(tables: Mapping[str, pd.DataFrame], limit: int) -> dict[str, list[dict[str, Any]]]:
    """Patterns by head; those of the last prompts are left out where they are more than `limit` entries."""
    found: dict[str, list[dict[str, Any]]] = {}
    cells = 0
    for (prompt, layer, head), rows in tables["attention"].groupby(["prompt_id", "layer", "head"], sort=False):
        size = int(max(rows["destination"].max(), rows["source"].max())) + 1
        cells += size * size
        if cells > limit:
            break
        pattern = np.zeros((size, size))
        pattern[rows["destination"], rows["source"]] = rows["weight"]
        kind, tokens = _prompt(tables["tokens"], prompt, size)
        most = float(pattern[1:, 1:].max()) if size > 1 else 1.0
        found.setdefault(f"{layer}.{head}", []).append(
            {
                "prompt_id": wording.plain(prompt),
                "set": kind,
                "tokens": tokens,
                "pattern": np.round(pattern, 3).tolist(),
                "max": round(most, 3) or 1.0,
            }
        )
    return found


def _prompt(table: pd.DataFrame, prompt: Any, size: int) -> tuple[str, list[str]]:
    """Set and tokens of the prompt whose length fits, the harmful one first: `attention` does not name the set."""
    own = table[table["prompt_id"] == prompt]
    for name, rows in sorted(own.groupby("set"), key=lambda group: group[0] != "harmful"):
        if len(rows) == size:
            return str(name), [wording.token(token, 16) for token in rows.sort_values("index")["token"]]
    return "", [""] * size


def _short(value: Any) -> float | None:
    return None if wording.is_missing(value) or np.isinf(value) else round(float(value), _DECIMALS)
