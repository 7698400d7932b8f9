"""What changed between checkpoints, or under an intervention, on the same prompts: paired differences."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import style, suites
from mechrefusal.report.order import checkpoint_order

PAIRS = ("checkpoints", "interventions")
_NUMBERS = (
    "difference",
    "low",
    "high",
    "mcnemar_p",
    "p_adjusted",
    "mean_a",
    "mean_b",
    "only_a",
    "only_b",
    "n",
    "nulls",
)
_KINDS = {
    "base": "since the base",
    "consecutive": "since the anchor before",
    "last": "last anchors of two arms",
    "intervention": "intervention against none",
}


def suite_differences(
    table: pd.DataFrame,
    *,
    suite: str,
    side: str = "harmful",
    metric: str = "any_refusal",
    judge: str | None = None,
    attack: str = "none",
    intervention: str = "none",
    pairs: str = "checkpoints",
) -> go.Figure:
    """Paired differences of a rate as a forest plot (table `suite_differences`): b minus a, with 95% intervals.

    One line a pair a → b, in the colour of b's arm: checkpoints against the base, consecutive anchors, the last ones of
    two arms. Filled: the interval excludes zero. The hover has the p of McNemar's exact test. Nothing is
    corrected for the number of pairs.

    Args:
        suite, side, metric, attack: values of the columns of these names.
        judge: by default the first by name.
        intervention: under which both checkpoints answered.
        pairs: `checkpoints`, or `interventions`: every intervention against none, at the same checkpoint.
    """
    if pairs not in PAIRS:
        raise MechrefusalError(f"unknown pairs '{pairs}' of differences: expected one of {', '.join(PAIRS)}")
    between = pairs == "checkpoints"
    wanted = suites.of(table, suite=suite, side=side, metric=metric, attack=attack)
    wanted = wanted[(suites.texts(wanted["pair"]) != "intervention").to_numpy() == between]
    wanted = suites.of(wanted, intervention=intervention) if between else wanted
    what = f"differences of {wording.metric_name(metric)} on '{wording.shortened(suite, 40)}'"
    rows = style.drawable(_ordered(suites.of_judge(wanted, judge)), "difference", what)
    names = style.arms(pd.DataFrame({"arm": [*rows["arm_a"], *rows["arm_b"]]}))
    figure = go.Figure()
    for arm in [name for name in ("base", *names) if (rows["arm_b"] == name).any()]:
        if arm in [trace.legendgroup for trace in figure.data]:
            continue  # `base` is the only arm
        figure.add_trace(_dots(rows[rows["arm_b"] == arm], arm, names))
    figure.add_vline(x=0, line={"width": 1, "color": style.AXIS})
    figure.update_xaxes(title=f"difference of {wording.for_plotly(wording.metric_name(metric))}", zeroline=False)
    places = list(range(len(rows)))
    labels = [_pair(row, 10) for _, row in rows.iterrows()]
    look = {"range": [len(rows) - 0.5, -0.5], "showgrid": False, "zeroline": False}
    figure.update_yaxes(tickvals=places, ticktext=labels, **look)
    height = 190 + (22 if len(rows) <= 60 else 16) * len(rows)
    figure.update_layout(legend={"y": -70 / (height - 110), "yanchor": "top"}, showlegend=True)
    n = wording.counts(rows["n"], "prompts that both answered")
    subtitle = "; ".join(part for part in (suites.judged(rows), n, "filled: excludes 0") if part)
    return style.finish(
        figure,
        title=_title(metric, suite, side, attack, intervention, between=between),
        subtitle=subtitle,
        height=height,
    )


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Readable rows by kind of pair, then by checkpoints."""
    rows = suites.readable(table, *_NUMBERS, arm="arm_a", step="step_a")
    rows = suites.readable(rows, arm="arm_b", step="step_b")
    kinds = list(_KINDS)
    order = [
        (
            kinds.index(str(row.pair)) if str(row.pair) in kinds else len(kinds),
            *checkpoint_order((row.arm_b, 0)),
            *checkpoint_order((row.arm_a, row.step_a)),
            row.step_b,
        )
        for row in rows.itertuples()
    ]
    return rows.iloc[sorted(range(len(rows)), key=order.__getitem__)].reset_index(drop=True)


def _dots(own: pd.DataFrame, arm: str, names: list[str]) -> go.Scatter:
    colour, symbol = style.arm_style(arm, names)
    clear = (own["low"] > 0) | (own["high"] < 0)
    return go.Scatter(
        x=style.numbers(own["difference"]),
        y=[int(place) for place in own.index],
        error_x=style.error_bars(own, "difference", color=colour),
        mode="markers",
        name=wording.for_plotly(wording.shortened(arm, 24)),
        legendgroup=arm,
        marker={
            "color": colour,
            "symbol": [symbol if filled else f"{symbol}-open" for filled in clear],
            "size": 9,
            "line": {"width": 1.6, "color": colour},
        },
        text=[_hover(row) for _, row in own.iterrows()],
        hoverinfo="text",
    )


def _title(metric: str, suite: str, side: str, attack: str, intervention: str, *, between: bool) -> str:
    asked = suites.title(metric, suite, side, attack)
    if not between:
        return f"What interventions change: {asked[:1].lower()}{asked[1:]}"
    under = "" if intervention == "none" else f", {wording.for_plotly(wording.shortened(intervention, 40))}"
    return f"Change of {asked[:1].lower()}{asked[1:]}{under}"


def _pair(row: pd.Series, limit: int) -> str:
    first, second = (suites.checkpoint_label(row[f"arm_{end}"], row[f"step_{end}"], limit) for end in "ab")
    if str(row["pair"]) == "intervention":
        return f"{second}: {wording.for_plotly(wording.shortened(row['intervention'], limit + 6))}"
    return f"{first} → {second}"


def _hover(row: pd.Series) -> str:
    p, other = row["mcnemar_p"], row.get("p_adjusted")
    adjusted = "" if wording.is_missing(other) else f"; adjusted p = {wording.number(other, 4)}"
    means = [wording.number(row[f"mean_{end}"], 3) for end in "ab"]
    return style.hover(
        [
            f"<b>{_pair(row, 40)}</b>",
            _KINDS.get(str(row["pair"]), ""),
            f"{means[0]} → {means[1]}: {wording.number(row['difference'], 3, signed=True)}{style.interval(row)}",
            "" if wording.is_missing(p) else f"McNemar p = {wording.number(p, 4)}{adjusted}",
            f"prompts that lost it {wording.whole(row['only_a'])}, gained it {wording.whole(row['only_b'])}",
            f"n = {wording.whole(row['n'])}, nulls {wording.whole(row['nulls'])}",
        ]
    )
