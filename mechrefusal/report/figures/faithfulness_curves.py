"""Whether the circuit is enough, and whether it is needed: what of the metric it keeps, and what is lost without it."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrefusal.report import wording
from mechrefusal.report.figures import style

OF = {"harmful": "score of harmful prompts", "difference": "harmful − harmless score"}
_SIDES = {
    "kept": ("Kept by the set alone", style.ARM_COLOURS[0]),
    "lost": ("Lost without the set", style.ARM_COLOURS[1]),
}


def faithfulness(table: pd.DataFrame, *, of: str = "harmful") -> go.Figure:
    """Share of the metric that the first k heads and MLPs keep alone, and that is lost without them, by k.

    Bands: 95% intervals over prompts. Grey: random sets of as many heads and MLPs, their mean and range. The star is
    the circuit itself. Sizes are evenly spaced. A faithful circuit reaches 1 on both sides with few components.

    Args:
        table: table `faithfulness` of one checkpoint.
        of: which score, `harmful` or `difference` (column `of`).
    """
    rows = table[table["of"] == of]
    rows = style.drawable(rows, "kept", f"the faithfulness of '{wording.plain(of)}'").sort_values("size")
    rows = rows.assign(at=list(range(len(rows))))
    titles = [title for title, _ in _SIDES.values()]
    figure = make_subplots(cols=2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.05)
    own_size = rows[rows["is_circuit"]]
    for place, (side, (_, colour)) in enumerate(_SIDES.items(), start=1):
        at = {"row": 1, "col": place}
        for low, high, shade in (
            (f"random_{side}_least", f"random_{side}_most", style.NEUTRAL),
            (f"{side}_low", f"{side}_high", colour),
        ):
            area = style.between(rows, "at", low, high, shade)
            if area is not None:
                figure.add_trace(area, **at)
        texts = [_point(row, side) for _, row in rows.iterrows()]
        for column, name, line in (
            (f"random_{side}", "random sets", {"color": style.NEUTRAL, "width": 1.5, "dash": "dash"}),
            (side, side, {"color": colour, "width": 2}),
        ):
            values = rows[column]
            if not values.notna().any():
                continue
            first = not any(trace.legendgroup == name for trace in figure.data)
            look = {"mode": "lines+markers", "line": line, "marker": {"size": 6}, "text": texts, "hoverinfo": "text"}
            trace = go.Scatter(x=list(rows["at"]), y=style.numbers(values), name=name, legendgroup=name, **look)
            figure.add_trace(trace.update(showlegend=first), **at)
        if len(own_size):
            marker = {"symbol": "star", "size": 15, "color": colour, "line": {"width": 1, "color": "#111111"}}
            figure.add_trace(
                go.Scatter(
                    x=list(own_size["at"]),
                    y=style.numbers(own_size[side]),
                    mode="markers",
                    name="the circuit",
                    legendgroup="the circuit",
                    showlegend=place == 1,
                    marker=marker,
                    text=[_point(row, side) for _, row in own_size.iterrows()],
                    hoverinfo="text",
                ),
                **at,
            )
        for y in (0, 1):
            figure.add_hline(y=y, line={"width": 1, "color": style.AXIS, "dash": "dot" if y else "solid"}, **at)
    sizes = [wording.whole(size) for size in rows["size"]]
    figure.update_xaxes(
        title="heads and MLPs in the set", tickvals=list(rows["at"]), ticktext=sizes, tickangle=-90, zeroline=False
    )
    figure.update_yaxes(title="share of the metric", zeroline=False, row=1, col=1)
    figure.update_annotations(font={"size": 12})
    figure.update_layout(showlegend=True, legend={"y": -0.24, "yanchor": "top"})
    subtitle = "; ".join(part for part in (_measured_on(rows), wording.counts(rows["n"], "pairs")) if part)
    name = wording.for_plotly(OF.get(of, wording.metric_name(of)))
    return style.finish(figure, title=f"Of the {name}", subtitle=subtitle, height=390)


def _measured_on(rows: pd.DataFrame) -> str:
    found = sorted({wording.for_plotly(name) for name in rows["measured_on"] if name})
    return f"measured on {', '.join(found)}" if found else ""


def _point(row: pd.Series, side: str) -> str:
    name = "<b>the circuit: " if row["is_circuit"] else "<b>"
    random = [wording.number(row[f"random_{side}{end}"], 3) for end in ("", "_least", "_most")]
    node = "" if not row["node"] else f"last in: {wording.for_plotly(row['node'])}"
    return style.hover(
        [
            f"{name}{wording.whole(row['size'])}</b>",
            f"{wording.whole(row['heads'])} heads, {wording.whole(row['mlps'])} MLPs",
            node,
            f"{side} {wording.number(row[side], 3)}{style.interval(row, f'{side}_low', f'{side}_high')}",
            f"{wording.whole(row['n_random'])} random sets: {random[0]}, {random[1]} to {random[2]}",
            f"everything kept {wording.number(row['full'])}, all ablated {wording.number(row['ablated'])} nats",
        ]
    )
