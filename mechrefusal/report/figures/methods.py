"""The arms of a study side by side: what differs between two of them, and how far their carriers lie apart."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import axes, style
from mechrefusal.report.figures.axes import map_height
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import ordered, word
from mechrefusal.report.figures.style import Look
from mechrefusal.report.order import checkpoint_order

SPAN = -1
"""Value of `layer` in table `drift` where a measure does not belong to one layer."""

_UNITS = {"carrier_layer": "layers", "separability": "d′"}


def method_differences(table: pd.DataFrame, *, relations: Sequence[str] = (), title: str = "") -> go.Figure:
    """Paired differences between arms (table `method_differences`), a panel a measure: second minus first.

    Nothing is corrected for the number of pairs; the hover has the p that is (of rates).

    Args:
        relations: values of the column `relation`; by default all. A random-direction control is named as such.
    """
    rows = table[table["relation"].isin(list(relations))] if relations else table
    rows = style.drawable(rows, "difference", "differences between arms")
    rows = _named(rows[rows["difference"].notna()])
    measures = list(dict.fromkeys(rows["measure_name"]))
    names, labels = style.arms(pd.DataFrame({"arm": [*rows["arm_a"], *rows["arm_b"]]})), _labels(rows)
    height = 40 + 24 * len(labels)
    canvas = Canvas("method_differences", measures, columns=2, panel_height=height, shared="y")
    for panel, measure in enumerate(measures):
        at = rows[rows["measure_name"] == measure]
        at = at.assign(place=[labels.index(label) for label in at["label"]])
        for arm in dict.fromkeys(at["arm_b"]):
            of_arm, (colour, symbol) = at[at["arm_b"] == arm], style.arm_style(arm, names)
            clear = (of_arm["low"] > 0) | (of_arm["high"] < 0)
            symbols = [symbol if filled else f"{symbol}-open" for filled in clear]
            look: Look = {"mode": "markers", "colour": colour, "size": 9, "symbol": symbols}
            name = wording.shortened(arm, 24)
            canvas.line(of_arm, "difference", "place", name, panel=panel, interval="bars", along="x", **look)
        canvas.rule(x=0, panel=panel)
        unit = _UNITS.get(at["measure"].iloc[0], "difference of shares")
        canvas.x(panel, title=unit, zeroline=False)
        canvas.categories(labels, panel=panel)
    canvas.figure.update_yaxes(showticklabels=False)
    for panel in range(0, len(measures), canvas.columns):
        canvas.y(panel, showticklabels=True)
    judges = sorted({wording.shortened(judge) for judge in rows["judge"] if judge})
    judged = wording.for_plotly(f"judge: {', '.join(judges)}") if judges else ""
    return canvas.finish(judged, "filled: excludes 0", title=wording.for_plotly(title))


def separability(table: pd.DataFrame) -> go.Figure:
    """How far apart harmful and harmless prompts lie by layer, one line a checkpoint.

    The 95% band is drawn for one checkpoint; of several the hover has it, and their paired differences are what tells
    them apart (`method_differences`).

    Args:
        table: table `separability` of checkpoints, or a `geometry.Separability`.
    """
    rows = table if "arm" in table else table.assign(arm="model", step=0)
    rows = style.drawable(rows[rows["layer"] >= 0], "value", "separability by layer").dropna(subset=["value"])
    keys, canvas = axes.checkpoints(rows).order, Canvas("separability")
    for key in keys:
        of_key = rows[(rows["arm"] == key[0]) & (rows["step"] == key[1])].sort_values("layer")
        name = axes.checkpoint_label(key) if "arm" in table else "model"
        look: Look = {**style.checkpoint_style(key, keys), "size": 4}
        interval = "band" if len(keys) == 1 else "none"
        canvas.line(of_key.assign(label=name), "layer", "value", name, interval=interval, **look)
    canvas.y(rangemode="tozero")
    return canvas.finish(wording.counts(rows["n"], "prompts, twins as one"))


def carrier_angles(table: pd.DataFrame, *, measure: str = "carrier_cosine") -> go.Figure:
    """How far the directions of any two checkpoints lie apart (table `drift`), as a matrix that both halves of show.

    A dot marks pairs whose 95% interval lies beyond the split-half floor: apart by more than the noise of the prompts.

    Args:
        measure: a value of the column `measure` that belongs to no layer: `carrier_cosine`, or an angle in degrees
            between the spans of admissible directions.
    """
    rows = table[(table["measure"] == measure) & (table["layer"] == SPAN)]
    rows = style.drawable(rows, "value", f"'{wording.plain(word('measure', measure))}' between checkpoints")
    ends = {f"{name}_{end}": f"{name}_{other}" for name in ("arm", "step") for end, other in ("ab", "ba")}
    both = pd.concat([rows, rows.rename(columns=ends)], ignore_index=True)
    down, across = axes.checkpoints(both, "_a"), axes.checkpoints(both, "_b")
    canvas, angle = Canvas("carrier_angles"), "angle" in measure
    apart = both["low"] > both["floor"] if angle else both["high"] < both["floor"]
    marked = both.assign(mark=[" ●" if far else "" for far in apart])
    canvas.matrix(marked, "value", down, across, written="{value:1}{mark}" if angle else "{value:2}{mark}")
    unit = "degrees" if angle else "cosine"
    canvas.colours(unit, limit=None if angle else 1.0, most=90 if angle else None)
    height = max(300, map_height(2 * len(down.order)) + 190)
    noise = "● beyond the noise of the prompts" if apart.any() else ""
    return canvas.finish(noise, measure=word("measure", measure), unit=unit, height=height)


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows by relation and pair, with the names of measure, relation and pair."""
    measures = [
        f"{word('method_measure', row.measure)}" + ("" if row.attack == "none" else f", {wording.plain(row.attack)}")
        for row in rows.itertuples()
    ]
    kinds = ordered(rows["relation"], "relation")
    known = ordered(rows["measure"], "method_measure")
    rows = rows.assign(measure_name=measures, relation_name=[word("relation", name) for name in rows["relation"]])
    order = [
        (
            known.index(row.measure),
            str(row.attack),
            kinds.index(row.relation),
            checkpoint_order((row.arm_b, row.step_b)),
            checkpoint_order((row.arm_a, row.step_a)),
        )
        for row in rows.itertuples()
    ]
    rows = rows.iloc[sorted(range(len(rows)), key=order.__getitem__)]
    return rows.assign(label=[_label(row) for row in rows.to_dict("records")])


def _label(row: dict) -> str:
    ends = (axes.checkpoint_label((row[f"arm_{end}"], row[f"step_{end}"]), 20) for end in "ab")
    return " → ".join(ends) + (" (random control)" if row["relation"] == "control" else "")


def _labels(rows: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(rows["label"]))
