"""What is left of refusal after a few examples, in long answers, and after an opening that is given."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import axes, style
from mechrefusal.report.figures.canvas import Canvas

Panels = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Which rows each panel of the catalogue shows: by columns, the values that they may have."""

LIMITS = (-0.03, 1.03)
_LAYOUT: style.Look = {"columns": 2, "panel_height": 230}


def harmful_fine_tuning(table: pd.DataFrame) -> go.Figure:
    """Share of held-out harmful prompts refused, by the number of examples trained on; a panel a material.

    Several draws of the examples are one point, their mean; its band goes around the intervals of all of them.

    Args:
        table: table `harmful_fine_tuning`.
    """
    rows = table[(table["measure"] == "refused") & (table["side"] == "harmful")]
    panels = {material: {"material": ("none", material)} for material in ("harmful", "harmless")}
    shown = _shown(style.drawable(rows, "value", "what is left of refusal after examples"), panels)
    return _curves(Canvas("harmful_fine_tuning", list(shown), **_LAYOUT), shown, "n_examples")


def answer_length(table: pd.DataFrame) -> go.Figure:
    """Share of answers that refuse when they are cut, by tokens; harmful prompts beside harmless ones.

    Args:
        table: table `answer_length`.
    """
    rows = table[table["measure"] == "refused"]
    panels = {side: {"side": (side,)} for side in ("harmful", "harmless")}
    shown = _shown(style.drawable(rows, "value", "refusals by length of the answer"), panels)
    return _curves(Canvas("answer_length", list(shown), **_LAYOUT), shown, "n_tokens")


def refusal_places(table: pd.DataFrame) -> go.Figure:
    """Share of harmful prompts whose answer has begun to refuse by a token; a line a checkpoint.

    Args:
        table: table `refusal_places`.
    """
    rows = table[table["side"] == "harmful"]
    rows = style.drawable(rows, "token", "where answers refuse")
    keys = axes.checkpoints(rows).order
    canvas, last = Canvas("refusal_places"), int(rows["n_tokens"].max())
    for key in keys:
        of_key = rows[(rows["arm"] == key[0]) & (rows["step"] == key[1])]
        steps = _reached(of_key, last).assign(arm=key[0], step=key[1])
        look = style.checkpoint_style(key, keys) | {"size": 6, "interval": "none"}
        canvas.line(steps, "token", "value", axes.checkpoint_label(key), **look)
    canvas.figure.update_traces(line={"shape": "hv"})
    canvas.y(range=list(LIMITS))
    canvas.x(rangemode="tozero")
    return canvas.finish(wording.counts(rows.groupby(["arm", "step"]).size(), "prompts"))


def prefilled(table: pd.DataFrame) -> go.Figure:
    """Share of answers that refuse, by the tokens of an opening that are given; a panel an opening and side.

    The neutral openings are one point, their mean; its band goes around the intervals of all of them.

    Args:
        table: table `prefilled`.
    """
    rows = table[table["measure"] == "refused"]
    kinds = (("affirmative", "harmful"), ("neutral", "harmful"), ("affirmative", "harmless"), ("neutral", "harmless"))
    panels = {f"{opening}_{side}": {"opening": ("none", opening), "side": (side,)} for opening, side in kinds}
    shown = _shown(style.drawable(rows, "value", "refusals after openings"), panels)
    return _curves(Canvas("prefilled", list(shown), **_LAYOUT), shown, "n_tokens")


def _shown(rows: pd.DataFrame, panels: Panels) -> dict[str, pd.DataFrame]:
    """The rows of each panel that has any rate."""
    shown = {}
    for panel, columns in panels.items():
        chosen = [rows[name].isin(list(values)) for name, values in columns.items()]
        of_panel = rows[pd.concat(chosen, axis=1).all(axis=1)]
        if of_panel["value"].notna().any():
            shown[panel] = of_panel
    return shown


def _curves(canvas: Canvas, shown: dict[str, pd.DataFrame], x: str) -> go.Figure:
    """A line a checkpoint over evenly spaced values of a column, in each of the panels."""
    rows = pd.concat(shown.values())
    keys, ticks = axes.checkpoints(rows).order, sorted({int(value) for value in rows[x]})
    for panel, of_panel in enumerate(shown.values()):
        for key in keys:
            of_key = of_panel[(of_panel["arm"] == key[0]) & (of_panel["step"] == key[1])]
            points = _of_draws(of_key.dropna(subset=["value"]), x).assign(arm=key[0], step=key[1])
            points = points.assign(at=[ticks.index(value) for value in points[x]])
            look = style.checkpoint_style(key, keys) | {"size": 7, "panel": panel}
            canvas.line(points, "at", "value", axes.checkpoint_label(key), **look)
        title = canvas.entry.x
        canvas.x(panel, title=title, tickvals=list(range(len(ticks))), ticktext=[str(tick) for tick in ticks])
    canvas.y(range=list(LIMITS))
    return canvas.finish(wording.counts(rows.loc[rows["value"].notna(), "n"], "prompts"))


def _of_draws(rows: pd.DataFrame, x: str) -> pd.DataFrame:
    """One row a value of `x`: the mean of its draws, and the ends of all their intervals together."""
    by_x = rows.groupby(x, sort=True)
    changes = by_x[["difference", "difference_low", "difference_high"]]
    return pd.DataFrame(
        {
            "value": by_x["value"].mean(),
            "low": by_x["low"].min(),
            "high": by_x["high"].max(),
            "difference": changes.mean()["difference"],
            "difference_low": changes.min()["difference_low"],
            "difference_high": changes.max()["difference_high"],
            "n": by_x["n"].min(),
            "draws": [len(each) if len(each) > 1 else None for _, each in by_x],
        }
    ).reset_index()


def _reached(rows: pd.DataFrame, last: int) -> pd.DataFrame:
    """By each token at which an answer begins to refuse, and at the last of all, the share that has."""
    begun = rows["token"].dropna().astype(int)
    ends = [*sorted(set(begun) | {last})] if len(begun) else []
    values = [float((begun <= end).sum()) / len(rows) for end in ends]
    return pd.DataFrame({"token": ends, "value": values, "n": len(rows)})
