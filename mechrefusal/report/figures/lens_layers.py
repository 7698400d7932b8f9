"""When the refusal opening shows: what the model would say if it stopped at each layer."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrefusal.report import wording
from mechrefusal.report.figures import style

QUANTITIES = {
    "refusal": "log P(refusal tokens)",
    "compliance": "log P(compliance tokens)",
    "score": "Refusal score: the first minus the second",
}
_SETS = {"harmful": (style.POSITIVE, "solid"), "harmless": (style.NEGATIVE, "dash")}


def logit_lens(table: pd.DataFrame) -> go.Figure:
    """Log-probability of refusal and of compliance and the score by layer, harmful against harmless prompts.

    Below: how much higher the mean score is on harmful prompts. Each layer's input goes through the final norm and the
    unembedding; the last point is the model's output. Bands are 95% intervals of the mean over prompts.

    Args:
        table: table `logit_lens` of one checkpoint.
    """
    rows = table[table["quantity"].isin(list(QUANTITIES))]
    rows = style.drawable(rows, "value", "the logit lens")
    shown = [name for name in QUANTITIES if rows.loc[rows["quantity"] == name, "value"].notna().any()]
    titles, gap = [QUANTITIES[name] for name in shown], _gap(rows)
    if gap is not None:
        titles.append("Refusal score, harmful − harmless (means)")
    figure = make_subplots(
        rows=len(titles), cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.27 / len(titles)
    )
    last = int(rows["layer"].max())
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
        figure.update_yaxes(title="nats", nticks=5, range=_range(rows[rows["quantity"] == quantity]), row=place, col=1)
    if gap is not None:
        look = {"mode": "lines+markers", "line": {"color": style.NEUTRAL, "width": 2}, "marker": {"size": 4}}
        texts = [f"<b>{_where(int(at), last)}</b><br>{wording.number(v, 3, signed=True)} nats" for at, v in gap.items()]
        trace = go.Scatter(
            x=list(gap.index), y=list(gap), name="harmful − harmless", text=texts, hoverinfo="text", **look
        )
        figure.add_trace(trace, row=len(titles), col=1)
        figure.update_yaxes(title="nats", nticks=5, row=len(titles), col=1)
    step = max(1, last // 10)
    ticks = [layer for layer in range(0, last, step) if last - layer >= step / 2]
    figure.update_xaxes(tickvals=[*ticks, last], zeroline=False)
    # Named below the last panel only, where all panels' layers are read off.
    figure.update_xaxes(title="input of layer", ticktext=[*map(str, ticks), "output"], row=len(titles), col=1)
    height = 150 * len(titles)
    figure.update_annotations(x=0, xanchor="left", font={"size": 12})
    figure.update_layout(showlegend=True, legend={"y": -58 / height, "yanchor": "top"})
    return style.finish(figure, title="Logit lens", subtitle=wording.counts(rows["n"]), height=height + 150)


def _point(row: pd.Series, kind: str, quantity: str, last: int) -> str:
    return style.hover(
        [
            f"<b>{_where(int(row['layer']), last)}, {kind} prompts</b>",
            f"{quantity} {wording.number(row['value'], 3, signed=True)}{style.interval(row)}",
            f"n = {wording.whole(row['n'])}",
        ]
    )


def _where(layer: int, last: int) -> str:
    return "output" if layer == last else f"input of layer {layer}"


def _gap(rows: pd.DataFrame) -> pd.Series | None:
    """Mean score of harmful minus harmless prompts by layer; None where one is missing."""
    score = rows[rows["quantity"] == "score"].drop_duplicates(["set", "layer"])
    by_set = score.pivot(index="layer", columns="set", values="value")
    if not set(_SETS) <= set(by_set):
        return None
    gap = (by_set["harmful"] - by_set["harmless"]).dropna().sort_index()
    return gap if len(gap) else None


def _range(rows: pd.DataFrame) -> list[float] | None:
    """The y range without the input of layer 0, where that alone would more than double it; else plotly's own."""
    ends = rows.assign(**{end: rows[end].fillna(rows["value"]) for end in ("low", "high")})
    later = ends[ends["layer"] > 0]
    bottom, top = float(later["low"].min()), float(later["high"].max())
    if not bottom < top or (ends["low"].min() > bottom - (top - bottom) and ends["high"].max() < top + (top - bottom)):
        return None
    return [bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom)]
