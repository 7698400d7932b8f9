"""One look for all figures: template, colours, arms, and the check that there is something to draw.

Paper and plot are transparent, and fonts, grids and marks have greys that can be read on a light and on a dark page.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.order import BASE, SHARED, WARM_UP, arm_order
from mechrefusal.statistics.maps import ALPHA

DIVERGING = "RdBu_r"
"""ColorBrewer's RdBu, reversed: negative blue, zero near white, positive red; colour-blind safe."""
SEQUENTIAL = "Cividis"
POSITIVE, NEGATIVE, NEUTRAL = "#c8403f", "#3b82c0", "#7f7f7f"
SET_COLOURS = {"harmful": POSITIVE, "harmless": NEGATIVE}
# Six of Okabe and Ito, and two that are told from them on light and on dark pages.
ARM_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A63D2", "#8C8C1A")
WARM_UP_COLOUR = "#9c6b4f"
ARM_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "hexagon", "star", "pentagon")
DASHES = ("solid", "dot", "dash", "dashdot")
TEXT, GRID, AXIS, WHISKER = "#71777d", "rgba(128,128,128,0.22)", "rgba(128,128,128,0.55)", "rgba(112,112,112,0.95)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', sans-serif"
Look = dict[str, Any]
"""How a trace is drawn: arguments of `Canvas.line`, `bars` or `matrix`, or of plotly's traces."""
RANDOM: Look = {"colour": NEUTRAL, "width": 1.5, "dash": "dash", "interval": "none"}
"""A line to compare with: random directions, random sets, shuffled labels."""
POINTS: Look = {"mode": "markers", "interval": "none"}
CLEAR = "p < 0.05, adjusted for all"
"""Name of a mark in a map of many cells."""

_AXIS = {"gridcolor": GRID, "zerolinecolor": AXIS, "linecolor": AXIS, "automargin": True, "title": {"standoff": 8}}
_LEFT = {"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12, "t": 10}, "automargin": True}
_TOP = {"y": 1, "yref": "container", "yanchor": "top"}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 12, "color": TEXT},
        "title": {"font": {"size": 15}, **_LEFT, **_TOP},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": list(ARM_COLOURS),
        "xaxis": {**_AXIS, "ticks": ""},
        "yaxis": {**_AXIS, "ticks": ""},
        "margin": {"l": 56, "r": 16, "t": 60, "b": 12},
        "legend": {"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom", "font": {"size": 11}},
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}, "namelength": -1},
        "coloraxis": {"colorbar": {"thickness": 11, "outlinewidth": 0, "title": {"side": "top"}, "len": 0.95}},
    }
)


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
        because = f" ({'; '.join(reasons)})" if reasons else ""
        raise MechrefusalError(f"cannot draw {what}: every '{value}' is missing{because}")
    return table


def is_clear(rows: pd.DataFrame) -> pd.Series:
    """Whether the p of a row, adjusted for all of its map (`statistics.maps`), is below 0.05; a missing one is not."""
    return rows["p"] < ALPHA


def arms(table: pd.DataFrame) -> list[str]:
    """Arms that are lines of their own: the warm-up, then the arms by name; `base` alone where nothing was trained."""
    return sorted(set(table["arm"]) - {BASE}, key=arm_order) or [BASE]


def arm_style(arm: str, known: Sequence[str]) -> tuple[str, str]:
    """(colour, marker symbol) of an arm: fixed for base, warm-up, `sft` and `r2d2`, then in the order of `known`.

    Where there are more arms than colours, those of one colour have other symbols.
    """
    fixed = {"r2d2": 0, "sft": 1}
    if arm == BASE:
        return NEUTRAL, "circle"
    if arm == WARM_UP:
        return WARM_UP_COLOUR, "triangle-down"
    others = [name for name in known if name not in fixed and name not in SHARED]
    place = fixed[arm] if arm in fixed else 2 + others.index(arm)
    rounds, colour = divmod(place, len(ARM_COLOURS))
    return ARM_COLOURS[colour], ARM_SYMBOLS[(place + rounds) % len(ARM_SYMBOLS)]


def checkpoint_style(key: tuple[str, int], keys: Sequence[tuple[str, int]]) -> Look:
    """Look of a checkpoint: its arm's colour and symbol; its last one is solid, earlier ones dashed and lighter."""
    colour, symbol = arm_style(key[0], arms(pd.DataFrame({"arm": [arm for arm, _ in keys]})))
    steps = [step for arm, step in keys if arm == key[0]]
    rank = len(steps) - 1 - steps.index(key[1])
    dash, opacity = DASHES[rank % len(DASHES)], max(0.45, 1 - 0.18 * rank)
    return {"colour": colour, "symbol": symbol, "dash": dash, "opacity": opacity}


def with_base(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Rows of one arm with where it starts in front, unless the arm has that step itself.

    An arm starts at the end of the warm-up; without one, as the warm-up itself does, at the base model.
    """
    subset, start = table["arm"] == arm, table["arm"] == BASE
    warm_up = table["arm"] == WARM_UP
    if arm != WARM_UP and warm_up.any():
        start = warm_up & (table["step"] == table.loc[warm_up, "step"].max())
    start &= ~table["step"].isin(table.loc[subset, "step"])
    return table[subset | start].sort_values("step", kind="stable")


def each_arm(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """Every arm with its rows from where it starts, and its look.

    The look is its colour, its symbol and how far it is moved along the steps (`shift`), so that intervals of arms do
    not hide each other.
    """
    names = arms(table)
    reach = float(table["step"].max() - table["step"].min()) or 1.0
    for place, arm in enumerate(names):
        colour, symbol = arm_style(arm, names)
        shift = (place - (len(names) - 1) / 2) * 0.012 * reach
        yield arm, with_base(table, arm), {"colour": colour, "symbol": symbol, "shift": shift}


def numbers(values: pd.Series) -> list[float | None]:
    """Values as plotly takes them: a missing one is None."""
    return [None if pd.isna(value) else float(value) for value in values]


def translucent(colour: str, opacity: float) -> str:
    """A hex triplet as an rgba colour."""
    return f"rgba({','.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))},{opacity})"


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str, **look: object) -> go.Scatter:
    """The area between two lines over the same x, in a translucent colour (a hex triplet)."""
    return go.Scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        mode="lines",
        fill="toself",
        fillcolor=translucent(colour, 0.16),
        line={"width": 1, "color": translucent(colour, 0.25)},
        showlegend=False,
        hoverinfo="skip",
        **look,
    )


def between(rows: pd.DataFrame, x: str, low: str, high: str, colour: str, **look: object) -> go.Scatter | None:
    """The area between columns `low` and `high` over `x`; None where fewer than two rows have both."""
    known = rows.dropna(subset=[low, high]).sort_values(x) if {low, high} <= set(rows) else rows.iloc[:0]
    return band(list(known[x]), list(known[low]), list(known[high]), colour, **look) if len(known) > 1 else None


def error_bars(rows: pd.DataFrame, value: str, low: str = "low", high: str = "high", **look: object) -> dict | None:
    """Bars from column `low` to column `high` around `value`; None where no row has both."""
    if not {low, high} <= set(rows) or not (known := rows[low].notna() & rows[high].notna()).any():
        return None
    up, down = (rows[high] - rows[value]).clip(lower=0), (rows[value] - rows[low]).clip(lower=0)
    lengths = {"array": numbers(up.where(known)), "arrayminus": numbers(down.where(known))}
    return {"type": "data", **lengths, "thickness": 1.3, "width": 3, **look}
