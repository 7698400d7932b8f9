"""What refusal loses without a head or an MLP, what that costs, and the smallest set of heads that it needs."""

import math

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.figures.axes import map_height
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import component_name
from mechrefusal.report.figures.heatmaps import layer_map
from mechrefusal.report.figures.style import RANDOM, Look

_LEAST_KL = 1e-5
_NAMED = 8
_KINDS = {"head": ("heads", "circle", style.ARM_COLOURS[0]), "mlp": ("MLPs", "square", style.ARM_COLOURS[1])}


def knockout(table: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Map of heads: change of the refusal score of harmful prompts without each, nats.

    Args:
        table: table `knockout` of one checkpoint.
    """
    rows = style.drawable(table[table["component"] == "head"], "refusal", "the knock-out of heads")
    rows = rows.assign(is_clear=style.is_clear(rows))
    look: Look = {"title": title, "unit": "nats", "marked": "is_clear", "subtitle": _sizes(rows)}
    return layer_map("knockout", [("", rows)], "head", "refusal", **look)


def knockout_mlps(table: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Bars of MLPs: change of the refusal score of harmful prompts without each, nats, with 95% intervals; y = layer.

    Args:
        table: table `knockout` of one checkpoint.
    """
    rows = style.drawable(table[table["component"] == "mlp"], "refusal", "the knock-out of MLPs").sort_values("layer")
    canvas = Canvas("knockout_mlps")
    canvas.bars(rows, "refusal", "layer")
    return canvas.finish(_sizes(rows), title=title, height=map_height(len(rows)) + 140)


def knockout_cost(table: pd.DataFrame) -> go.Figure:
    """Change of refusal against its cost: KL of harmless prompts' next token (log scale), one point a component.

    The largest changes with p < 0.05, adjusted for all, are named.

    Args:
        table: table `knockout` of one checkpoint.
    """
    rows = style.drawable(table, "refusal", "the cost of knock-outs")
    rows = style.drawable(rows, "kl", "the cost of knock-outs").dropna(subset=["refusal", "kl"])
    rows = rows.assign(x=rows["kl"].clip(lower=_LEAST_KL))
    strength = rows.loc[style.is_clear(rows), "refusal"].abs()
    clear = strength.sort_values(ascending=False, kind="stable").index[:_NAMED]
    named = rows.index.isin(list(clear))
    # Intervals of the named components only: hundreds would hide each other.
    rows = rows.assign(low=rows["low"].where(named), high=rows["high"].where(named))
    canvas = Canvas("knockout_cost")
    for kind in dict.fromkeys(rows["component"]):
        name, symbol, colour = _KINDS.get(kind, (kind, "diamond", style.ARM_COLOURS[2]))
        look: Look = {"symbol": symbol, "colour": colour, "size": 7, "opacity": 0.75}
        canvas.line(rows[rows["component"] == kind], "x", "refusal", name, mode="markers", interval="bars", **look)
    for row in _apart(rows.loc[clear], tall=float(rows["refusal"].max() - rows["refusal"].min()) or 1.0):
        look = {"showarrow": False, "font": {"size": 10}, "xanchor": "left", "xshift": 6, "yshift": 8}
        at: Look = {"x": math.log10(row["x"]), "y": row["refusal"]}
        canvas.figure.add_annotation(text=wording.for_plotly(component_name(row)), **at, **look)
    canvas.rule(y=0)
    ends = [min(math.log10(rows["x"].min()), -2) - 0.2, math.log10(max(float(rows["kl"].max()), 1e-3)) + 0.7]
    canvas.x(type="log", dtick=1, exponentformat="power", range=ends)
    canvas.y(zeroline=False)
    return canvas.finish(_sizes(rows), height=map_height(rows["layer"].nunique()) + 140)


def _apart(rows: pd.DataFrame, *, tall: float) -> list[dict]:
    """Rows whose names do not cover each other, largest change first."""
    placed: list[dict] = []
    for row in rows.to_dict("records"):
        near = [abs(math.log10(row["x"] / other["x"])) <= 1.2 for other in placed]
        level = [abs(row["refusal"] - other["refusal"]) <= 0.05 * tall for other in placed]
        if not any(a and b for a, b in zip(near, level, strict=True)):
            placed.append(row)
    return placed


_RANDOM_SHARES = {
    "share_low": "high",
    "share_high": "low",
    "random_share": "random_refusal",
    "random_low": "random_refusal_most",
    "random_high": "random_refusal_least",
}
_SET_LINES = {
    "share": (("share_low", "share_high"), "random_share", "held_out_share"),
    "harmless": (("harmless_low", "harmless_high"), "random_harmless", ""),
    "kl": (("kl_low", "kl_high"), "random_kl", "held_out_kl"),
}
"""Of each panel: the interval, the line of random sets, the line of unseen prompts."""


def head_set(table: pd.DataFrame) -> go.Figure:
    """Share of refusal that is gone, and the cost, by size of the greedy set of heads; below each size the head added.

    Args:
        table: table `head_sets` of one checkpoint.
    """
    rows = style.drawable(table[table["size"] > 0], "share", "the smallest set of heads").sort_values("size")
    rows = rows.assign(**{name: -rows[source] / rows["gap"] for name, source in _RANDOM_SHARES.items()})
    canvas = Canvas("head_set", list(_SET_LINES), shared="x", panel_height=120)
    blue = style.ARM_COLOURS[0]
    for panel, (column, (ends, random, unseen)) in enumerate(_SET_LINES.items()):
        if column == "share":
            canvas.add(style.between(rows, "size", "random_low", "random_high", style.NEUTRAL), panel)
        canvas.line(rows, "size", random, "random sets", panel=panel, **RANDOM)
        if unseen:
            look = RANDOM | {"colour": blue, "dash": "dashdot", "panel": panel}
            canvas.line(rows, "size", unseen, "the set on unseen prompts", **look)
        canvas.line(rows, "size", column, "the set found", colour=blue, ends=ends, panel=panel)
    canvas.rule(y=0.5, panel=0, width=1.2, dash="dot", color=style.WHISKER)
    sizes = [int(size) for size in rows["size"]]
    names = [f"{row.size}<br>{wording.head_name(row.layer, row.head)}" for row in rows.itertuples(index=False)]
    canvas.y(nticks=5)
    canvas.x(tickvals=sizes, range=[min(sizes) - 0.5, max(sizes) + 0.5])
    canvas.x(2, ticktext=names)
    return canvas.finish(_sizes(rows))


def _sizes(rows: pd.DataFrame) -> str:
    """How components were replaced, and the numbers of prompts."""
    sizes = [wording.counts(rows[f"n_{kind}"], f"{kind} prompts") for kind in ("harmful", "harmless")]
    how = sorted({wording.for_plotly(name) for name in rows["how"]}) if "how" in rows else []
    replaced = f"{'/'.join(how)} ablation" if how else ""
    return "; ".join(part for part in (replaced, " and ".join(size for size in sizes if size)) if part)
