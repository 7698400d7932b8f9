"""How a checkpoint behaves: rates over steps, answers under interventions, refusal scores; and how long it took."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import ordered, word
from mechrefusal.report.figures.style import Look


def trajectory(
    table: pd.DataFrame,
    *,
    value: str = "value",
    title: str = "",
    subtitle: str = "",
    unit: str = "",
    limits: tuple[float, float] | None = None,
    noun: str = "prompts",
) -> go.Figure:
    """`value` over optimiser steps: one line an arm, with 95% intervals where the table has `low` and `high`.

    Args:
        table: one row a checkpoint, with `arm`, `step` and `value`. Rows of arm `base` start every line,
            the end of arm `warm-up` where there is one; the warm-up is then a line of its own.
        unit: title of the y axis.
        limits: range of the y axis.
    """
    rows = style.drawable(table, value, f"the trajectory of '{value}'")
    unit = unit or word("unit", value)
    look: Look = {"limits": limits, "noun": noun, "title": title, "unit": unit}
    return arms_over_steps("trajectory", rows, value, subtitle, quantity=word("quantity", value), **look)


def arms_over_steps(
    name: str,
    rows: pd.DataFrame,
    value: str,
    subtitle: str = "",
    *,
    limits: tuple[float, float] | None = None,
    noun: str = "prompts",
    unit: str | None = None,
    **names: Any,
) -> go.Figure:
    """The figure `name`: a line an arm over steps, with bars. `names` stand in the catalogue's title."""
    canvas = Canvas(name)
    for arm, subset, look in style.each_arm(rows.assign(shown=rows[value])):
        canvas.line(subset, "step", "shown", arm, interval="bars", size=8, **look)
    canvas.steps(rows["step"])
    canvas.y(title=wording.for_plotly(canvas.entry.y or unit or ""), range=list(limits) if limits else None)
    return canvas.finish(subtitle, wording.counts(rows["n"], noun) if "n" in rows else "", unit=unit, **names)


def interventions(table: pd.DataFrame, *, metric: str = "any_refusal") -> go.Figure:
    """Share of refusals of harmful and harmless prompts by intervention, with 95% intervals (one checkpoint)."""
    rows = table[(table["metric"] == metric) & (table["attack"] == "none") & (table["by"] == "all")]
    rows = rows[rows["suite"].isin(["evaluation_harmful", "evaluation_harmless"])]
    rows = style.drawable(rows, "value", f"{wording.metric_name(metric)} under interventions")
    canvas = Canvas("interventions")
    labels: list[str] = []
    places: list[int] = []
    for kind in ("harmful", "harmless"):
        subset = rows[rows["suite"] == f"evaluation_{kind}"].drop_duplicates("intervention").set_index("intervention")
        order = ordered(subset.index, "intervention")
        names = [word("intervention", name) for name in order]
        first = len(places) + (1 if places else 0)
        at = list(range(first, first + len(order)))
        subset = subset.loc[order].assign(kind=kind, intervention_name=names)
        bar = go.Bar(
            x=at,
            y=style.numbers(subset["value"]),
            error_y=style.error_bars(subset, "value", thickness=1.2, width=4, color=style.WHISKER),
            marker={"color": style.SET_COLOURS[kind]},
            text=canvas.hovers(subset),
            textposition="none",
            hoverinfo="text",
            **canvas.named(f"{kind} prompts"),
        )
        canvas.add(bar)
        labels, places = labels + names, places + at
    canvas.figure.update_layout(bargap=0.35)
    canvas.y(range=[0, 1.03])
    canvas.categories(labels, axis="x", places=places, tickangle=-45)
    return canvas.finish(wording.counts(rows["n"]), metric=wording.metric_name(metric))


def durations(table: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Wall time of each stage in seconds (tables `stages` and `timings`), longest at the top."""
    rows = style.drawable(table, "seconds", "wall times").sort_values("seconds", ascending=False)
    rows, canvas = rows.assign(place=range(len(rows))), Canvas("durations")
    written = [wording.seconds(value) for value in rows["seconds"]]
    blue = style.ARM_COLOURS[0]
    canvas.bars(rows, "seconds", "place", colour=blue, ends=None, written=written, textposition="auto")
    canvas.categories([wording.readable(wording.shortened(stage, 40)) for stage in rows["stage"]])
    total = f"in all {wording.seconds(rows['seconds'].sum())}"
    return canvas.finish(total, title=title, height=max(180, 24 * len(rows) + 110))


def scores(table: pd.DataFrame, *, score: str = "score") -> go.Figure:
    """Distribution of the refusal score by prompt set (table `scores`, one checkpoint); the hover says who refused.

    Args:
        score: `score` (discovered opening) or `rd_score` (hand-picked tokens, Arditi et al. 2024).
    """
    rows = style.drawable(table, score, f"'{score}' of prompts")
    answer = rows["refused"].fillna(False).map({True: "refused", False: "answered"})
    rows = rows.assign(shown=rows[score], answer=answer)
    canvas = Canvas("scores")
    for name, subset in rows.groupby("set", sort=True):
        harmless = "harmless" in str(name) or str(name) in ("overrefusal", "utility")
        colour = style.SET_COLOURS["harmless" if harmless else "harmful"]
        canvas.add(
            go.Box(
                x=style.numbers(subset["shown"]),
                name=wording.for_plotly(wording.set_name(str(name))).replace(" of the ", "<br>of the "),
                orientation="h",
                boxpoints="all",
                jitter=0.6,
                pointpos=0,
                fillcolor="rgba(0,0,0,0)",
                line={"color": colour, "width": 1},
                marker={"color": colour, "size": 4, "opacity": 0.55},
                text=canvas.hovers(subset),
                hoverinfo="text",
                showlegend=False,
            )
        )
    canvas.rule(x=0)
    n = wording.counts(rows.groupby("set").size(), "prompts a set")
    return canvas.finish("positive refuses", n, height=140 + 56 * rows["set"].nunique())
