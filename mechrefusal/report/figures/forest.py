"""Measures with an interval beside what they are when nothing is there: shuffled labels, and a random direction.

For the tables `overlap`, `coupling` and `utility_coupling`. Nothing is assumed of a measure's name or unit: each has an
axis of its own.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import lines, style

NONE = -1
"""Value of `layer` where a measure belongs to none (as in table `coupling`)."""
_GREY = "#7f7f7f"
_ROW, _FOOT = 74, 96


def single(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of measures that were taken at one place only (or at none)."""
    return table[~table["measure"].isin(_layered(table))]


def layered(table: pd.DataFrame) -> list[str]:
    """Measures that were taken at several layers of a checkpoint."""
    return _layered(table)


def estimates(table: pd.DataFrame, *, title: str = "Measures") -> go.Figure:
    """A dot and its 95% interval a measure, above the band of shuffled labels; a tick marks a random direction.

    Args:
        table: table `overlap` or `coupling` of one checkpoint; measures that were taken at several layers are left out
            (see `estimates_by_layer`), and so are those without a value.
    """
    what = f"estimates of {', '.join(sorted({wording.plain(m) for m in table['measure']}))}"
    rows = style.drawable(single(table), "value", what)
    rows = rows[rows["value"].notna()]
    names = [_heading(row) for _, row in rows.iterrows()]
    height = _ROW * len(rows)
    figure = make_subplots(rows=len(rows), cols=1, subplot_titles=names, vertical_spacing=0.62 / len(rows))
    for place, (_, row) in enumerate(rows.iterrows(), start=1):
        _dot(figure, row, place)
        zero = 0.5 if "auc" in str(row["measure"]).lower() else 0.0
        figure.add_vline(x=zero, line={"width": 1, "color": style.AXIS}, row=place, col=1)
        figure.update_xaxes(range=_range(row, zero), zeroline=False, nticks=6, row=place, col=1)
        figure.update_yaxes(range=[-1, 1], showticklabels=False, showgrid=False, zeroline=False, row=place, col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 12})
    figure.update_layout(showlegend=True, legend={"y": -42 / max(height, 1), "yanchor": "top"}, margin={"l": 16})
    return style.finish(figure, title=title, subtitle=_where(rows), height=height + _FOOT + 50)


