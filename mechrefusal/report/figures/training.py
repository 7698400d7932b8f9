"""What training logged at every step: thin line as logged, thick line a running mean, one colour an arm."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import catalogue, style
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import words
from mechrefusal.report.figures.style import Look

FEW = 20
"""Up to so many values are drawn as points too: a line of one value would not be seen."""
_NOISELESS = ("learning_rate", "peak_mib")
_HOVER = "%{fullData.name}<br>step %{x}<br>%{y:.4~g}<extra></extra>"


def losses(table: pd.DataFrame, *, terms: Sequence[str], title: str = "") -> go.Figure:
    """Logged training losses over optimiser steps (table `training`), nats a token.

    Args:
        terms: columns to draw, e.g. `("attack_loss_before", "attack_loss_after")`; colour is the arm, dash the term.
    """
    named = [table.assign(value=table[term]) for term in terms] if len(table) else []
    style.drawable(pd.concat(named) if named else table.assign(value=[]), "value", f"losses {', '.join(terms)}")
    labels = [wording.metric_name(term) if len(terms) > 1 else "" for term in terms]
    lines = dict(zip(terms, zip(labels, style.DASHES * len(terms), strict=False), strict=True))
    return _over_steps("losses", table, lines, title=title)


def loss_term(table: pd.DataFrame, *, term: str) -> go.Figure:
    """One loss term, or logged figure, over optimiser steps (table `terms`), before its weight; most are nats a token.

    Args:
        term: a value of the column `term`; the subtitle gives the weight that the arms put on it.
    """
    rows = style.drawable(table[table["term"] == term], "value", f"loss term '{wording.plain(term)}'")
    weights = " or ".join(f"{weight:g}" for weight in sorted(set(rows["weight"].dropna())))
    note = f"weight {weights}" if weights else ""
    unit = words("term_unit").get(term)
    return _over_steps("loss_term", rows, {"value": ("", "solid")}, note, title=term_title(term), unit=unit)


def logged(table: pd.DataFrame, *, value: str = "grad_norm") -> go.Figure:
    """One column of table `training` over optimiser steps.

    Args:
        value: `grad_norm` (before clipping), `learning_rate`, `seconds` (wall time of a step), `attack_tokens` (run
            forward by the refresh), `pool_age` (refreshes), `peak_mib` (MiB), or any other column with numbers.
    """
    name = wording.metric_name(value)
    title, unit = catalogue.entry("logged").panels.get(value, (name.capitalize(), name))
    rows = style.drawable(table, value, title.lower())
    window = 1 if value in _NOISELESS else None
    look: Look = {"title": wording.for_plotly(title), "unit": unit, "window": window}
    return _over_steps("logged", rows, {value: ("", "solid")}, **look)


def term_title(term: str) -> str:
    """Title of a loss term, safe for plotly and HTML: any name may be a term."""
    return wording.for_plotly(words("term").get(term, f"Loss term {wording.shortened(term)}"))


def attack_loss(table: pd.DataFrame) -> go.Figure:
    """Mean target loss of the drawn cases before and after their refresh, nats a token (table `training`)."""
    rows = style.drawable(table, "attack_loss_before", "the attack loss before a refresh")
    rows = style.drawable(rows, "attack_loss_after", "the attack loss after a refresh")
    lines = {"attack_loss_before": ("before refresh", "solid"), "attack_loss_after": ("after refresh", "dot")}
    return _over_steps("attack_loss", rows, lines, area=("attack_loss_after", "attack_loss_before"))


def exchange(table: pd.DataFrame) -> pd.DataFrame:
    """What each step's refreshes gained, and what training had taken back before them (table `refreshes`).

    Returns:
        One row an arm and step, in nats a token: `gained`, mean of loss_before − loss_after; `taken_back`, mean of
        loss_before − the loss_after that the same case's last refresh had left; `n` cases, `n_again` of them with a
        last refresh. A case that was reset in between starts anew: it counts as one without.
    """
    rows = table.sort_values("step", kind="stable")
    last = rows.groupby(["arm", "case"], sort=False)[["loss_after", "age"]].shift()
    rows["gained"] = rows["loss_before"] - rows["loss_after"]
    rows["taken_back"] = (rows["loss_before"] - last["loss_after"]).where(rows["age"] == last["age"] + 1)
    means: Look = {"gained": ("gained", "mean"), "taken_back": ("taken_back", "mean")}
    counts: Look = {"n": ("gained", "count"), "n_again": ("taken_back", "count")}
    return rows.groupby(["arm", "step"], as_index=False).agg(**means, **counts)


def attack_exchange(table: pd.DataFrame) -> go.Figure:
    """What GCG gained in each step and what training took back since, nats a token (table `refreshes`)."""
    for column in ("loss_before", "loss_after"):
        style.drawable(table, column, "what attack and training win from each other")
    rows = style.drawable(exchange(table), "gained", "what attack and training win from each other")
    again, n = int(rows["n_again"].sum()), int(rows["n"].sum())
    note = f"{n} refreshes, {again} of a case refreshed before" if again else "no case was refreshed again"
    lines = {"gained": ("GCG gained", "solid"), "taken_back": ("training took back", "dot")}
    return _over_steps("attack_exchange", rows, lines, note)


def pool_age(table: pd.DataFrame) -> go.Figure:
    """Age of the refreshed cases over optimiser steps, in refreshes since the initial suffix (table `refreshes`)."""
    rows = style.drawable(table, "age", "the age of refreshed cases")
    ages = rows.groupby(["arm", "step"], as_index=False)["age"].agg(["mean", "min", "max"]).dropna(subset="mean")
    note = "band: youngest to oldest of a step"
    return _over_steps("pool_age", ages, {"mean": ("", "solid")}, note, area=("min", "max"), thin=False)


def cases_refreshed(table: pd.DataFrame) -> go.Figure:
    """How many different cases have been refreshed at least once, over optimiser steps (table `refreshes`)."""
    rows = table.sort_values("step", kind="stable")
    rows = style.drawable(rows.assign(first=1.0), "first", "the number of refreshed cases")
    rows["first"] = (~rows.duplicated(["arm", "case"])).astype(float)
    new = rows.groupby(["arm", "step"], as_index=False)["first"].sum()
    new["cases"] = new.groupby("arm")["first"].cumsum()
    totals = new.groupby("arm")["first"].sum()
    note = ", ".join(f"{wording.for_plotly(arm)} {int(total)}" for arm, total in totals.items())
    return _over_steps("cases_refreshed", new, {"cases": ("", "solid")}, f"at the end: {note}", window=1)


def running_mean(values: pd.Series, window: int) -> pd.Series:
    """Centred mean over `window` logged steps; missing values are left out of it."""
    return values.rolling(window, min_periods=1, center=True).mean()


def _over_steps(
    name: str,
    rows: pd.DataFrame,
    lines: dict[str, tuple[str, str]],
    note: str = "",
    *,
    window: int | None = None,
    area: tuple[str, str] | None = None,
    thin: bool = True,
    title: str = "",
    unit: str | None = None,
) -> go.Figure:
    """The figure `name`: columns over steps, each arm in its colour, as logged (thin) and as a running mean (thick).

    Args:
        lines: of each column its name in the legend and its dash.
        window: steps of the running mean; a twentieth of the arm that was logged most often by default.
        area: columns, low and high, between which the area is filled.
        thin: whether values are drawn as logged, where their mean differs.
    """
    canvas, names = Canvas(name), style.arms(rows)
    window = max(1, int(rows.groupby("arm")["step"].nunique().max()) // 20) if window is None else window
    for arm in names:
        subset, colour = rows[rows["arm"] == arm].sort_values("step"), style.arm_style(arm, names)[0]
        if area:
            known = subset.dropna(subset=list(area))
            ends = [running_mean(known[end], window if thin else 1) for end in area]
            if len(known):
                canvas.add(style.band(list(known["step"]), list(ends[0]), list(ends[1]), colour))
        for column, (label, dash) in lines.items():
            own_line = subset.assign(smooth=running_mean(subset[column], window))
            look: Look = {"colour": colour, "dash": dash, "interval": "none", "hover": []}
            if window > 1 and thin and subset[column].notna().any():
                canvas.line(subset, "step", column, "", width=1, opacity=0.3, mode="lines", **look)
            mode = "lines+markers" if subset[column].notna().sum() <= FEW else "lines"
            legend = f"{arm}: {label}" if label else arm
            if subset[column].notna().any():
                canvas.line(own_line, "step", "smooth", legend, size=5, mode=mode, **look)
                canvas.figure.data[-1].update(hovertemplate=_HOVER, hoverinfo=None)
    canvas.y(rangemode="tozero", exponentformat="power")
    if unit:
        canvas.y(title=wording.for_plotly(unit))
    thick = f"thick: mean of {window} steps" if window > 1 else ""
    return canvas.finish(note, thick, title=title, unit=unit)
