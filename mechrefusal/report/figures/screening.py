"""How far the first-order estimate of a patch is from the exact one."""

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrefusal.report import wording
from mechrefusal.report.figures import style

SITES = {
    "resid_pre": "Residual stream",
    "attn_out": "Attention output",
    "mlp_out": "MLP output",
    "z": "Heads (what they read and carry)",
    "result": "Heads (whole, with their output weights)",
}
"""Patched sites in words."""
_SCORED = {"finalist": ("circle", style.ARM_COLOURS[0]), "random": ("diamond-open", style.ARM_COLOURS[1])}


def attribution_patching(table: pd.DataFrame) -> go.Figure:
    """Exact change of the metric against its first-order estimate, nats: one panel a site.

    On the dotted line the two agree. Filled circles are finalists (largest estimates), open diamonds drawn at random
    from the rest; bars are the 95% interval of the exact change over pairs.

    Args:
        table: table `attribution_patching` of one checkpoint; cells that were not patched exactly are left out.
    """
    rows = style.drawable(table[table["scored"].isin(list(_SCORED))], "exact", "estimates against exact patches")
    rows = rows.dropna(subset=["estimate", "exact"])
    found = set(rows["site"])
    sites = [name for name in SITES if name in found] + sorted(found - set(SITES))
    columns = min(2, len(sites))
    lines = math.ceil(len(sites) / columns)
    figure = make_subplots(
        rows=lines,
        cols=columns,
        subplot_titles=[wording.for_plotly(SITES.get(site, wording.metric_name(site))) for site in sites],
        horizontal_spacing=0.14,
        vertical_spacing=0.24 / lines,
    )
    for place, site in enumerate(sites):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        own = rows[rows["site"] == site]
        ends = [float(f(own[["estimate", "exact"]].to_numpy(float).ravel())) for f in (min, max)]
        line = {"color": style.AXIS, "width": 1, "dash": "dot"}
        look = {"mode": "lines", "name": "estimate = exact", "legendgroup": "equal", "line": line, "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(x=ends, y=ends, showlegend=place == 0, **look), **at)
        for scored, (symbol, colour) in _SCORED.items():
            chosen = own[own["scored"] == scored]
            if not len(chosen):
                continue
            bars = style.error_bars(chosen, "exact", color=style.GRID.replace("0.22", "0.55"))
            figure.add_trace(
                go.Scatter(
                    x=style.numbers(chosen["estimate"]),
                    y=style.numbers(chosen["exact"]),
                    error_y=None if bars is None else bars | {"thickness": 1, "width": 0},
                    mode="markers",
                    name=scored,
                    legendgroup=scored,
                    showlegend=not any(trace.legendgroup == scored for trace in figure.data),
                    marker={"symbol": symbol, "color": colour, "size": 7},
                    text=[_cell(row) for _, row in chosen.iterrows()],
                    hoverinfo="text",
                ),
                **at,
            )
        figure.update_xaxes(
            title="estimate (nats)" if at["row"] == lines or place + columns >= len(sites) else None, **at
        )
        figure.update_yaxes(title="exact (nats)" if at["col"] == 1 else None, **at)
    height = 270 * lines
    figure.update_annotations(font={"size": 12})
    figure.update_layout(showlegend=True, legend={"y": -64 / height, "yanchor": "top"})
    subtitle = wording.counts(rows["n"], "pairs")
    return style.finish(figure, title="Estimate against exact", subtitle=subtitle, height=height + 140)


def place_name(row: pd.Series) -> str:
    """`L12.H3`, or `layer 12, position −3 token`, safe for plotly."""
    if row["head"] >= 0:
        return wording.head_name(row["layer"], row["head"])
    token = wording.for_plotly(wording.token(row["token"], 14))
    return f"layer {wording.whole(row['layer'])}, position {wording.whole(row['position'])} {token}".strip()


def _cell(row: pd.Series) -> str:
    return style.hover(
        [
            f"<b>{place_name(row)}</b>",
            f"estimate {wording.number(row['estimate'], 3, signed=True)}",
            f"exact {wording.number(row['exact'], 3, signed=True)}{style.interval(row)}",
            f"error {wording.number(row['error'], 3, signed=True)}",
            f"{row['scored']}; n = {wording.whole(row['n'])} pairs",
        ]
    )