def estimates_by_layer(table: pd.DataFrame, *, measure: str) -> go.Figure:
    """One measure by layer with its 95% interval, the band of shuffled labels and the line of a random direction.

    Args:
        table: table `coupling` or `overlap` of one checkpoint.
        measure: a value of the column `measure`.
    """
    rows = table[(table["measure"] == measure) & (table["layer"] >= 0)]
    rows = style.drawable(rows, "value", f"'{wording.plain(measure)}' by layer").sort_values("layer")
    figure, colour = go.Figure(), style.ARM_COLOURS[0]
    floor = style.between(rows, "layer", "floor_low", "floor_high", _GREY, name="shuffled labels (95%)")
    own = style.between(rows, "layer", "low", "high", colour)
    figure.add_traces([area for area in (floor, own) if area is not None])
    known = rows[rows["value"].notna()]
    figure.add_trace(
        go.Scatter(
            x=list(known["layer"]),
            y=style.numbers(known["value"]),
            mode="lines+markers",
            name="value (95% interval)",
            line={"color": colour, "width": 2},
            marker={"size": 5},
            text=[style.hover([f"<b>layer {int(row['layer'])}</b>", *_numbers(row)]) for _, row in known.iterrows()],
            hoverinfo="text",
        )
    )
    chance = rows.dropna(subset=["random"])
    if len(chance):
        line = {"color": style.NEUTRAL, "width": 1.5, "dash": "dash"}
        look = {"mode": "lines", "name": "random direction", "line": line, "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(x=list(chance["layer"]), y=list(chance["random"]), **look))
    figure.update_xaxes(title="layer")
    name = wording.for_plotly(wording.metric_name(measure))
    figure.update_yaxes(title=_unit(measure), rangemode="normal" if _unit(measure) == "AUC" else "tozero")
    figure.update_layout(showlegend=True, legend={"y": -0.24, "yanchor": "top"})
    return style.finish(figure, title=f"{name.capitalize()} by layer", subtitle=wording.counts(rows["n"]), height=400)


def estimates_over_steps(table: pd.DataFrame, *, measure: str, intervention: str | None = None) -> go.Figure:
    """One measure over optimiser steps, one line an arm: intervals, shuffled labels (band), random direction (dashed).

    Args:
        table: table `overlap`, `coupling` or `utility_coupling` of several checkpoints, one row a checkpoint and
            measure; of measures by layer only rows that belong to no layer are drawn.
        measure: a value of the column `measure`.
        intervention: for `utility_coupling`, a value of the column `intervention`.
    """
    rows = table[table["measure"] == measure]
    if intervention is not None:
        rows = rows[rows["intervention"] == intervention]
    if len(rows) and measure in _layered(rows):
        rows = rows[rows["layer"] == NONE]
    name = wording.for_plotly(wording.metric_name(wording.shortened(measure)))
    title = f"{wording.for_plotly(intervention)}: {name}" if intervention is not None else name
    rows = style.drawable(rows, "value", f"'{wording.plain(measure)}' over steps")
    if rows.duplicated(["arm", "step"]).any():
        raise MechrefusalError(f"several rows of '{wording.plain(measure)}' at one checkpoint: filter the table first")
    figure = lines.trajectory(rows, title=title[:1].upper() + title[1:], unit=_unit(measure))
    under = []
    for arm in style.arms(rows):
        own = style.with_base(rows, arm)
        colour = style.arm_style(arm, style.arms(rows))[0]
        under.append(style.between(own, "step", "floor_low", "floor_high", colour))
        chance = own.dropna(subset=["random"])
        if len(chance):
            line = {"color": colour, "width": 1.2, "dash": "dash"}
            look = {"mode": "lines+markers", "marker": {"size": 4}, "line": line, "showlegend": False}
            texts = [f"random direction {wording.number(value, 3)}" for value in chance["random"]]
            shown = {"text": texts, "hoverinfo": "text"}
            figure.add_trace(go.Scatter(x=list(chance["step"]), y=list(chance["random"]), **look, **shown))
    figure.add_traces([area for area in under if area is not None])
    return figure


def _layered(table: pd.DataFrame) -> list[str]:
    if "layer" not in table:
        return []
    rows = table[table["layer"] >= 0]
    keys = [name for name in ("arm", "step") if name in rows]
    counts = rows.groupby(["measure", *keys], sort=False)["layer"].nunique().groupby(level=0, sort=False).max()
    return [measure for measure, n in counts.items() if n > 1]


def _dot(figure: go.Figure, row: pd.Series, place: int) -> None:
    at, first = {"row": place, "col": 1}, place == 1
    if not wording.is_missing(row["floor_low"]) and not wording.is_missing(row["floor_high"]):
        low, high = float(row["floor_low"]), float(row["floor_high"])
        area = style.band([low, high], [-0.8, -0.8], [0.8, 0.8], _GREY)
        floor = area.update(name="shuffled labels (95%)", legendgroup="floor", fillcolor="rgba(127,127,127,0.3)")
        figure.add_trace(floor.update(showlegend=_new(figure, "floor")), **at)
    if not wording.is_missing(row["random"]):
        tick = {"symbol": "line-ns", "size": 20, "line": {"width": 2, "color": style.WHISKER}}
        random = go.Scatter(x=[float(row["random"])], y=[0], mode="markers", marker=tick, name="random direction")
        random.update(legendgroup="random", showlegend=_new(figure, "random"), hoverinfo="skip")
        figure.add_trace(random, **at)
    own = pd.DataFrame([row])
    figure.add_trace(
        go.Scatter(
            x=[float(row["value"])],
            y=[0],
            error_x=style.error_bars(own, "value", thickness=2, width=5),
            mode="markers",
            marker={"size": 10, "color": style.ARM_COLOURS[0]},
            name="value (95% interval)",
            showlegend=first,
            text=[style.hover([f"<b>{_name(row)}</b>", *_numbers(row), _place(row)])],
            hoverinfo="text",
        ),
        **at,
    )


def _range(row: pd.Series, zero: float) -> list[float]:
    """From the lowest to the highest of everything that is drawn, with some room."""
    drawn = row[["value", "low", "high", "floor_low", "floor_high", "random"]].astype(float)
    low, high = min(drawn.min(), zero), max(drawn.max(), zero)
    room = 0.05 * (high - low) or 0.05
    return [float(low - room), float(high + room)]


def _new(figure: go.Figure, group: str) -> bool:
    return not any(trace.legendgroup == group for trace in figure.data)


def _numbers(row: pd.Series) -> list[str]:
    floor = style.interval(row, "floor_low", "floor_high")
    random = row["random"]
    return [
        f"{wording.number(row['value'], 3)}{style.interval(row)}",
        f"shuffled labels{floor}" if floor else "",
        "" if wording.is_missing(random) else f"random direction {wording.number(random, 3)}",
        f"n = {wording.whole(row['n'])}",
    ]


def _heading(row: pd.Series) -> str:
    return f"{_name(row)}: <b>{wording.number(row['value'])}</b>"


def _name(row: pd.Series) -> str:
    return wording.for_plotly(wording.metric_name(wording.shortened(row["measure"], 42)))


def _place(row: pd.Series) -> str:
    layer, position = row.get("layer"), row.get("position")
    where = "" if wording.is_missing(layer) or int(layer) == NONE else f"layer {int(layer)}"
    return where if wording.is_missing(position) else f"{where}, position {wording.whole(position)}".lstrip(", ")


def _where(rows: pd.DataFrame) -> str:
    """Place and number of prompts, where all measures share them."""
    places = {_place(row) for _, row in rows.iterrows()}
    return "; ".join(part for part in (places.pop() if len(places) == 1 else "", wording.counts(rows["n"])) if part)


def _unit(measure: str) -> str:
    known = {"cosine": "cosine", "auc": "AUC", "share": "share"}
    return next((unit for sign, unit in known.items() if sign in str(measure).lower()), "value")
