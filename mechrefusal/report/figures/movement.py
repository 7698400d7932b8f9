"""How refusal's place moves between checkpoints: drift of directions, and carriers of one checkpoint at another."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import axes, style
from mechrefusal.report.figures.axes import largest, map_height
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import pair_name, word
from mechrefusal.report.figures.style import Look
from mechrefusal.report.order import SHARED, WARM_UP

SPAN = -1
"""Value of `layer` where a measure does not belong to one layer (as in table `drift`)."""
EFFECTS = ("bypass", "induce")


def drift(table: pd.DataFrame, *, measure: str, layer: int | None = None) -> go.Figure:
    """One drift measure over optimiser steps (table `drift`): x is the step of the later checkpoint of a pair.

    Bars are 95% intervals over prompts, which a mean over layers does not have.

    Args:
        measure: a value of the column `measure`; angles are in degrees.
        layer: the layer to draw; by default the one of the whole span (-1), and where the measure has none, the mean
            over layers.
    """
    rows, where = table[table["measure"] == measure], ""
    layers = set(rows["layer"])
    if layer is None and SPAN in layers:
        rows = rows[rows["layer"] == SPAN]
    elif layer is not None:
        rows, where = rows[rows["layer"] == layer], f"layer {layer}"
    elif len(layers) > 1:
        where = f"mean over {len(layers)} layers"
    rows = style.drawable(rows, "value", f"drift '{measure}'")
    pairs = rows.groupby(["arm_a", "step_a", "arm_b", "step_b"], as_index=False, sort=False)
    averaged = bool((pairs["layer"].transform("nunique") > 1).any())
    rows = pairs[["value", "low", "high", "floor", "random"]].mean()
    rows = rows.assign(low=float("nan"), high=float("nan")) if averaged else rows
    canvas, names = Canvas("drift"), style.arms(pd.DataFrame({"arm": [*rows["arm_a"], *rows["arm_b"]]}))
    shift = 0.012 * (float(rows["step_b"].max() - rows["step_a"].min()) or 1.0)
    for place, arm in enumerate(names):
        colour, symbol = style.arm_style(arm, names)
        aside = shift * (place - (len(names) - 1) / 2)
        subset = rows[(rows["arm_b"] == arm) & rows["arm_a"].isin([arm, *SHARED])]
        before = subset[subset["step_a"] == subset.groupby("step_b")["step_a"].transform("max")].sort_values("step_b")
        since = "the base" if arm == WARM_UP else "the anchor before"
        look: Look = {"colour": colour, "interval": "bars"}
        canvas.line(before, "step_b", "value", f"{arm}: since {since}", symbol=symbol, size=8, shift=2 * aside, **look)
        for start in SHARED:
            first = subset[~subset.index.isin(before.index) & (subset["arm_a"] == start)].sort_values("step_b")
            hollow: Look = {"symbol": f"{symbol}-open", "size": 10, "mode": "markers", "shift": 4 * aside}
            canvas.line(first, "step_b", "value", f"{arm}: since the {start}", **hollow, **look)
    trained = ~rows["arm_a"].isin(SHARED) & ~rows["arm_b"].isin(SHARED)
    apart = rows[trained & (rows["arm_a"] != rows["arm_b"])].sort_values("step_b")
    grey: Look = {"colour": style.NEUTRAL, "width": 1.5}
    for (first, second), subset in apart.groupby(["arm_a", "arm_b"], sort=False):
        look = {"symbol": "diamond", "dash": "dot", "size": 8, "interval": "bars"}
        canvas.line(subset, "step_b", "value", f"{first} and {second}, same step", **look, **grey)
    for column, name, symbol in (
        ("floor", "split-half floor", "x-thin-open"),
        ("random", "random directions", "line-ew-open"),
    ):
        known = rows[rows[column].notna()]
        canvas.line(known, "step_b", column, name, symbol=symbol, mode="markers", interval="none", **grey)
    angle = "angle" in measure
    canvas.steps(rows["step_b"])
    unit = "degrees" if angle else "cosine" if "cosine" in measure else word("measure", measure)
    canvas.y(title=wording.for_plotly(unit), range=[-3, 93] if angle else [-1.06, 1.06] if unit == "cosine" else None)
    return canvas.finish(where, measure=word("measure", measure), unit=unit)


def drift_by_layer(table: pd.DataFrame, *, measure: str) -> go.Figure:
    """Map of a drift measure taken at every layer: x = pair of checkpoints, y = layer (table `drift`)."""
    rows = table[(table["measure"] == measure) & (table["layer"] >= 0)]
    rows = style.drawable(rows, "value", f"drift '{measure}' by layer")
    down, across = axes.numbers(rows["layer"]), axes.named(pair_name(row) for row in rows.to_dict("records"))
    canvas, angle = Canvas("drift_by_layer"), "angle" in measure
    canvas.matrix(rows, "value", down, across, xgap=1)
    unit = "degrees" if angle else "cosine"
    canvas.colours(unit, limit=None if angle else 1.0, most=90 if angle else None)
    return canvas.finish(measure=word("measure", measure), unit=unit, height=map_height(len(down.order)) + 200)


def transfer(table: pd.DataFrame, *, effect: str = "bypass") -> go.Figure:
    """Map of a direction's effect at other checkpoints: x = target, y = source (table `transfer`).

    A dot marks effects that are clear of a random direction: the 95% interval of the change, prompt by prompt, excludes
    the random one, on the side of more effect; under ablation the directions of both halves of the direction prompts
    must also take away more. On the diagonal, where the prompts chose the direction, what is taken away is that of
    every prompt under what the other prompts choose, where that is known.

    Args:
        effect: `bypass`: the target's score on harmful prompts without intervention minus that with the direction
            ablated (nats; positive takes refusal away). `induce`: score on harmless prompts with it put in (nats;
            positive means refusal).
    """
    if effect not in EFFECTS:
        raise MechrefusalError(f"unknown effect '{effect}' of a transfer: expected one of {', '.join(EFFECTS)}")
    shown = _taken_away(table) if effect == "bypass" else table["induce"]
    rows = style.drawable(table.assign(shown=shown), "shown", f"the transfer of '{effect}'")
    down, across = axes.checkpoints(rows, "_source"), axes.checkpoints(rows, "_target")
    canvas = Canvas("transfer")
    heading, unit = canvas.entry.panels[effect]
    cells = canvas.matrix(rows, "shown", down, across, xgap=1, ygap=1)
    canvas.marks(_are_clear(rows, effect), down, across, "clear of random", size=6)
    canvas.colours(unit, limit=largest([cells]))
    instead = {key for key, kind in zip(down.keys, rows["kind"], strict=True) if kind == "best candidate"}
    starred = [f"{name}*" if key in instead else name for key, name in zip(down.order, down.names or (), strict=True)]
    canvas.categories(starred)
    n = wording.counts(rows[f"n_{'harmful' if effect == 'bypass' else 'harmless'}"])
    note = "* no carrier: best candidate" if instead else ""
    return canvas.finish(n, note, effect=heading, unit=unit, height=int(min(820, 250 + 34 * len(down.order))))


def _taken_away(rows: pd.DataFrame) -> pd.Series:
    """What ablation takes away; from prompts that did not choose the direction, where they did choose it."""
    lowered = rows["baseline_harmful"] - rows["bypass"]
    return lowered.mask(lowered.notna() & rows["decrease_held_out"].notna(), rows["decrease_held_out"])


def _are_clear(rows: pd.DataFrame, effect: str) -> pd.Series:
    """Whether the paired interval of the change excludes what a random direction does, and each half of the direction
    prompts does more where that is known; missing numbers never do."""
    if effect == "induce":
        return rows["rise_low"] > rows["random_induce"] - rows["baseline_harmless"]
    held_out = rows["decrease_held_out_low"].notna()
    low = rows["decrease_low"].mask(held_out, rows["decrease_held_out_low"])
    half = rows["decrease_half_low"]
    half = half.mask(held_out, half - (rows["decrease"] - rows["decrease_held_out"]))
    return (low > rows["random_decrease"]) & (half.isna() | (half > rows["random_decrease"]))
