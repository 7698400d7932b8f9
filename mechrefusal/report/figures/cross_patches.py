"""Activations of one checkpoint put into another: which layer or head, given to the other model, moves its refusal."""

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrefusal.report import wording
from mechrefusal.report.figures import heatmaps, style
from mechrefusal.report.figures.screening import SITES

HEAD_SITES = ("z", "result")
_COLUMNS = 4
PAIR = ["arm_source", "step_source", "arm_target", "step_target"]


def head_sites(table: pd.DataFrame) -> list[str]:
    """Sites of table `cross_patching` that were patched head by head."""
    found = set(table.loc[table["head"] >= 0, "site"])
    return [site for site in HEAD_SITES if site in found] + sorted(found - set(HEAD_SITES))


def of_set(table: pd.DataFrame, prompts: str) -> pd.DataFrame:
    """Rows of one set of prompts, harmful or harmless."""
    return table[table["set"] == prompts]


def pair_name(row: pd.Series) -> str:
    """`sft 18 → base 0`, plain text."""
    return (
        f"{wording.shortened(row['arm_source'], 16)} {wording.whole(row['step_source'])} → "
        f"{wording.shortened(row['arm_target'], 16)} {wording.whole(row['step_target'])}"
    )


def clear_of_control(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with a column `clear`: it does more than its control, p < 0.05 adjusted for all rows of the site."""
    return table.assign(clear=style.told(table))


def cross_patching(
    table: pd.DataFrame,
    *,
    prompts: str = "harmful",
    site: str | None = None,
    value: str = "raw",
    title: str = "Heads",
    limit: float | None = None,
) -> go.Figure:
    """Heatmaps of heads, one panel a pair source → target: what each head of the source does to the target's refusal.

    A dot: p < 0.05, adjusted for all heads, that it is one of its controls (the same change turned at random).

    Args:
        table: table `cross_patching`, all pairs or some.
        prompts: harmful or harmless.
        site: of those patched by head; by default the first there is.
        value: `raw` (change of the target's refusal score in nats; red: it refuses more) or `effect` (share of the way
            to the source's score).
        limit: colour saturates at ± `limit`; the largest value by default.
    """
    table = of_set(table, prompts)
    known = head_sites(table)
    chosen = site if site is not None else known[0] if known else ""
    rows = table[(table["site"] == chosen) & (table["head"] >= 0)]
    rows = clear_of_control(style.drawable(rows, value, f"patches of '{wording.plain(chosen)}' across checkpoints"))
    pairs = list(rows.groupby(PAIR, sort=False))
    columns = min(_COLUMNS, len(pairs))
    lines = math.ceil(len(pairs) / columns)
    names = [wording.for_plotly(pair_name(own.iloc[0])) for _, own in pairs]
    figure = make_subplots(
        rows=lines, cols=columns, subplot_titles=names, horizontal_spacing=0.06, vertical_spacing=0.26 / lines
    )
    grids = []
    for place, (_, own) in enumerate(pairs):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        grid = heatmaps.values_by_layer(own, "head", value)
        found = {(int(row["layer"]), int(row["head"])): row for _, row in own.iterrows()}
        texts = [[_cell(found.get((y, x)), y, x) for x in grid.columns] for y in grid.index]
        heat = go.Heatmap(
            z=grid.to_numpy(dtype=float),
            x=[int(head) for head in grid.columns],
            y=[int(layer) for layer in grid.index],
            text=texts,
            hoverinfo="text",
            coloraxis="coloraxis",
            name=names[place],
        )
        figure.add_trace(heat, **at)
        clear = own[own["clear"]]
        if len(clear):
            dots = heatmaps.dots(list(clear["head"]), list(clear["layer"]), style.TOLD)
            known_already = any(trace.name == style.TOLD for trace in figure.data)
            figure.add_trace(dots.update(showlegend=not known_already), **at)
        figure.update_xaxes(
            title="head", tickvals=[int(h) for h in grid.columns], tickangle=0, showgrid=False, zeroline=False, **at
        )
        figure.update_yaxes(title="layer" if at["col"] == 1 else None, showgrid=False, zeroline=False, **at)
        heatmaps.close(figure, [int(head) for head in grid.columns], [int(layer) for layer in grid.index], at)
        grids.append(grid.to_numpy(dtype=float))
    figure.update_layout(coloraxis=heatmaps.colour_axis(grids, 0.0, limit, "nats" if value == "raw" else value))
    figure.update_annotations(font={"size": 12})
    figure.update_layout(legend={"y": -60 / (heatmaps.height_of(len(grids[0])) * lines - 110), "yanchor": "top"})
    height = heatmaps.height_of(len(grids[0])) * lines + 40
    return style.finish(figure, title=title, subtitle=_counts(rows, prompts), height=height)


def cross_patching_layers(
    table: pd.DataFrame, *, prompts: str = "harmful", value: str = "raw", title: str = "Layers"
) -> go.Figure:
    """What each layer of the source does to the target's refusal: one column a site, one line a pair source → target.

    Bands: 95% intervals over prompts; dashed: the control, the same change turned at random (of `raw`).

    Args:
        table: table `cross_patching`; rows of heads are left out. Not more pairs than colours, to be readable.
        prompts: harmful or harmless.
        value: `raw` (nats; positive: the target refuses more) or `effect` (share of the way to the source's score).
    """
    rows = of_set(table, prompts)
    rows = rows[rows["head"] < 0]
    rows = style.drawable(rows, value, "patches of layers across checkpoints")
    found = set(rows.loc[rows[value].notna(), "site"])
    sites = [name for name in SITES if name in found] + sorted(found - set(SITES))
    titles = [wording.for_plotly(SITES.get(site, wording.metric_name(site))) for site in sites]
    figure = make_subplots(cols=len(sites), subplot_titles=titles, horizontal_spacing=0.08)
    ends = ("low", "high") if value == "raw" else (f"{value}_low", f"{value}_high")
    for number, (_, pair) in enumerate(rows.groupby(PAIR, sort=False)):
        colour, name = style.ARM_COLOURS[number % len(style.ARM_COLOURS)], wording.for_plotly(pair_name(pair.iloc[0]))
        for place, site in enumerate(sites, start=1):
            own = pair[pair["site"] == site].sort_values("layer")
            if not own[value].notna().any():
                continue
            at = {"row": 1, "col": place}
            area = style.between(own, "layer", *ends, colour)
            if area is not None:
                figure.add_trace(area, **at)
            look = {"mode": "lines+markers", "line": {"color": colour, "width": 2}, "marker": {"size": 4}}
            trace = go.Scatter(
                x=[int(layer) for layer in own["layer"]],
                y=style.numbers(own[value]),
                name=name,
                legendgroup=name,
                showlegend=not any(each.name == name for each in figure.data),
                text=[_cell(row, int(row["layer"]), -1) for _, row in own.iterrows()],
                hoverinfo="text",
                **look,
            )
            figure.add_trace(trace, **at)
            control = own["control"]
            if value == "raw" and control.notna().any():
                line = {"color": colour, "width": 1.2, "dash": "dash"}
                dashed = go.Scatter(x=list(own["layer"]), y=style.numbers(control), mode="lines", line=line)
                dashed.update(name="control", legendgroup=name, showlegend=False, hoverinfo="skip")
                figure.add_trace(dashed, **at)
    figure.update_xaxes(title="layer", zeroline=False)
    figure.update_yaxes(title="nats" if value == "raw" else value, row=1, col=1)
    figure.update_annotations(font={"size": 12})
    figure.update_layout(showlegend=True, legend={"y": -0.24, "yanchor": "top"})
    subtitle = "; ".join(part for part in (_counts(rows, prompts), "dashed: control" if value == "raw" else "") if part)
    return style.finish(figure, title=title, subtitle=subtitle, height=400)


def _counts(rows: pd.DataFrame, prompts: str) -> str:
    return wording.counts(rows["n"], f"{wording.for_plotly(prompts)} prompts")


def _cell(row: pd.Series | None, layer: int, head: int) -> str:
    where = wording.head_name(layer, head) if head >= 0 else f"layer {layer}"
    if row is None:
        return f"{where}<br>not measured"
    return style.hover(
        [
            f"<b>{where}</b>, {wording.for_plotly(pair_name(row))}",
            f"change {wording.number(row['raw'], 3, signed=True)} nats{style.interval(row)}",
            f"control {wording.number(row['control'], 3, signed=True)}",
            f"effect {wording.number(row['effect'], 3, signed=True)}{style.interval(row, 'effect_low', 'effect_high')}",
            f"n = {wording.whole(row['n'])}",
            wording.for_plotly(row.get("reason", "")),
        ]
    )
