"""What training logged at every step: thin line as logged, thick line a running mean, one colour an arm."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style

FEW = 20
"""Up to so many values are drawn as points too: a line of one value would not be seen."""

_TERMS = {
    "loss": "Total loss",
    "utility": "Utility loss",
    "away": "Away loss (affirmative target)",
    "toward": "Toward loss (refusal)",
    "refusal": "Static refusals",
}
_LOGGED = {
    "grad_norm": ("Gradient norm", "norm, before clipping"),
    "learning_rate": ("Learning rate", "learning rate"),
    "seconds": ("Wall time of a step", "seconds"),
    "attack_tokens": ("Tokens of the attacks", "tokens a step"),
    "pool_age": ("Age of the drawn cases", "refreshes"),
    "peak_mib": ("Peak memory", "MiB"),
}
_NOISELESS = ("learning_rate", "peak_mib")


def losses(table: pd.DataFrame, *, terms: Sequence[str], title: str = "Training losses") -> go.Figure:
    """Logged training losses over optimiser steps (table `training`), nats a token.

    Args:
        terms: columns to draw, e.g. `("attack_loss_before", "attack_loss_after")`; colour is the arm, dash the term.
    """
    figure, window = go.Figure(), window_of(table)
    named = [table.assign(value=table[term]) for term in terms] if len(table) else []
    style.drawable(pd.concat(named) if named else table.assign(value=[]), "value", f"losses {', '.join(terms)}")
    names = style.arms(table)
    for arm in names:
        rows = table[table["arm"] == arm].sort_values("step")
        for place, term in enumerate(terms):
            label = f"{arm}: {wording.metric_name(term)}" if len(terms) > 1 else arm
            look = {"colour": style.arm_style(arm, names)[0], "dash": style.DASHES[place % len(style.DASHES)]}
            add_line(figure, rows["step"], rows[term], window=window, label=label, **look)
    figure.update_yaxes(title="loss", rangemode="tozero")
    return finish(figure, title=title, window=window)


def loss_term(table: pd.DataFrame, *, term: str) -> go.Figure:
    """One loss term over optimiser steps, before its weight is applied (table `terms`); most are nats a token.

    Args:
        term: a value of the column `term`; the subtitle gives the weight that the arms put on it.
    """
    rows = style.drawable(table[table["term"] == term], "value", f"loss term '{wording.plain(term)}'")
    weights = sorted({float(w) for w in rows["weight"].dropna()})
    weighted = f"weight {' or '.join(f'{w:g}' for w in weights)}"
    return _one_value(rows, "value", title=term_title(term), unit="loss", note=weighted if weights else "")


def logged(table: pd.DataFrame, *, value: str = "grad_norm") -> go.Figure:
    """One column of table `training` over optimiser steps.

    Args:
        value: `grad_norm` (before clipping), `learning_rate`, `seconds` (wall time of a step), `attack_tokens` (run
            forward by the refresh), `pool_age` (refreshes), `peak_mib` (MiB), or any other column with numbers.
    """
    title, unit = _LOGGED.get(value, (wording.metric_name(value).capitalize(), wording.metric_name(value)))
    rows = style.drawable(table, value, title.lower())
    return _one_value(rows, value, title=wording.for_plotly(title), unit=unit, smooth=value not in _NOISELESS)


def term_title(term: str) -> str:
    """Title of a loss term, safe for plotly and HTML: any name may be a term."""
    short = wording.shortened(term)
    return wording.for_plotly(_TERMS.get(term, f"Loss term {short}"))


def window_of(table: pd.DataFrame) -> int:
    """Steps in a running mean: a twentieth of the arm that was logged most often, at least one."""
    return max(1, int(table.groupby("arm")["step"].nunique().max()) // 20) if len(table) else 1


def running_mean(values: pd.Series, window: int) -> pd.Series:
    """Centred mean over `window` logged steps; missing values are left out of it."""
    return values.rolling(window, min_periods=1, center=True).mean()


def add_line(
    figure: go.Figure,
    steps: pd.Series,
    values: pd.Series,
    *,
    window: int,
    label: str,
    colour: str,
    dash: str = "solid",
) -> None:
    """Add values as logged (thin, where a mean differs) and their running mean (thick); nothing if all are missing."""
    if not values.notna().any():
        return
    steps = list(steps)
    mode = "lines+markers" if values.notna().sum() <= FEW else "lines"
    if window > 1:
        thin = {"color": colour, "width": 1, "dash": dash}
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=style.numbers(values),
                mode="lines",
                line=thin,
                opacity=0.3,
                showlegend=False,
                hoverinfo="skip",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=steps,
            y=style.numbers(running_mean(values, window)),
            mode=mode,
            name=wording.for_plotly(label),
            line={"color": colour, "width": 2, "dash": dash},
            marker={"color": colour, "size": 5},
            hovertemplate="%{fullData.name}<br>step %{x}<br>%{y:.4~g}<extra></extra>",
        )
    )


def finish(figure: go.Figure, *, title: str, window: int, note: str = "") -> go.Figure:
    """Axis of steps, and a subtitle that says what the thick line is. `title` and `note` are safe for plotly."""
    figure.update_xaxes(title=style.STEPS)
    figure.update_layout(showlegend=True)
    thick = f"thick: mean of {window} steps" if window > 1 else ""
    return style.finish(figure, title=title, subtitle="; ".join(part for part in (note, thick) if part), height=320)


def _one_value(
    rows: pd.DataFrame, value: str, *, title: str, unit: str, note: str = "", smooth: bool = True
) -> go.Figure:
    figure, window = go.Figure(), window_of(rows) if smooth else 1
    names = style.arms(rows)
    for arm in names:
        own = rows[rows["arm"] == arm].sort_values("step")
        add_line(figure, own["step"], own[value], window=window, label=arm, colour=style.arm_style(arm, names)[0])
    figure.update_yaxes(title=wording.for_plotly(unit), rangemode="tozero", exponentformat="power")
    return finish(figure, title=title, window=window, note=note)
