"""What writes refusal on harmful prompts and not on harmless ones, and from which part of the prompt it is read."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.figures.axes import map_height
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import component_name, ordered
from mechrefusal.report.figures.heatmaps import layer_map
from mechrefusal.report.figures.style import Look


def beyond_chance(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with a column `beyond`: p < 0.05, adjusted for all components.

    Args:
        table: table `attribution_compared`, or rows of it. A missing number is never beyond.
    """
    return table.assign(beyond=style.is_clear(table))


def attribution_difference(table: pd.DataFrame, *, title: str = "", unit: str = "logits") -> go.Figure:
    """Map of heads: what each writes on harmful prompts more than on harmless ones.

    Args:
        table: table `attribution_compared`, one `onto` and checkpoint.
    """
    rows = _compared(style.drawable(table, "difference", "the difference of attributions"))
    rows = rows[rows["component"] == "head"]
    subtitle = f"{int(rows['beyond'].sum())} of {len(rows)} heads: {style.CLEAR}"
    look: Look = {"title": title, "unit": unit, "marked": "beyond", "subtitle": subtitle}
    return layer_map("attribution_difference", [("", rows)], "head", "difference", **look)


def top_components(table: pd.DataFrame, *, k: int = 15, unit: str = "logits") -> go.Figure:
    """Bars of the `k` components whose contribution differs most between harmful and harmless prompts, largest first.

    Args:
        table: table `attribution_compared`, one `onto` and checkpoint.
    """
    rows = style.drawable(table[table["component"] != "total"], "difference", "the components that differ most")
    order = rows["difference"].abs().sort_values(ascending=False, kind="stable").index[:k]
    rows = _compared(rows).loc[order].dropna(subset=["difference"]).iloc[::-1]
    rows = rows.assign(place=list(range(len(rows))), span=2 * rows["floor"])
    canvas = Canvas("top_components")
    floor: Look = {"colour": style.translucent("#808080", 0.28), "ends": None, "hover": [], "width": 0.86}
    canvas.bars(rows, "span", "place", "floor: random labels (95%)", base=list(-rows["floor"].fillna(0)), **floor)
    canvas.bars(rows, "difference", "place", "difference (95% interval)", width=0.5)
    canvas.categories(list(rows["name"]), range=[-0.6, len(rows) - 0.4])
    canvas.x(title=wording.for_plotly(unit))
    canvas.figure.update_layout(barmode="overlay")
    sizes = (wording.counts(rows[f"n_{kind}"], f"{kind} prompts") for kind in ("harmful", "harmless"))
    height = max(300, 24 * len(rows) + 150)
    return canvas.finish(" and ".join(part for part in sizes if part), unit=unit, k=len(rows), height=height)


def token_segments(table: pd.DataFrame) -> go.Figure:
    """Which part of the prompt each top head reads refusal from: stacked bars, harmful and harmless prompts beside.

    Args:
        table: table `token_sources` of one checkpoint; rows with `by` other than "segment" are left out.
    """
    rows = style.drawable(table[table["by"] == "segment"], "value", "what the top heads read from")
    heads = list(dict.fromkeys(rows[["layer", "head"]].itertuples(index=False, name=None)))[::-1]
    keys = [(row.layer, row.head) for row in rows.itertuples()]
    rows = rows.assign(place=[heads.index(key) for key in keys])
    kinds = [name for name in ("harmful", "harmless") if name in set(rows["set"])]
    titles = [f"{kind} prompts" for kind in kinds]
    canvas = Canvas("token_segments", titles, columns=2, shared="y", panel_height=max(130, 30 * len(heads) + 40))
    for panel, kind in enumerate(kinds):
        for number, segment in enumerate(ordered(rows["name"], "segment")):
            subset = rows[(rows["set"] == kind) & (rows["name"] == segment)].sort_values("place")
            if len(subset):
                colour = style.ARM_COLOURS[number % len(style.ARM_COLOURS)]
                canvas.bars(subset, "value", "place", segment, panel=panel, colour=colour, ends=None)
        canvas.categories([wording.head_name(*head) for head in heads], panel=panel, range=[-0.6, len(heads) - 0.4])
    canvas.x(matches="x")
    canvas.figure.update_layout(barmode="relative", bargap=0.3)
    return canvas.finish(wording.counts(rows["n"]))


def mlps(table: pd.DataFrame, *, title: str = "", unit: str = "logits") -> go.Figure:
    """Contribution of each layer's MLP (component `mlp` of table `attribution`; one `onto` and `set`): y = layer."""
    rows = style.drawable(table[table["component"] == "mlp"], "value", "the contribution of MLPs").sort_values("layer")
    canvas = Canvas("mlps")
    canvas.bars(rows, "value", "layer")
    canvas.x(title=wording.for_plotly(unit))
    height = map_height(len(rows)) + 140
    return canvas.finish(wording.counts(rows["n"]), title=title, unit=unit, height=height)


def _compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the names of components, and with what their hover says of chance."""
    rows = beyond_chance(rows)
    names = [component_name(row) for row in rows.to_dict("records")]
    return rows.assign(name=names, chance=rows["beyond"].map({True: style.CLEAR, False: ""}))
