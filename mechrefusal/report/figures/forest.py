"""Measures with an interval beside what they are when nothing is there: shuffled labels, and a random direction.

For the tables `overlap`, `coupling` and `utility_coupling`. Nothing is assumed of a measure's name or unit: each has an
axis of its own.
"""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import word
from mechrefusal.report.figures.style import POINTS, RANDOM, Look

NONE = -1
"""Value of `layer` where a measure belongs to none (as in table `coupling`)."""
_FLOOR, _RANDOM, _VALUE = "shuffled labels (95%)", "random direction", "value (95% interval)"


def single(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of measures that were taken at one place only (or at none)."""
    return table[~table["measure"].isin(layered(table))]


def layered(table: pd.DataFrame) -> list[str]:
    """Measures that were taken at several layers of a checkpoint."""
    if "layer" not in table:
        return []
    rows = table[table["layer"] >= 0]
    keys = [name for name in ("arm", "step") if name in rows]
    counts = rows.groupby(["measure", *keys], sort=False)["layer"].nunique().groupby(level=0, sort=False).max()
    return [measure for measure, n in counts.items() if n > 1]


def estimates(table: pd.DataFrame, *, title: str = "") -> go.Figure:
    """A dot and its 95% interval a measure, above the band of shuffled labels; a tick marks a random direction.

    Args:
        table: table `overlap` or `coupling` of one checkpoint; measures that were taken at several layers are left out
            (see `estimates_by_layer`), and so are those without a value.
    """
    what = f"estimates of {', '.join(sorted({wording.plain(measure) for measure in table['measure']}))}"
    rows = style.drawable(single(table), "value", what)
    rows = _named(rows[rows["value"].notna()])
    headings = [f"{row.name_short}: {wording.number(row.value)}" for row in rows.itertuples()]
    canvas = Canvas("estimates", headings, panel_height=30, gap=48)
    for panel in range(len(rows)):
        subset = rows.iloc[[panel]].assign(y=0.0)
        row = subset.iloc[0]
        zero = 0.5 if "auc" in str(row["measure"]).lower() else 0.0
        if not subset[["floor_low", "floor_high"]].isna().any(axis=None):
            ends = [float(row["floor_low"]), float(row["floor_high"])]
            area = style.band(ends, [-0.8, -0.8], [0.8, 0.8], style.NEUTRAL)
            look: Look = {"fillcolor": style.translucent(style.NEUTRAL, 0.3)}
            canvas.add(area.update(**look, **canvas.named(_FLOOR)), panel)
        if pd.notna(row["random"]):
            tick = POINTS | {"symbol": "line-ns-open", "size": 20, "colour": style.NEUTRAL, "hover": []}
            canvas.line(subset, "random", "y", _RANDOM, panel=panel, **tick)
        canvas.line(subset, "value", "y", _VALUE, panel=panel, mode="markers", interval="bars", along="x", size=10)
        values = subset[["value", "low", "high", "floor_low", "floor_high", "random"]].astype(float).iloc[0]
        low, high = min(values.min(), zero), max(values.max(), zero)
        room = 0.05 * (high - low) or 0.05
        canvas.rule(x=zero, panel=panel)
        canvas.x(panel, range=[low - room, high + room], zeroline=False, nticks=6)
    canvas.y(range=[-1, 1], showticklabels=False, showgrid=False, zeroline=False)
    canvas.figure.update_layout(margin={"l": 16})
    places = sorted(set(rows["place"]))
    where = wording.for_plotly(places[0]) if len(places) == 1 else ""
    return canvas.finish(where, wording.counts(rows["n"]), title=title)


def estimates_by_layer(table: pd.DataFrame, *, measure: str) -> go.Figure:
    """One measure by layer with its 95% interval, the band of shuffled labels and the line of a random direction.

    Args:
        table: table `coupling` or `overlap` of one checkpoint.
        measure: a value of the column `measure`.
    """
    rows = table[(table["measure"] == measure) & (table["layer"] >= 0)]
    rows = style.drawable(rows, "value", f"'{wording.plain(measure)}' by layer").sort_values("layer")
    rows, canvas = _named(rows), Canvas("estimates_by_layer")
    floor = style.between(rows, "layer", "floor_low", "floor_high", style.NEUTRAL)
    if floor is not None:
        canvas.add(floor.update(**canvas.named(_FLOOR)))
    canvas.line(rows[rows["value"].notna()], "layer", "value", _VALUE, size=5)
    dashed = RANDOM | {"mode": "lines", "hover": []}
    canvas.line(rows.dropna(subset=["random"]), "layer", "random", _RANDOM, **dashed)
    unit = _unit(measure)
    canvas.y(title=unit, rangemode="normal" if unit == "AUC" else "tozero")
    return canvas.finish(wording.counts(rows["n"]), unit=unit, measure=word("measure", measure))


def estimates_over_steps(table: pd.DataFrame, *, measure: str, intervention: str | None = None) -> go.Figure:
    """One measure over optimiser steps, one line an arm: intervals, shuffled labels (band), random direction (dashed).

    Args:
        table: table `overlap`, `coupling` or `utility_coupling` of several checkpoints, one row a checkpoint and
            measure; of measures by layer only rows that belong to no layer are drawn.
        measure: a value of the column `measure`.
        intervention: for `utility_coupling`, a value of the column `intervention`.
    """
    rows = table[table["measure"] == measure]
    if intervention is not None:
        rows = rows[rows["intervention"] == intervention]
    if len(rows) and measure in layered(rows):
        rows = rows[rows["layer"] == NONE]
    rows = style.drawable(rows, "value", f"'{wording.plain(measure)}' over steps")
    if rows.duplicated(["arm", "step"]).any():
        raise MechrefusalError(f"several rows of '{wording.plain(measure)}' at one checkpoint: filter the table first")
    canvas = Canvas("estimates_over_steps")
    for arm, subset, look in style.each_arm(rows):
        canvas.add(style.between(subset, "step", "floor_low", "floor_high", look["colour"]))
        canvas.line(subset, "step", "value", arm, size=8, interval="bars", **look)
        texts = [f"random direction {wording.number(value, 3)}" for value in subset["random"]]
        dashed = RANDOM | {"colour": look["colour"], "width": 1.2, "size": 4, "hover": texts}
        canvas.line(subset, "step", "random", _RANDOM, group=arm, **dashed)
    canvas.steps(rows["step"])
    canvas.y(title=_unit(measure))
    under = f"{word('intervention', intervention)}: " if intervention is not None else ""
    name = wording.shortened(f"{under}{word('measure', measure)}", 90)
    return canvas.finish(wording.counts(rows["n"]), unit=_unit(measure), measure=name)


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the names of their measures and with their places, for headings and hovers."""
    names = [wording.shortened(word("measure", measure), 90) for measure in rows["measure"]]
    places = []
    for row in rows.to_dict("records"):
        layer, position = row.get("layer"), row.get("position")
        where = [] if wording.is_missing(layer) or layer == NONE else [f"layer {wording.whole(layer)}"]
        where += [] if wording.is_missing(position) else [f"position {wording.whole(position)}"]
        places.append(", ".join(where))
    return rows.assign(name_short=names, place=places)


def _unit(measure: str) -> str:
    known = {"cosine": "cosine", "auc": "AUC", "share": "share"}
    return next((unit for part, unit in known.items() if part in str(measure).lower()), "")
