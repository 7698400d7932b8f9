"""Maps that a step slider drives together, and the values of every head for its card."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mechrefusal.report import circuits, figures, wording
from mechrefusal.report.figures.catalogue import slider_maps
from mechrefusal.report.figures.slider import head_values, rows_of
from mechrefusal.report.order import SHARED
from mechrefusal.report.reading import MeasuredRun
from mechrefusal.report.sections import Page

LARGEST_ATTENTION = 600_000
"""Entries of attention patterns that are kept for the cards of heads, over all checkpoints."""


class MapsPage(Page):
    """One block an arm: each map of the catalogue that was measured at one of its checkpoints."""

    name = "maps"

    @cached_property
    def arms(self) -> list[tuple[str, dict[str, Any]]]:
        """(arm, what the slider drives): each arm from where it starts; the shared ones where there is no other."""
        arms = list(dict.fromkeys(c.arm for c in self.run.checkpoints if c.arm not in SHARED))
        arms = arms or list(dict.fromkeys(c.arm for c in self.run.checkpoints))
        names = {entry.table for entry in slider_maps()}
        blocks: dict[str, dict[str, Any]] = {}
        for kind in self.run.kinds:
            tables = {name: self.run.together(name, among=kind) for name in names}
            of_kind = {c.arm for c in kind} - set(blocks)
            blocks |= {arm: figures.maps(tables, arm=arm) for arm in arms if arm in of_kind}
        return [(arm, blocks[arm]) for arm in arms if blocks[arm]["maps"]]


def heads_data(run: MeasuredRun) -> dict[str, Any]:
    """What the card of a head shows: its values at every checkpoint, source tokens, and attention patterns."""
    entries = [entry for entry in slider_maps() if entry.kind == "head"]
    rows = {c.id: [(entry, rows_of(entry, c.tables[entry.table])) for entry in entries] for c in run.checkpoints}
    known = [each for of_checkpoint in rows.values() for _, each in of_checkpoint if len(each)]
    n_layers, n_heads = (max((int(each[name].max()) + 1 for each in known), default=0) for name in ("layer", "head"))
    limit = LARGEST_ATTENTION // max(1, len(run.checkpoints))
    return {
        "checkpoints": [{"id": c.id, "arm": c.arm, "step": c.step, "label": c.label} for c in run.checkpoints],
        "n_layers": n_layers,
        "n_heads": n_heads,
        "columns": {
            entry.name: {"title": entry.title, "unit": entry.unit, "definition": entry.definition} for entry in entries
        },
        "values": {
            name: {
                entry.name: head_values(entry, each, (n_layers, n_heads)) for entry, each in of_checkpoint if len(each)
            }
            for name, of_checkpoint in rows.items()
        },
        "sources": {c.id: _sources(c.tables["token_sources"]) for c in run.checkpoints},
        "attention": {c.id: _attention(c.tables, limit) for c in run.checkpoints},
    }


def _sources(table: pd.DataFrame) -> dict[str, list[list[Any]]]:
    rows = table[(table["by"] == "token") & (table["set"] == "harmful")].dropna(subset=["value"])
    rows = rows.iloc[np.argsort(-rows["value"].abs().to_numpy(), kind="stable")]
    return {
        f"{layer}.{head}": [
            [wording.token(row.name_), _short(row.value)]
            for row in of_head.rename(columns={"name": "name_"}).head(8).itertuples()
        ]
        for (layer, head), of_head in rows.groupby(["layer", "head"], sort=False)
    }


def _attention(tables: Mapping[str, pd.DataFrame], limit: int) -> dict[str, list[dict[str, Any]]]:
    """Patterns by head, of every prompt in the table; those past `limit` entries in all are left out.

    A table that has the column `set` says which prompt of a pair a pattern is of. Without it the tokens of that length
    tell, those of the harmful prompt first.
    """
    by_head: dict[str, list[dict[str, Any]]] = {}
    table, cells = tables["attention"], 0
    keys = [name for name in ("prompt_id", "set", "layer", "head") if name in table]
    for values, rows in table.groupby(keys, sort=False):
        of = dict(zip(keys, values, strict=True))
        size = int(max(rows["destination"].max(), rows["source"].max())) + 1
        cells += size * size
        if cells > limit:
            break
        pattern = circuits.pattern_of(rows, size)
        side, tokens = _prompt(tables["tokens"], of, size)
        by_head.setdefault(f"{of['layer']}.{of['head']}", []).append(
            {
                "prompt_id": wording.plain(of["prompt_id"]),
                "set": side,
                "tokens": tokens,
                "pattern": np.round(pattern, 3).tolist(),
                "max": circuits.saturation([pattern], decimals=3),
            }
        )
    return by_head


def _prompt(table: pd.DataFrame, of: Mapping[str, Any], size: int) -> tuple[str, list[str]]:
    """Set and tokens of the prompt of that id, set (where it is named) and length."""
    sides = table[table["prompt_id"] == of["prompt_id"]].groupby("set")
    for name, rows in sorted(sides, key=lambda side: side[0] != "harmful"):
        if len(rows) == size and name == of.get("set", name):
            return str(name), [wording.token(token, 16) for token in rows.sort_values("index")["token"]]
    return str(of.get("set", "")), [""] * size


def _short(value: Any) -> float | None:
    return None if wording.is_missing(value) or np.isinf(value) else round(float(value), 4)
