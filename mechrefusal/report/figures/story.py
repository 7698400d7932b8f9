"""The figure that tells a run: how deep its carrier lies over training, beside what it refuses."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style, suites
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.carrier_scores import add_carrier_layers
from mechrefusal.report.figures.style import Look

_SHARES = {"harmful": "evaluation_harmful", "overrefusal": "overrefusal"}


def depth_story(
    carrier: pd.DataFrame, rates: pd.DataFrame, *, n_layers: int | None = None, judge: str | None = None
) -> go.Figure:
    """Depth of the carrier over optimiser steps, beside refusal of harmful prompts and over-refusal: all arms.

    Args:
        carrier: table `carrier` of the checkpoints of one kind of model.
        rates: table `rates` of the same.
        n_layers: depth of the model.
        judge: of refusal; by default the first by name.
    """
    style.drawable(carrier.assign(drawn=1.0), "drawn", "the depth of the carrier")
    rows = suites.of(rates, attack="none", intervention="none", by="all", metric="any_refusal")
    rows = suites.readable(suites.of_judge(rows, judge), *suites.NUMBERS)
    layout: Look = {"specs": [[{"rowspan": 2}, {}], [None, {}]], "column_widths": [0.56, 0.44]}
    canvas = Canvas("depth_story", ["depth", *_SHARES], columns=2, panel_height=150, **layout)
    add_carrier_layers(canvas, carrier, n_layers=n_layers)
    for panel, suite in zip((1, 3), _SHARES.values(), strict=True):
        subset = suites.of(rows, suite=suite)
        if subset["value"].notna().any():
            suites.add_rates(canvas, subset, panel=panel)
        canvas.x(panel, title=canvas.entry.x if panel == 3 else None)
        canvas.y(panel, range=list(suites.LIMITS), title="share refused", tickformat=".0%", nticks=5)
    return canvas.finish(suites.judged(rows), wording.counts(rows["n"]))
