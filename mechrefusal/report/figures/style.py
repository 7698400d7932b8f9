"""One look for all figures: template, colours, titles, and the check that there is something to draw."""

from collections.abc import Iterable, Sequence

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.order import BASE, SHARED, WARM_UP, arm_order
from mechrefusal.statistics.maps import ALPHA

DIVERGING = [  # ColorBrewer RdBu, reversed: negative blue, zero near white, positive red
    [0.0, "#053061"],
    [0.125, "#2166ac"],
    [0.25, "#4393c3"],
    [0.375, "#92c5de"],
    [0.5, "#f7f7f7"],
    [0.625, "#f4a582"],
    [0.75, "#d6604d"],
    [0.875, "#b2182b"],
    [1.0, "#67001f"],
]
SEQUENTIAL = "Cividis"
POSITIVE, NEGATIVE, NEUTRAL = "#b2182b", "#2166ac", "#7f7f7f"
ARM_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
WARM_UP_COLOUR = "#3b3b3b"
ARM_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "hexagon")
DASHES = ("solid", "dot", "dash", "dashdot")
STEPS = "optimiser step"
GRID, AXIS, WHISKER = "rgba(128,128,128,0.22)", "rgba(128,128,128,0.55)", "rgba(112,112,112,0.95)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', sans-serif"

_AXIS = {
    "gridcolor": GRID,
    "zerolinecolor": AXIS,
    "linecolor": AXIS,
    "automargin": True,
    "title": {"standoff": 8},
    "ticks": "",
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 12, "color": "#24292f"},
        "title": {
            "font": {"size": 15},
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "pad": {"l": 12},
            "automargin": True,
            "yref": "container",
        },
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": list(ARM_COLOURS),
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 56, "r": 16, "t": 72, "b": 48},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "font": {"size": 11}},
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}, "namelength": -1},
        "coloraxis": {"colorbar": {"thickness": 11, "outlinewidth": 0, "title": {"side": "top"}, "len": 0.95}},
    }
)


def finish(figure: go.Figure, *, title: str, subtitle: str = "", height: int = 340) -> go.Figure:
    """Apply the look. `title` and `subtitle` are trusted words of this package, not data."""
    figure.update_layout(template=TEMPLATE, title={"text": title, "subtitle": {"text": subtitle}}, height=height)
    bar = figure.layout.coloraxis.colorbar
    if bar.title.text:
        bar.title.text += "<br> "  # keeps the title off the topmost tick
    return figure


def drawable(table: pd.DataFrame, value: str, what: str) -> pd.DataFrame:
    """`table`, or an error that says why there is nothing to draw in its column `value`."""
    if value not in table:
        raise MechrefusalError(
            f"cannot draw {what}: the table has no column '{value}', only {', '.join(map(str, table.columns))}"
        )
    if not len(table):
        raise MechrefusalError(f"cannot draw {what}: the table has no rows")
    if not table[value].notna().any():
        reasons = sorted({wording.plain(reason) for reason in table["reason"] if reason}) if "reason" in table else []
        raise MechrefusalError(
            f"cannot draw {what}: every '{value}' is missing" + (f" ({'; '.join(reasons)})" if reasons else "")
        )
    return table


def arms(table: pd.DataFrame) -> list[str]:
    """Arms that are lines of their own: the warm-up, then the arms by name; `base` alone where nothing was trained."""
    return sorted(set(table["arm"]) - {BASE}, key=arm_order) or [BASE]


def arm_style(arm: str, known: Sequence[str]) -> tuple[str, str]:
    """(colour, marker symbol) of an arm: fixed for base, warm-up, `sft` and `r2d2`, then in the order of `known`."""
    fixed = {"r2d2": 0, "sft": 1}
    if arm == BASE:
        return NEUTRAL, "circle"
    if arm == WARM_UP:
        return WARM_UP_COLOUR, "triangle-down"
    others = [name for name in known if name not in fixed and name not in SHARED]
    place = fixed[arm] if arm in fixed else 2 + others.index(arm)
    return ARM_COLOURS[place % len(ARM_COLOURS)], ARM_SYMBOLS[place % len(ARM_SYMBOLS)]


def with_base(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Rows of one arm with where it starts in front, unless the arm has that step itself.

    An arm starts at the end of the warm-up; without one, as the warm-up itself does, at the base model.
    """
    own, start = table["arm"] == arm, table["arm"] == BASE
    warm_up = table["arm"] == WARM_UP
    if arm != WARM_UP and warm_up.any():
        start = warm_up & (table["step"] == table.loc[warm_up, "step"].max())
    start &= ~table["step"].isin(table.loc[own, "step"])
    return table[own | start].sort_values("step", kind="stable")


def numbers(values: pd.Series) -> list[float | None]:
    """Values as plotly takes them: a missing one is None."""
    return [None if pd.isna(v) else float(v) for v in values]


def band(steps: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> go.Scatter:
    """The area between two lines over the same steps, in a translucent colour (a hex triplet)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=[*steps, *reversed(steps)],
        y=[*high, *reversed(low)],
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.16)",
        line={"width": 1, "color": f"rgba({red},{green},{blue},0.25)"},
        showlegend=False,
        hoverinfo="skip",
    )


def interval(row: pd.Series, low: str = "low", high: str = "high") -> str:
    """` [low, high]` of a row that has one."""
    if low not in row or wording.is_missing(row[low]) or wording.is_missing(row[high]):
        return ""
    return f" [{wording.number(row[low], 3)}, {wording.number(row[high], 3)}]"


def error_bars(rows: pd.DataFrame, value: str, low: str = "low", high: str = "high", **look: object) -> dict | None:
    """Bars from column `low` to column `high` around `value`; None where no row has both."""
    if low not in rows or high not in rows:
        return None
    centre, bottom, top = rows[value], rows[low], rows[high]
    known = bottom.notna() & top.notna()
    if not known.any():
        return None
    up, down = ((found.clip(lower=0)).where(known) for found in (top - centre, centre - bottom))
    return {"type": "data", "array": numbers(up), "arrayminus": numbers(down), "thickness": 1.3, "width": 3, **look}


def between(
    rows: pd.DataFrame, x: str, low: str, high: str, colour: str, *, name: str | None = None, **look: object
) -> go.Scatter | None:
    """The area between columns `low` and `high` over `x`; None where fewer than two rows have both."""
    if low not in rows or high not in rows:
        return None
    found = rows.dropna(subset=[low, high]).sort_values(x)
    if len(found) < 2:
        return None
    area = band(list(found[x]), list(found[low]), list(found[high]), colour)
    return area.update(name=name, showlegend=name is not None, **look)


def hover(lines: Iterable[str]) -> str:
    """Hover text from lines that are already safe for plotly."""
    return "<br>".join(line for line in lines if line)


TOLD = "p < 0.05, adjusted for all"
"""Name of a mark in a map of many cells."""


def told(rows: pd.DataFrame) -> pd.Series:
    """Whether the p of a row, adjusted for all of its map (`statistics.maps`), is below 0.05; a missing one is not."""
    return rows["p"] < ALPHA
