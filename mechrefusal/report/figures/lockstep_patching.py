"""From which layer on one checkpoint's stream makes another behave as it does (table `lockstep`)."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import pair_name
from mechrefusal.report.figures.style import RANDOM, SET_COLOURS, Look

_ENDS = ["arm_source", "step_source", "arm_target", "step_target"]


def lockstep(table: pd.DataFrame, depths: pd.DataFrame | None = None) -> go.Figure:
    """Share of prompts refused by layer, of one source and one target; bands are 95% Wilson intervals.

    Dotted lines across are the two as they are (harmful prompts), dashed the random rotations of the change with their
    least and most. A line down marks the depth at which the behaviour changes sides, an area its 95% interval.

    Args:
        table: rows of table `lockstep`.
        depths: table `lockstep_depth`; the pair's row is looked up.

    Raises:
        MechrefusalError: no rows, no rates, or several pairs.
    """
    rows = style.drawable(table, "refused", "lockstep patching")
    rows = rows[rows["refused"].notna()].sort_values("layer")
    if len(rows[_ENDS].drop_duplicates()) > 1:
        raise MechrefusalError("several pairs of checkpoints: filter the table of lockstep patching first")
    canvas, first = Canvas("lockstep"), rows.iloc[0]
    rows = rows.assign(pair=pair_name(first.to_dict()))
    for name, of_set in rows.groupby("set", sort=False):
        colour = SET_COLOURS[str(name)]
        canvas.line(of_set, "layer", "refused", f"{name} prompts", colour=colour)
        turned = of_set[of_set["control"].notna()]
        dashed: Look = RANDOM | {"colour": colour, "hover": []}
        if len(turned):
            canvas.add(style.between(turned, "layer", "control_least", "control_most", style.NEUTRAL))
            canvas.line(turned, "layer", "control", f"{name}: change turned at random", **dashed)
    harmful = rows[rows["set"] == "harmful"]
    for column, words in (("source_refused", "source as it is"), ("target_refused", "target as it is")):
        if len(harmful) and not wording.is_missing(harmful[column].iloc[0]):
            level = float(harmful[column].iloc[0])
            canvas.rule(y=level, dash="dot")
            canvas.figure.add_annotation(
                x=1, xref="paper", y=level, text=words, showarrow=False, xanchor="right", yanchor="bottom"
            )
    said = "" if depths is None else _mark(canvas, depths, first)
    canvas.y(range=[-0.03, 1.03])
    judge = wording.for_plotly(wording.shortened(first["judge"]))
    title = wording.for_plotly(f"Stream of {pair_name(first.to_dict()).replace(' → ', ' put into ')}")
    return canvas.finish(said, wording.counts(rows["n"]), f"judge: {judge}", title=title)


def _mark(canvas: Canvas, depths: pd.DataFrame, of: pd.Series) -> str:
    """The depth of the pair in the figure, and in words."""
    rows = depths[(depths[_ENDS] == of[_ENDS]).all(axis=1) & (depths["set"] == "harmful")]
    if rows.empty or wording.is_missing(rows["depth"].iloc[0]):
        return "no depth: the two refuse alike" if len(rows) else ""
    row = rows.iloc[0]
    canvas.rule(x=float(row["depth"]), color=style.POSITIVE)
    if not wording.is_missing(row["depth_low"]):
        look: Look = {"fillcolor": style.POSITIVE, "opacity": 0.12, "line_width": 0, "layer": "below"}
        canvas.figure.add_vrect(x0=float(row["depth_low"]) - 0.4, x1=float(row["depth_high"]) + 0.4, **look)
    return f"changes sides at layer {wording.whole(row['depth'])}{wording.interval(row, 'depth', 0)}"
