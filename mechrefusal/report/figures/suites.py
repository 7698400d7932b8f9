"""Rates of suites and probes over optimiser steps and by category, and what training did to the base's answers."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import heatmaps, lines, style
from mechrefusal.report.order import checkpoint_order

NUMBERS = ("value", "low", "high", "n", "nulls")
_LIMITS = (-0.03, 1.03)
_LONGEST = 40


def of(table: pd.DataFrame, **wanted: str | None) -> pd.DataFrame:
    """Rows whose columns have these values, as text; None takes any value."""
    keep = np.ones(len(table), dtype=bool)
    for column, value in wanted.items():
        if value is not None:
            keep &= (texts(table[column]) == value).to_numpy(dtype=bool)
    return table[keep]


def readable(table: pd.DataFrame, *numbers: str, arm: str = "arm", step: str = "step") -> pd.DataFrame:
    """`table` with float `numbers`, arms as text, whole steps; rows without a step have no place and are left out."""
    known = {name: floats(table[name]) for name in (*numbers, step) if name in table}
    found = table.assign(**known, **{arm: texts(table[arm])})
    found = found[found[step].notna()]
    return found.assign(**{step: found[step].astype(int)})


def texts(values: pd.Series) -> pd.Series:
    """Texts of a column; a missing one is a dash."""
    return pd.Series([wording.MISSING if wording.is_missing(v) else str(v) for v in values], values.index, dtype=object)


def floats(values: pd.Series) -> pd.Series:
    """Numbers of a column; what is none, or infinite, is NaN."""
    return pd.to_numeric(values, errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def of_judge(rows: pd.DataFrame, judge: str | None) -> pd.DataFrame:
    """Rows of one judge, by default the first by name: rates of different judges are not mixed."""
    return of(rows, judge=judge if judge is not None else min(texts(rows["judge"]), default=""))


def checkpoint_label(arm: str, step: float, limit: int = 16) -> str:
    """`sft 50`, safe for plotly."""
    return wording.for_plotly(f"{wording.shortened(arm, limit)} {wording.whole(step)}")


def rates(
    table: pd.DataFrame,
    *,
    suite: str = "evaluation_harmful",
    side: str | None = None,
    metric: str = "any_refusal",
    judge: str | None = None,
    attack: str = "none",
) -> go.Figure:
    """One rate of a suite over optimiser steps (table `rates`): one line an arm, dashed under interventions.

    Bands are 95% intervals; lines under interventions, and of one checkpoint, have bars instead.

    Args:
        suite, metric, attack: values of the columns of these names.
        side: of a suite that has both; by default the harmful one where there is one.
        judge: by default the first by name.
    """
    side = side or _side(table, suite)
    rows = of_judge(of(table, suite=suite, side=side, metric=metric, attack=attack, by="all"), judge)
    what = f"{wording.metric_name(metric)} on '{wording.shortened(suite, _LONGEST)}'"
    rows = style.drawable(readable(rows, *NUMBERS), "value", what)
    names, figure = style.arms(rows), go.Figure()
    interventions = sorted(set(texts(rows["intervention"])), key=lambda name: (name != "none", name))
    for place, arm in enumerate(names):
        colour, symbol = style.arm_style(arm, names)
        shift = lines.beside(rows, place, len(names))
        for number, intervention in enumerate(interventions):
            own = style.with_base(of(rows, intervention=intervention), arm)
            if not own["value"].notna().any():
                continue
            own = own.assign(at=own["step"] + shift)
            area = style.between(own, "at", "low", "high", colour) if intervention == "none" else None
            if area is not None:
                figure.add_trace(area)
            under = "" if intervention == "none" else f": {wording.shortened(intervention, 24)}"
            trace = go.Scatter(
                x=list(own["at"]),
                y=style.numbers(own["value"]),
                error_y=None if area is not None else style.error_bars(own, "value"),
                mode="lines+markers",
                name=wording.for_plotly(f"{wording.shortened(arm, 24)}{under}"),
                line={"color": colour, "width": 2, "dash": style.DASHES[number % len(style.DASHES)]},
                marker={"color": colour, "symbol": symbol if not number else f"{symbol}-open", "size": 8},
                text=[_rate_hover(row) for _, row in own.iterrows()],
                hoverinfo="text",
            )
            figure.add_trace(trace)
    lines.step_axes(figure, rows, wording.metric_name(metric), _LIMITS)
    figure.update_layout(legend={"y": -0.24, "yanchor": "top"}, showlegend=True)
    return style.finish(figure, title=title(metric, suite, side, attack), subtitle=_extent(rows), height=370)


def _side(table: pd.DataFrame, suite: str) -> str:
    return min(texts(of(table, suite=suite)["side"]), default="harmful")  # "harmful" comes before "harmless"


def suite_categories(
    table: pd.DataFrame,
    *,
    suite: str,
    side: str = "harmful",
    metric: str = "any_refusal",
    judge: str | None = None,
    attack: str = "none",
    intervention: str = "none",
    by: str = "category",
) -> go.Figure:
    """Heatmap of a rate by category of the prompts: x = checkpoint, y = category (table `rates`).

    The hover has n and the 95% interval: categories are small.

    Args:
        by: `category` (XSTest's type, HarmBench's semantic category) or `group` (HarmBench's functional category).
    """
    chosen = of(table, suite=suite, side=side, metric=metric, attack=attack, intervention=intervention, by=by)
    what = f"{wording.metric_name(metric)} by {by} on '{wording.shortened(suite, _LONGEST)}'"
    rows = style.drawable(readable(of_judge(chosen, judge), *NUMBERS), "value", what)
    columns = sorted(dict.fromkeys(zip(rows["arm"], rows["step"], strict=True)), key=checkpoint_order)
    rows = rows.assign(of=texts(rows["of"]))
    kinds = list(dict.fromkeys(rows["of"]))
    values = np.full((len(kinds), len(columns)), np.nan)
    hovers = [["not measured" for _ in columns] for _ in kinds]
    for _, row in rows.iterrows():
        i, j = kinds.index(row["of"]), columns.index((row["arm"], row["step"]))
        values[i, j] = row["value"]
        hovers[i][j] = style.hover([f"<b>{wording.for_plotly(wording.shortened(row['of']))}</b>", _rate_hover(row)])
    written = [["" if np.isnan(value) else wording.rate(value) for value in line] for line in values]
    figure = heatmaps.written_grid(values, written, hovers, title="rate")
    shown = {"showgrid": False, "zeroline": False}
    labels = [checkpoint_label(*key, limit=12) for key in columns]
    figure.update_xaxes(tickvals=list(range(len(columns))), ticktext=labels, tickangle=-90, **shown)
    named = [wording.for_plotly(wording.token(wording.metric_name(kind), 26)) for kind in kinds]
    figure.update_yaxes(tickvals=list(range(len(kinds))), ticktext=named, range=[len(kinds) - 0.5, -0.5], **shown)
    return style.finish(
        figure,
        title=f"{title(metric, suite, side, attack)}, by {wording.metric_name(by)}",
        subtitle=_extent(rows),
        height=210 + 24 * len(kinds),
    )


def answer_losses(table: pd.DataFrame, *, suite: str) -> go.Figure:
    """What training did to the base model's own answers: cross-entropy relative to the base (table `answer_losses`).

    Nats a token, paired by prompt, with 95% intervals; above zero the checkpoint finds those answers less likely.
    """
    rows = readable(of(table, suite=suite), "loss", "difference", "low", "high", "n")
    name = wording.for_plotly(wording.shortened(suite, _LONGEST))
    figure = lines.trajectory(
        rows, value="difference", title=f"Loss of the base model's answers: {name}", unit="nats a token above the base"
    )
    figure.add_hline(y=0, line={"width": 1, "color": style.AXIS})
    return figure


def probes(
    table: pd.DataFrame, *, set: str = "harmful", metric: str = "any_refusal", judge: str | None = None
) -> go.Figure:
    """A rate of one probe set over the anchors of training, with 95% intervals (table `probes`; unit: share of n).

    Args:
        set: `harmful`, `harmless` or `attacked` (behaviours of the pool with their suffixes of that moment).
        judge: the rule that judged; by default the first by name.
    """
    rows = of_judge(of(table, set=set, metric=metric), judge)
    name = f"{wording.metric_name(metric).capitalize()}: {wording.metric_name(set)} probes"
    return lines.trajectory(
        rows, title=wording.for_plotly(name), subtitle=judged(rows), unit="rate", limits=_LIMITS, noun="probes"
    )


def title(metric: str, suite: str, side: str, attack: str = "none") -> str:
    """`Any refusal: xstest, harmless prompts`, safe for plotly; the study's own suites have names that say the side."""
    pressed = "" if attack == "none" else f", {wording.shortened(attack, _LONGEST)}"
    own = wording.SET_NAMES.get(suite)
    asked = own or f"{wording.shortened(suite, _LONGEST)}, {wording.shortened(side, _LONGEST)} prompts"
    return wording.for_plotly(f"{wording.metric_name(metric).capitalize()}: {asked}{pressed}")


def judged(rows: pd.DataFrame) -> str:
    """`judge: refusal-rules`, safe for plotly."""
    return f"judge: {wording.for_plotly(wording.shortened(rows['judge'].iloc[0]))}" if len(rows) else ""


def _extent(rows: pd.DataFrame) -> str:
    return "; ".join(part for part in (judged(rows), wording.counts(rows["n"])) if part)


def _rate_hover(row: pd.Series) -> str:
    under = str(row["intervention"])
    nulls = "" if wording.is_missing(row["nulls"]) or not row["nulls"] else f", {wording.whole(row['nulls'])} nulls"
    return style.hover(
        [
            f"<b>{checkpoint_label(row['arm'], row['step'], 40)}</b>",
            "" if under == "none" else wording.for_plotly(wording.shortened(under)),
            f"{wording.number(row['value'], 3)}{style.interval(row)}",
            f"n = {wording.whole(row['n'])}{nulls}",
        ]
    )
