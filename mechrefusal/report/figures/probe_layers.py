"""Linear probes by layer: can a line tell two groups of prompts apart, and does the difference in means do as well?"""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style

TARGETS = {
    "harmful": "Harmful or harmless",
    "refused": "Harmful: refused or answered",
    "overrefused": "Safe: refused or answered",
}


def linear_probes(table: pd.DataFrame, *, target: str, position: int | None = None) -> go.Figure:
    """AUC by layer: a cross-validated probe (95% interval), the difference in means, a probe on shuffled labels.

    Args:
        table: table `linear_probes` of one checkpoint.
        target: a value of the column `target`.
        position: where the activations were read; needed where the target was probed at several positions.
    """
    rows = table[table["target"] == target]
    if position is not None:
        rows = rows[rows["position"] == position]
    rows = style.drawable(rows, "auc", f"probes of '{wording.plain(target)}'").sort_values(["layer"])
    colour, figure = style.ARM_COLOURS[0], go.Figure()
    if rows["layer"].nunique() > 1 and (area := style.between(rows, "layer", "low", "high", colour)) is not None:
        figure.add_trace(area)
    looks = {
        "shuffled_auc": ("shuffled labels", {"color": style.NEUTRAL, "width": 1.5, "dash": "dot"}, "x"),
        "mean_auc": ("difference in means", {"color": style.ARM_COLOURS[1], "width": 2, "dash": "dash"}, "square"),
        "auc": ("probe (95% interval)", {"color": colour, "width": 2}, "circle"),
    }
    texts = [_probe(row) for _, row in rows.iterrows()]
    few = len(rows) == 1
    for place, (column, (name, line, symbol)) in enumerate(looks.items()):
        values = rows[column]
        if not values.notna().any():
            continue
        figure.add_trace(
            go.Scatter(
                x=[float(layer) + (0.2 * (place - 1) if few else 0.0) for layer in rows["layer"]],
                y=style.numbers(values),
                error_y=style.error_bars(rows, "auc") if column == "auc" and few else None,
                mode="lines+markers",
                name=name,
                line=line,
                marker={"size": 9 if few else 5, "symbol": symbol},
                text=texts,
                hoverinfo="text",
            )
        )
    figure.add_hline(y=0.5, line={"width": 1, "color": style.AXIS})
    lowest = min(0.4, float(rows["low"].min()), float(rows["auc"].min()))
    figure.update_xaxes(title="layer", zeroline=False)
    if few:
        only = int(rows["layer"].iloc[0])
        figure.update_xaxes(tickvals=[only], range=[only - 1, only + 1])
    figure.update_yaxes(title="AUC", range=[max(0.0, lowest) - 0.03, 1.03])
    figure.update_layout(legend={"y": -0.26, "yanchor": "top"}, showlegend=True)
    title = wording.for_plotly(TARGETS.get(target, wording.metric_name(wording.shortened(target))))
    return style.finish(figure, title=title, subtitle=_subtitle(rows), height=390)


def _subtitle(rows: pd.DataFrame) -> str:
    positions = sorted(set(rows["position"]))
    where = f"position {wording.whole(positions[0])}" if len(positions) == 1 else ""
    first = rows.iloc[0]
    sizes = " and ".join(wording.whole(first[name]) for name in ("n_positive", "n_negative"))
    return "; ".join(part for part in (where, f"n = {sizes} prompts") if part)


def _probe(row: pd.Series) -> str:
    return style.hover(
        [
            f"<b>layer {int(row['layer'])}</b>",
            f"probe {wording.number(row['auc'], 3)}{style.interval(row)}",
            f"difference in means {wording.number(row['mean_auc'], 3)}",
            f"shuffled labels {wording.number(row['shuffled_auc'], 3)}",
            f"cosine of the two {wording.number(row['cosine'], 3)}",
            wording.for_plotly(row.get("reason", "")),
        ]
    )
