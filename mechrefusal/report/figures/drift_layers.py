"""Drift of refusal directions: along each arm, between arms, and by layer. Every value beside its split-half floor."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.order import SHARED, WARM_UP

SPAN = -1
"""Value of `layer` where a measure does not belong to one layer (as in table `drift`)."""


def drift(table: pd.DataFrame, *, measure: str, layer: int | None = None) -> go.Figure:
    """One drift measure over optimiser steps (table `drift`): x is the step of the later checkpoint of a pair.

    Solid lines: an arm against its anchor before. Open markers: against where it starts, the base model or the end of
    the shared warm-up, which is itself against the base. Grey diamonds: two arms at the same step.
    Small crosses: the split-half floor of the pair, the same measure between two halves of the prompts. Small dashes:
    random directions. Bars: 95% interval over prompts, which a mean over layers does not have. Lines are drawn slightly
    beside each other so that bars stay apart.

    Args:
        measure: a value of the column `measure`; angles are in degrees.
        layer: the layer to draw; by default the one of the whole span (-1), and where the measure has none, the mean
            over layers.
    """
    rows = table[table["measure"] == measure]
    layers = set(rows["layer"])
    where = ""
    if layer is None and SPAN in layers:
        rows = rows[rows["layer"] == SPAN]
    elif layer is not None:
        rows, where = rows[rows["layer"] == layer], f"layer {layer}"
    elif len(layers) > 1:
        where = f"mean over {len(layers)} layers"
    rows = style.drawable(rows, "value", f"drift '{measure}'")
    columns = ["value", "low", "high", "floor", "random"]
    pairs = rows.groupby(["arm_a", "step_a", "arm_b", "step_b"], as_index=False, sort=False)
    averaged = bool((pairs["layer"].transform("nunique") > 1).any())
    rows = pairs[columns].mean()
    if averaged:
        rows[["low", "high"]] = float("nan")
    figure = go.Figure()
    names = style.arms(pd.DataFrame({"arm": [*rows["arm_a"], *rows["arm_b"]]}))
    shift = 0.012 * (float(rows["step_b"].max() - rows["step_a"].min()) or 1.0)
    for place, arm in enumerate(names):
        colour, symbol = style.arm_style(arm, names)
        beside = shift * (place - (len(names) - 1) / 2)
        own = rows[(rows["arm_b"] == arm) & rows["arm_a"].isin([arm, *SHARED])]
        before = own[own["step_a"] == own.groupby("step_b")["step_a"].transform("max")].sort_values("step_b")
        rest = own[~own.index.isin(before.index)]
        marker = {"color": colour, "symbol": symbol, "size": 8}
        since = "the base" if arm == WARM_UP else "the anchor before"
        _add(figure, before, f"{arm}: since {since}", "lines+markers", marker, colour, shift=2 * beside)
        hollow = {**marker, "symbol": f"{symbol}-open", "size": 10}
        for start in SHARED:
            first = rest[rest["arm_a"] == start].sort_values("step_b")
            _add(figure, first, f"{arm}: since the {start}", "markers", hollow, colour, shift=4 * beside)
    trained = ~rows["arm_a"].isin(SHARED) & ~rows["arm_b"].isin(SHARED)
    apart = rows[trained & (rows["arm_a"] != rows["arm_b"])].sort_values("step_b")
    for (first, second), own in apart.groupby(["arm_a", "arm_b"], sort=False):
        look = {"color": style.NEUTRAL, "symbol": "diamond", "size": 8}
        _add(figure, own, f"{first} and {second}, same step", "lines+markers", look, style.NEUTRAL, dash="dot")
    _marks(figure, rows, "floor", "split-half floor", "x-thin")
    _marks(figure, rows, "random", "random directions", "line-ew")
    unit, limits = (
        ("degrees", (-3.0, 93.0))
        if "angle" in measure
        else ("cosine", (-1.06, 1.06))
        if "cosine" in measure
        else (measure, None)
    )
    figure.update_xaxes(title="optimiser step", tickvals=sorted({int(step) for step in rows["step_b"]}))
    figure.update_yaxes(title=wording.for_plotly(unit), range=limits)
    figure.update_layout(legend={"y": -0.3, "yanchor": "top"})
    return style.finish(figure, title=_name(measure), subtitle=where, height=450)


def drift_by_layer(table: pd.DataFrame, *, measure: str) -> go.Figure:
    """Heatmap of a drift measure taken at every layer: x = pair of checkpoints, y = layer (table `drift`)."""
    rows = table[(table["measure"] == measure) & (table["layer"] >= 0)]
    rows = style.drawable(rows, "value", f"drift '{measure}' by layer")
    pairs = list(dict.fromkeys(_pair(r) for r in rows.itertuples()))
    layers = sorted({int(layer) for layer in rows["layer"]})
    values = np.full((len(layers), len(pairs)), np.nan)
    texts = [["not measured" for _ in pairs] for _ in layers]
    for r in rows.itertuples():
        i, j = layers.index(int(r.layer)), pairs.index(_pair(r))
        values[i, j] = r.value
        texts[i][j] = style.hover([f"<b>{pairs[j]}, layer {layers[i]}</b>", *_lines(r)])
    places = list(range(len(pairs)))
    figure = go.Figure(
        go.Heatmap(z=values, x=places, y=layers, text=texts, hoverinfo="text", coloraxis="coloraxis", xgap=1)
    )
    if "angle" in measure:
        axis = {"colorscale": style.SEQUENTIAL, "cmin": 0, "cmax": 90, "colorbar": {"title": {"text": "degrees"}}}
    else:
        axis = {"colorscale": style.DIVERGING, "cmin": -1, "cmax": 1, "colorbar": {"title": {"text": "cosine"}}}
    figure.update_layout(coloraxis=axis)
    figure.update_xaxes(tickvals=places, ticktext=pairs, tickangle=-90, showgrid=False, zeroline=False)
    figure.update_yaxes(showgrid=False, zeroline=False, title="layer")
    height = int(min(820, max(360, 13 * len(layers) + 230)))
    return style.finish(
        figure, title=f"{_name(measure)} by layer", subtitle="between pairs of checkpoints", height=height
    )


def _add(
    figure: go.Figure,
    rows: pd.DataFrame,
    name: str,
    mode: str,
    marker: dict,
    colour: str,
    *,
    dash: str = "solid",
    shift: float = 0.0,
) -> None:
    if not rows["value"].notna().any():
        return
    texts = [style.hover([f"<b>{_pair(r)}</b>", *_lines(r)]) for r in rows.itertuples()]
    line = {"color": colour, "width": 2 if dash == "solid" else 1.5, "dash": dash}
    figure.add_trace(
        go.Scatter(
            x=[float(step) + shift for step in rows["step_b"]],
            y=style.numbers(rows["value"]),
            error_y=style.error_bars(rows, "value"),
            mode=mode,
            name=wording.for_plotly(name),
            marker=marker,
            line=line,
            text=texts,
            hoverinfo="text",
        )
    )


def _marks(figure: go.Figure, rows: pd.DataFrame, column: str, name: str, symbol: str) -> None:
    """Small grey marks at what the measure would be if nothing moved, or if everything did."""
    known = rows[rows[column].notna()]
    if not len(known):
        return
    texts = [
        style.hover([f"<b>{_pair(r)}</b>", f"{name} {wording.number(getattr(r, column), 3)}"])
        for r in known.itertuples()
    ]
    marker = {"symbol": symbol, "size": 6, "line": {"color": style.NEUTRAL, "width": 1.5}}
    figure.add_trace(
        go.Scatter(
            x=list(known["step_b"]),
            y=list(known[column]),
            mode="markers",
            name=name,
            marker=marker,
            text=texts,
            hoverinfo="text",
        )
    )


def _lines(row) -> list[str]:
    known = (("floor", "split-half floor"), ("random", "random directions"))
    found = [(name, getattr(row, column)) for column, name in known]
    floors = [f"{name} {wording.number(value, 3)}" for name, value in found if not wording.is_missing(value)]
    why = wording.for_plotly(getattr(row, "reason", "")) if wording.is_missing(row.value) else ""
    ends = style.interval(pd.Series({"low": row.low, "high": row.high}))
    return [f"{wording.number(row.value, 3)}{ends}", *floors, why]


def _pair(row) -> str:
    return wording.for_plotly(f"{row.arm_a} {row.step_a} → {row.arm_b} {row.step_b}")


def _name(measure: str) -> str:
    return wording.for_plotly(wording.metric_name(measure)).capitalize()
