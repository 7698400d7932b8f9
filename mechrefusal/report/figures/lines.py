"""Lines over optimiser steps, one an arm, each starting at the base model or at the end of the shared warm-up."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style


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

    Arms are drawn slightly beside each other so that intervals stay apart; the hover shows the true step.

    Args:
        table: one row a checkpoint, with `arm`, `step` and `value`. Rows of arm `base` start every line,
            the end of arm `warm-up` where there is one; the warm-up is then a line of its own.
        unit: title of the y axis.
        limits: range of the y axis.
    """
    table = style.drawable(table, value, f"the trajectory of '{value}'")
    names = style.arms(table)
    figure = go.Figure()
    for place, arm in enumerate(names):
        rows = style.with_base(table, arm)
        colour, symbol = style.arm_style(arm, names)
        shift = beside(table, place, len(names))
        texts = [_point(row, value) for _, row in rows.iterrows()]
        figure.add_trace(
            go.Scatter(
                x=[step + shift for step in rows["step"]],
                y=style.numbers(rows[value]),
                error_y=style.error_bars(rows, value),
                mode="lines+markers",
                name=wording.for_plotly(arm),
                line={"color": colour, "width": 2},
                marker={"color": colour, "symbol": symbol, "size": 8},
                text=texts,
                hoverinfo="text",
            )
        )
    step_axes(figure, table, unit or value, limits)
    n = wording.counts(table["n"], noun) if "n" in table else ""
    return style.finish(figure, title=title, subtitle="; ".join(part for part in (subtitle, n) if part), height=320)


def beside(table: pd.DataFrame, place: int, n: int) -> float:
    """How far arm number `place` of `n` is moved along the steps, so that intervals do not hide each other."""
    reach = float(table["step"].max() - table["step"].min()) or 1.0
    return (place - (n - 1) / 2) * 0.012 * reach


def effective_rank(table: pd.DataFrame, *, rows: str) -> go.Figure:
    """Effective rank, exp(entropy of the normalised singular values), over optimiser steps (table `effective_rank`).

    Args:
        rows: which vectors are the rows of the matrix (`positions`, `layers`, `admissible`). Colour is the arm, the
            dash is the variant: raw or unit rows, entropy over sigma or sigma squared.
    """
    chosen = style.drawable(table[table["rows"] == rows], "value", f"effective rank over {rows}")
    names = style.arms(chosen)
    variants = sorted({(str(s), str(w)) for s, w in zip(chosen["scaling"], chosen["weight"], strict=True)})
    figure = go.Figure()
    for arm in names:
        colour, symbol = style.arm_style(arm, names)
        for place, (scaling, weight) in enumerate(variants):
            own = style.with_base(chosen[(chosen["scaling"] == scaling) & (chosen["weight"] == weight)], arm)
            variant = f"{scaling}, {'σ²' if weight == 'sigma_squared' else 'σ' if weight == 'sigma' else weight}"
            texts = [
                style.hover(
                    [
                        f"<b>{wording.for_plotly(r.arm)}, step {r.step}</b>",
                        f"{variant} {wording.number(r.value, 3)}",
                        f"{wording.whole(r.n_rows)} rows",
                    ]
                )
                for r in own.itertuples()
            ]
            line = {"color": colour, "width": 2, "dash": style.DASHES[place % len(style.DASHES)]}
            marker = {"color": colour, "symbol": symbol, "size": 6}
            label = wording.for_plotly(f"{arm}: {variant}")
            figure.add_trace(
                go.Scatter(
                    x=list(own["step"]),
                    y=style.numbers(own["value"]),
                    mode="lines+markers",
                    name=label,
                    line=line,
                    marker=marker,
                    text=texts,
                    hoverinfo="text",
                )
            )
    step_axes(figure, chosen, "effective rank", None)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(legend={"orientation": "h", "y": -0.24, "yanchor": "top"})
    extent = wording.counts(chosen["n_rows"], "rows")
    return style.finish(
        figure, title=f"Rows: {wording.for_plotly(wording.metric_name(rows))}", subtitle=extent, height=400
    )


def step_axes(figure: go.Figure, table: pd.DataFrame, unit: str, limits: tuple[float, float] | None) -> None:
    """Ticks at the steps of the table, `unit` beside the y axis."""
    steps = sorted({int(step) for step in table["step"]})
    figure.update_xaxes(title=style.STEPS, tickvals=steps)
    figure.update_yaxes(title=wording.for_plotly(unit), range=list(limits) if limits else None)


def _point(row: pd.Series, value: str) -> str:
    lines = [
        f"<b>{wording.for_plotly(row['arm'])}, step {int(row['step'])}</b>",
        f"{wording.number(row[value], 3)}{style.interval(row)}",
    ]
    if not wording.is_missing(row.get("n")):
        lines.append(f"n = {wording.whole(row['n'])}")
    return style.hover(lines)
