"""Activations of one checkpoint put into another: which layer or head, given to the other model, moves its refusal."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import ordered, pair_name, word
from mechrefusal.report.figures.heatmaps import layer_map
from mechrefusal.report.figures.style import RANDOM, Look

PAIR = ["arm_source", "step_source", "arm_target", "step_target"]
"""Columns that name the two checkpoints."""


def head_sites(table: pd.DataFrame) -> list[str]:
    """Sites of table `cross_patching` that were patched head by head."""
    return ordered(table.loc[table["head"] >= 0, "site"], "site")


def of_set(table: pd.DataFrame, prompts: str) -> pd.DataFrame:
    """Rows of one set of prompts, harmful or harmless."""
    return table[table["set"] == prompts]


def clear_of_control(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with a column `clear`: it does more than its control, p < 0.05 adjusted for all rows of the site."""
    return table.assign(clear=style.is_clear(table))


def cross_patching(
    table: pd.DataFrame,
    *,
    prompts: str = "harmful",
    site: str | None = None,
    value: str = "raw",
    title: str = "",
    limit: float | None = None,
) -> go.Figure:
    """Maps of heads, one panel a pair source → target: what each head of the source does to the target's refusal.

    Args:
        table: table `cross_patching`, all pairs or some.
        prompts: harmful or harmless.
        site: of those patched by head; by default the first there is.
        value: `raw` (change of the target's refusal score in nats; red: it refuses more) or `effect` (share of the way
            to the source's score).
        limit: colour saturates at ± `limit`; the largest value by default.
    """
    table = of_set(table, prompts)
    site = site if site is not None else next(iter(head_sites(table)), "")
    rows = table[(table["site"] == site) & (table["head"] >= 0)]
    rows = clear_of_control(style.drawable(rows, value, f"patches of '{wording.plain(site)}' across checkpoints"))
    pairs = [(pair_name(subset.iloc[0]), subset) for _, subset in rows.groupby(PAIR, sort=False)]
    look: Look = {"title": title, "limit": limit, "marked": "clear", "subtitle": _counts(rows, prompts)}
    return layer_map("cross_patching", pairs, "head", value, unit=word("unit", value), prompts=prompts, **look)


def cross_patching_layers(
    table: pd.DataFrame, *, prompts: str = "harmful", value: str = "raw", title: str = ""
) -> go.Figure:
    """What each layer of the source does to the target's refusal: one column a site, one line a pair source → target.

    Args:
        table: table `cross_patching`; rows of heads are left out. Not more pairs than colours, to be readable.
        prompts: harmful or harmless.
        value: `raw` (nats; positive: the target refuses more) or `effect` (share of the way to the source's score).
    """
    rows = of_set(table, prompts)
    rows = style.drawable(rows[rows["head"] < 0], value, "patches of layers across checkpoints")
    sites = ordered(rows.loc[rows[value].notna(), "site"], "site")
    canvas = Canvas("cross_patching_layers", [word("site", site) for site in sites], columns=len(sites))
    ends = ("low", "high") if value == "raw" else (f"{value}_low", f"{value}_high")
    for number, (_, pair) in enumerate(rows.groupby(PAIR, sort=False)):
        colour, name = style.ARM_COLOURS[number % len(style.ARM_COLOURS)], pair_name(pair.iloc[0])
        for panel, site in enumerate(sites):
            subset = pair[pair["site"] == site].sort_values("layer")
            look: Look = {"panel": panel, "colour": colour, "group": name}
            canvas.line(subset, "layer", value, name, ends=ends, size=4, **look)
            if value == "raw":
                dashed = RANDOM | {"mode": "lines", "width": 1.2, "hover": []}
                canvas.line(subset, "layer", "control", "control", **dashed | look)
    canvas.x(zeroline=False)
    canvas.y(0, title=word("unit", value))
    note = "dashed: control" if value == "raw" else ""
    return canvas.finish(_counts(rows, prompts), note, title=title, unit=word("unit", value), prompts=prompts)


def _counts(rows: pd.DataFrame, prompts: str) -> str:
    return wording.counts(rows["n"], f"{wording.for_plotly(prompts)} prompts")
