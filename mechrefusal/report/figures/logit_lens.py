"""When the refusal opening shows: what the model would say if it stopped at each layer."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrefusal.report import wording
from mechrefusal.report.figures import style

QUANTITIES = {
    "refusal": ("log P(refusal tokens)", "nats"),
    "compliance": ("log P(compliance tokens)", "nats"),
    "score": ("Refusal score: the first minus the second", "nats"),
}
_SETS = {"harmful": (style.POSITIVE, "solid"), "harmless": (style.NEGATIVE, "dash")}


def logit_lens(table: pd.DataFrame) -> go.Figure:
    """Log-probability of refusal and of compliance and the score by layer, harmful against harmless prompts.

    Each layer's input goes through the final norm and the unembedding; the last point is the model's output. Bands are
    95% intervals of the mean over prompts.

    Args:
        table: table `logit_lens` of one checkpoint.
    """
    rows = table[table["quantity"].isin(list(QUANTITIES))]
    rows = style.drawable(rows, "value", "the logit lens")
    shown = [name for name in QUANTITIES if rows.loc[rows["quantity"] == name, "value"].notna().any()]
    figure = make_subplots(
        rows=len(shown),
        cols=1,
        shared_xaxes=True,
        subplot_titles=[QUANTITIES[name][0] for name in shown],
        vertical_spacing=0.27 / len(shown),
    )
    last = int(pd.to_numeric(rows["layer"], errors="coerce").max())
    for place, quantity in enumerate(shown, start=1):
        for kind, (colour, dash) in _SETS.items():
            own = rows[(rows["quantity"] == quantity) & (rows["set"] == kind)].sort_values("layer")
            if not own["value"].notna().any():
                continue
            area = style.between(own, "layer", "low", "high", colour)
            if area is not None:
                figure.add_trace(area, row=place, col=1)
            trace = go.Scatter(
                x=[int(layer) for layer in own["layer"]],
                y=style.numbers(own["value"]),
                mode="lines+markers",
                name=f"{kind} prompts",
                legendgroup=kind,
                showlegend=not any(each.legendgroup == kind for each in figure.data),
                line={"color": colour, "width": 2, "dash": dash},
                marker={"size": 4},
                text=[_point(row, kind, quantity, last) for _, row in own.iterrows()],
                hoverinfo="text",
            )
            figure.add_trace(trace, row=place, col=1)
        figure.update_yaxes(title=QUANTITIES[quantity][1], nticks=5, row=place, col=1)
    step = max(1, last // 10)
    ticks = [layer for layer in range(0, last, step) if last - layer >= step / 2]
    figure.update_xaxes(tickvals=[*ticks, last], ticktext=[*map(str, ticks), "output"], zeroline=False)
    figure.update_xaxes(title="input of layer", row=len(shown), col=1)
    height = 150 * len(shown)
    figure.update_annotations(x=0, xanchor="left", font={"size": 12})
    figure.update_layout(showlegend=True, legend={"y": -58 / height, "yanchor": "top"})
    return style.finish(figure, title="Logit lens", subtitle=wording.counts(rows["n"]), height=height + 150)


def _point(row: pd.Series, kind: str, quantity: str, last: int) -> str:
    layer = int(row["layer"])
    return style.hover(
        [
            f"<b>{'output' if layer == last else f'input of layer {layer}'}, {kind} prompts</b>",
            f"{quantity} {wording.number(row['value'], 3, signed=True)}{style.interval(row)}",
            f"n = {wording.whole(row['n'])}",
        ]
    )
