"""Dose and response: what more and more of an intervention does to refusal, and what it costs on harmless prompts."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrefusal.report import wording
from mechrefusal.report.figures import style

MEASURES = {
    "refusal_harmful": ("Refusal score, harmful prompts", "nats"),
    "refusal_harmless": ("Refusal score, harmless prompts", "nats"),
    "refused_harmless": ("Share refused, harmless prompts", "share"),
    "loss_harmless": ("Loss on the own harmless answers", "nats a token"),
    "kl_harmless": ("KL, harmless prompts", "nats"),
}
_INTERVENTIONS = {"ablate": "Ablate the direction", "induce": "Put the direction in"}
_ROW = 118


def doses(table: pd.DataFrame, *, intervention: str = "ablate") -> go.Figure:
    """Each measure against the coefficient of an intervention, below each other; dashed: a random direction.

    Args:
        table: table `doses` of one checkpoint.
        intervention: `ablate` or `add`; its control is `<intervention>_random`.
    """
    kinds = {intervention: "the direction", f"{intervention}_random": "random direction"}
    rows = table[table["intervention"].isin(list(kinds))]
    rows = style.drawable(rows, "value", f"the dose-response of '{wording.plain(intervention)}'")
    found = set(rows.loc[rows["value"].notna(), "measure"])
    measures = [name for name in MEASURES if name in found] + sorted(found - set(MEASURES))
    titles = [wording.for_plotly(MEASURES.get(name, (wording.metric_name(name), ""))[0]) for name in measures]
    figure = make_subplots(
        rows=len(measures), cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.27 / len(measures)
    )
    for place, measure in enumerate(measures, start=1):
        for kind, name in kinds.items():
            own = rows[(rows["measure"] == measure) & (rows["intervention"] == kind)].sort_values("coefficient")
            if own["value"].notna().any():
                _curve(figure, own, place, name, control=kind != intervention, legend=not _known(figure, name))
        unit = wording.for_plotly(MEASURES.get(measure, ("", ""))[1])
        figure.update_yaxes(title=unit, nticks=4, row=place, col=1)
    figure.update_xaxes(title="coefficient", row=len(measures), col=1)
    height = _ROW * len(measures)
    figure.update_annotations(x=0, xanchor="left", font={"size": 12})
    figure.update_layout(showlegend=True, legend={"y": -58 / height, "yanchor": "top"})
    title = _INTERVENTIONS.get(intervention, wording.for_plotly(wording.metric_name(intervention)).capitalize())
    return style.finish(figure, title=title, subtitle=wording.counts(rows["n"]), height=height + 160)


def _curve(figure: go.Figure, own: pd.DataFrame, place: int, name: str, *, control: bool, legend: bool) -> None:
    colour = style.NEUTRAL if control else style.ARM_COLOURS[0]
    area = style.between(own, "coefficient", "low", "high", colour)
    if area is not None:
        figure.add_trace(area, row=place, col=1)
    texts = [
        style.hover(
            [
                f"<b>{name}, coefficient {float(row['coefficient']):g}</b>",
                f"{wording.number(row['value'], 3)}{style.interval(row)}",
                f"n = {row['n']}",
            ]
        )
        for _, row in own.iterrows()
    ]
    curve = go.Scatter(
        x=style.numbers(own["coefficient"]),
        y=style.numbers(own["value"]),
        mode="lines+markers",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line={"color": colour, "width": 1.5 if control else 2, "dash": "dash" if control else "solid"},
        marker={"size": 5},
        text=texts,
        hoverinfo="text",
    )
    figure.add_trace(curve, row=place, col=1)


def _known(figure: go.Figure, name: str) -> bool:
    return any(trace.name == name for trace in figure.data)
