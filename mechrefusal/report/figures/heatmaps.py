"""Heatmaps: layer by head, and layer by position."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import style

_COLUMNS = 3


def layer_by_head(
    table: pd.DataFrame,
    *,
    value: str | None = None,
    title: str = "Heads",
    unit: str = "",
    centre: float = 0.0,
    limit: float | None = None,
    more: Callable[[pd.Series], list[str]] | None = None,
    marked: str | None = None,
    mark: str = "marked",
) -> go.Figure:
    """Heatmap of heads: x = head, y = layer, colour = `value`, centred at `centre` (the value that means "no effect").

    Args:
        table: rows with `layer`, `head` (rows with head -1 are left out) and a value; `raw`, `n`, `low`, `high` go into
            the hover. One row a head and checkpoint: filter `site`, `mode`, `onto` and `set` first. Several
            checkpoints become panels.
        value: column to draw; `effect` if there is one, else `value`.
        unit: label of the colour bar.
        limit: colour saturates at `centre` ± limit; the largest deviation by default.
        more: lines of a row's hover in place of metric change and n, safe for plotly.
        marked: column of flags; its true cells get a dot, which `mark` names in the legend.
    """
    table = table[table["head"] >= 0]
    figure = _by_layer(
        table,
        "head",
        lambda values: [str(v) for v in values],
        _value(table, value),
        "head",
        title,
        unit,
        centre,
        limit,
        more,
    )
    if marked is not None:
        _mark(figure, table, marked, mark)
    return figure


def layer_by_position(
    table: pd.DataFrame,
    *,
    value: str | None = None,
    title: str = "Positions",
    unit: str = "",
    centre: float | None = 0.0,
    limit: float | None = None,
    tokens: Mapping[int, str] | None = None,
) -> go.Figure:
    """Heatmap of token positions: x = position counted from the end of the prompt, y = layer, colour = `value`.

    Args:
        table: rows with `layer`, `position` and a value (table `patching` with site `resid_pre`, or `directions`). One
            row a (layer, position) and checkpoint; several checkpoints become panels.
        centre: as in `layer_by_head`; None draws an unsigned value on a sequential scale.
        tokens: token string of each position; by default the table's own column `token`.
    """
    if "site" in table:
        table = table[table["site"] != "z"]
    known = tokens if tokens is not None else position_tokens(table)
    return _by_layer(
        table,
        "position",
        lambda values: position_labels(values, known),
        _value(table, value),
        "position in the prompt (last = −1)",
        title,
        unit,
        centre,
        limit,
    )


def position_tokens(table: pd.DataFrame) -> dict[int, str]:
    """Token string of each position, where the table has them."""
    if "token" not in table or "position" not in table:
        return {}
    rows = table.drop_duplicates("position")
    return dict(zip(rows["position"], rows["token"], strict=True))


def position_labels(positions: Sequence[int], tokens: Mapping[int, str]) -> list[str]:
    """`−3 <|im_end|>`: the position and its token, safe for plotly."""
    words = [wording.for_plotly(wording.token(tokens[p], 14)) if p in tokens else "" for p in positions]
    words = ["" if word == "·" else word for word in words]  # patching's sign for tokens that differ between prompts
    return [
        f"{wording.whole(p)} {word}".strip() if p != 0 else word or "all"
        for p, word in zip(positions, words, strict=True)
    ]


def _by_layer(
    table: pd.DataFrame,
    across: str,
    label: Callable[[list[int]], list[str]],
    value: str,
    axis_title: str,
    title: str,
    unit: str,
    centre: float | None,
    limit: float | None,
    more: Callable[[pd.Series], list[str]] | None = None,
) -> go.Figure:
    table = style.drawable(table, value, f"a heatmap of '{value}' by layer and {across}")
    grouped = _panels(table)
    columns = min(_COLUMNS, len(grouped))
    names = [f"{wording.for_plotly(arm)}, step {step}" for (arm, step), _ in grouped] if len(grouped) > 1 else None
    lines = math.ceil(len(grouped) / columns)
    figure = make_subplots(
        rows=lines, cols=columns, subplot_titles=names, horizontal_spacing=0.06, vertical_spacing=0.3 / lines
    )
    grids = []
    for place, (_, rows) in enumerate(grouped):
        grid = values_by_layer(rows, across, value)
        found = {(int(r["layer"]), int(r[across])): r for _, r in rows.iterrows()}
        ticks = label([int(c) for c in grid.columns])
        texts = [
            [
                _cell(found.get((y, x)), y, across, tick, value, more)
                for x, tick in zip(grid.columns, ticks, strict=True)
            ]
            for y in grid.index
        ]
        at = {"row": place // columns + 1, "col": place % columns + 1}
        heat = go.Heatmap(
            z=grid.to_numpy(dtype=float),
            x=list(range(len(ticks))),
            y=list(grid.index),
            text=texts,
            hoverinfo="text",
            coloraxis="coloraxis",
        )
        figure.add_trace(heat, **at)
        figure.update_xaxes(
            tickvals=list(range(len(ticks))),
            ticktext=ticks,
            tickangle=tick_angle(ticks) if across == "position" else 0,
            title=axis_title,
            showgrid=False,
            zeroline=False,
            **at,
        )
        figure.update_yaxes(title="layer" if at["col"] == 1 else None, showgrid=False, zeroline=False, **at)
        grids.append(grid.to_numpy(dtype=float))
    figure.update_layout(coloraxis=colour_axis(grids, centre, limit, unit or value))
    n = wording.counts(table["n"]) if "n" in table else ""
    return style.finish(figure, title=title, subtitle=n, height=height_of(len(grids[0])) * lines)


def _panels(table: pd.DataFrame) -> list[tuple[tuple, pd.DataFrame]]:
    """Rows of each checkpoint, where the table names them."""
    return list(table.groupby(["arm", "step"], sort=False)) if {"arm", "step"} <= set(table) else [(("", 0), table)]


def _mark(figure: go.Figure, table: pd.DataFrame, marked: str, name: str) -> None:
    """Dots on the true cells of `marked`, in every panel."""
    for place, (_, rows) in enumerate(_panels(table)):
        heads = sorted(set(rows["head"]))
        true = rows[rows[marked]]
        if len(true):
            x = [heads.index(int(head)) for head in true["head"]]
            trace = dots(x, [int(layer) for layer in true["layer"]], name)
            at = {"row": place // _COLUMNS + 1, "col": place % _COLUMNS + 1}
            figure.add_trace(trace, **at)
            close(figure, list(range(len(heads))), list(rows["layer"]), at)


def dots(x: Sequence[float], y: Sequence[float], name: str) -> go.Scatter:
    """Dots that can be told from any colour of a heatmap."""
    marker = {"symbol": "circle", "size": 5, "color": "#111111", "line": {"color": "#ffffff", "width": 1.2}}
    look = {"mode": "markers", "marker": marker, "hoverinfo": "skip", "showlegend": True}
    return go.Scatter(x=list(x), y=list(y), name=name, legendgroup=name, **look)


def close(figure: go.Figure, x: Sequence[int], y: Sequence[int], at: dict[str, int]) -> None:
    """End the axes at the cells: dots at the rim would widen them."""
    figure.update_xaxes(range=[min(x) - 0.5, max(x) + 0.5], **at)
    figure.update_yaxes(range=[min(y) - 0.5, max(y) + 0.5], **at)


def values_by_layer(table: pd.DataFrame, across: str, value: str) -> pd.DataFrame:
    """`value` as a matrix: index layer, columns `across`; two rows at one place are an error."""
    twice = table[table.duplicated(["layer", across])]
    if len(twice):
        row = twice.iloc[0]
        raise MechrefusalError(
            f"several rows for layer {row['layer']}, {across} {row[across]}: "
            "filter the table by site, mode, onto, set or checkpoint before drawing it"
        )
    return table.pivot(index="layer", columns=across, values=value).sort_index().sort_index(axis=1)


def _value(table: pd.DataFrame, value: str | None) -> str:
    return value if value is not None else "effect" if "effect" in table else "value"


def _cell(
    row: pd.Series | None,
    layer: int,
    across: str,
    label: str,
    value: str,
    more: Callable[[pd.Series], list[str]] | None,
) -> str:
    where = wording.head_name(layer, label) if across == "head" else f"layer {layer}, {label}"
    if row is None:
        return f"{where}<br>not measured"
    lines = [f"<b>{where}</b>", f"{value} {wording.number(row[value], 3, signed=True)}{style.interval(row)}"]
    if more is not None:
        return style.hover([*lines, *more(row)])
    if value != "raw" and "raw" in row:
        lines.append(f"metric change {wording.number(row['raw'], 3, signed=True)}")
    if "n" in row:
        lines.append(f"n = {wording.whole(row['n'])} prompts")
    return style.hover(lines)


def colour_axis(grids: list[np.ndarray], centre: float | None, limit: float | None, unit: str) -> dict:
    """Colours centred at `centre` (None: sequential), saturated at ± `limit` or the largest deviation."""
    bar = {"title": {"text": wording.for_plotly(unit)}}
    if centre is None:
        return {"colorscale": style.SEQUENTIAL, "colorbar": bar}
    if limit is None:
        limit = max((float(np.nanmax(np.abs(g - centre))) for g in grids if np.isfinite(g).any()), default=1.0) or 1.0
    return {"colorscale": style.DIVERGING, "cmin": centre - limit, "cmax": centre + limit, "colorbar": bar}


def tick_angle(labels: Sequence) -> int:
    """Slanted labels where there are few, upright ones where they would collide."""
    return -45 if len(labels) <= 6 else -90


def height_of(n_layers: int) -> int:
    """Height of a heatmap with so many layers, pixels."""
    return int(min(760, max(320, 13 * n_layers + 170)))


def written_grid(
    values: np.ndarray,
    written: list[list[str]] | list[list[int]],
    hovers: list[list[str]],
    *,
    title: str,
    most: float = 1,
    **look,
) -> go.Figure:
    """A grid of rates or counts, 0 to `most` on one colour scale, with their numbers written in the cells.

    Args:
        values, written, hovers: rows × columns.
        title: of the colour bar.
        most: value of the last colour.
        look: of the trace.
    """
    heat = go.Heatmap(
        z=values,
        x=list(range(values.shape[1])),
        y=list(range(values.shape[0])),
        text=written,
        texttemplate="%{text}",
        hovertext=hovers,
        hoverinfo="text",
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        **look,
    )
    bar = {"title": {"text": title}}
    return go.Figure(
        heat, layout={"coloraxis": {"colorscale": style.SEQUENTIAL, "cmin": 0, "cmax": most, "colorbar": bar}}
    )
