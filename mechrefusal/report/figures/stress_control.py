"""Attacks that fail: because the request is refused, or because the suffix is?"""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style, suites

_PARTS = {
    "robust": ("robust: fails, the twin with the suffix is answered", "#0072B2"),
    "refuses_suffix": ("refuses the suffix: fails, the twin with it is refused too", "#E69F00"),
    "attack_success": ("attack succeeds", "#D55E00"),
}
_REST = ("fails, the twin's answer is degenerate", style.NEUTRAL)


def stress_shares(table: pd.DataFrame, *, method: str | None = None, judge: str | None = None) -> go.Figure:
    """What becomes of attacks at each checkpoint, as stacked bars (table `stress_control`).

    The attack succeeds; or it fails and the harmless twin of its request, with the same suffix, is answered (robust) or
    refused (the checkpoint refuses the suffix). What is missing to 1 are degenerate answers to the twin. The hover has
    n, 95% Wilson intervals, and how often the twins are refused without and with the suffix.

    Args:
        method: the attack; by default the first of the table.
        judge: of the attack's success; by default the first by name.
    """
    what = "what becomes of attacks"
    rows = suites.readable(style.drawable(table, "value", what), *suites.NUMBERS)
    named = suites.texts(rows["method"])
    rows = suites.of(rows, method=method if method is not None else named.iloc[0]) if len(rows) else rows
    metrics = suites.texts(rows["metric"])
    shares = suites.of_judge(rows[metrics.isin(list(_PARTS))], judge)
    shares = style.drawable(shares, "value", f"{what} of judge '{wording.shortened(judge, 40)}'" if judge else what)
    twins = rows[(metrics == "refused").to_numpy() & (suites.texts(rows["judge"]) == _twin_judge(shares)).to_numpy()]
    points = sorted(set(zip(shares["arm"], shares["step"], strict=True)), key=suites.checkpoint_order)
    places = list(range(len(points)))
    figure, rest = go.Figure(), [1.0] * len(points)
    for metric, (name, colour) in _PARTS.items():
        own = [_at(suites.of(shares, metric=metric), point) for point in points]
        values = [None if row is None or pd.isna(row["value"]) else float(row["value"]) for row in own]
        rest = [left - value if value is not None else float("nan") for left, value in zip(rest, values, strict=True)]
        hovers = [_hover(point, name, row, twins) for point, row in zip(points, own, strict=True)]
        figure.add_trace(_bars(values, places, name, colour, hovers))
    left = [value if value > 1e-9 else None for value in rest]
    if any(value is not None for value in left):
        hovers = [f"<b>{suites.checkpoint_label(*point, 40)}</b><br>{_REST[0]}" for point in points]
        figure.add_trace(_bars(left, places, *_REST, hovers))
    figure.update_xaxes(title="share of cases", range=[0, 1], zeroline=False)
    labels = [suites.checkpoint_label(*point) for point in points]
    look = {"range": [len(points) - 0.5, -0.5], "showgrid": False, "zeroline": False}
    figure.update_yaxes(tickvals=places, ticktext=labels, **look)
    height = 230 + 34 * len(points)
    figure.update_layout(
        barmode="stack",
        bargap=0.3,
        showlegend=True,
        legend={"y": -70 / (height - 150), "yanchor": "top", "traceorder": "normal"},
    )
    said = (suites.judged(shares), wording.counts(shares["n"], "cases with a harmless twin"))
    title = f"What becomes of {wording.for_plotly(wording.shortened(suites.texts(rows['method']).iloc[0], 24))} attacks"
    return style.finish(figure, title=title, subtitle="; ".join(part for part in said if part), height=height)


def _twin_judge(shares: pd.DataFrame) -> str:
    return str(suites.texts(shares["twin_judge"]).iloc[0])


def _at(rows: pd.DataFrame, point: tuple[str, int]) -> pd.Series | None:
    own = rows[(rows["arm"] == point[0]) & (rows["step"] == point[1])]
    return own.iloc[0] if len(own) else None


def _bars(values: list[float | None], places: list[int], name: str, colour: str, hovers: list[str]) -> go.Bar:
    return go.Bar(
        x=values,
        y=places,
        orientation="h",
        name=name,
        marker={"color": colour},
        text=["" if value is None or value < 0.06 else wording.rate(value) for value in values],
        textposition="inside",
        insidetextanchor="middle",
        hovertext=hovers,
        hoverinfo="text",
    )


def _hover(point: tuple[str, int], name: str, row: pd.Series | None, twins: pd.DataFrame) -> str:
    label = f"<b>{suites.checkpoint_label(*point, 40)}</b>"
    if row is None:
        return style.hover([label, name, "not measured"])
    nulls = f", {wording.whole(row['nulls'])} without a verdict" if row["nulls"] else ""
    alone, behind = (_at(suites.of(twins, suffix=suffix), point) for suffix in ("none", "attacked"))
    refused = " → ".join(wording.rate(None if each is None else each["value"]) for each in (alone, behind))
    return style.hover(
        [
            label,
            f"{name}: {wording.rate(row['value'])}{style.interval(row)}",
            f"n = {wording.whole(row['n'])} cases{nulls}",
            f"twins refused without → with the suffix: {refused}",
        ]
    )
