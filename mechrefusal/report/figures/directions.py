"""How many directions refusal takes, how they are spread, and where zero lies along them."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import checkpoint_name, ordered, word
from mechrefusal.report.figures.style import POINTS, RANDOM, Look
from mechrefusal.report.order import checkpoint_order
from mechrefusal.statistics.choosing import BEST, CARRIER
from mechrefusal.study.table_rows import best_place, carrier_place

_SYMBOLS = {"categories": "circle", "pca": "square", "successive": "diamond", "cone": "triangle-up", "random": "cross"}
_MEANS = {0: "harmless mean", 1: "harmful mean"}
_FAR = 3.0
"""Directions are next to nothing in the first layers, and zero then infinitely far: what is so many times the spread of
the middle half away is out of the picture."""


def subspaces(table: pd.DataFrame, *, baseline: float | None = None) -> go.Figure:
    """Refusal score on harmful prompts with a subspace ablated, against its size k: one line a family of subspaces.

    Filled points are admissible, open ones are not. Random subspaces are the floor, and for learned cones those of r
    and random directions: cones of k > 1 are the mean over directions drawn from them.

    Args:
        table: table `subspaces` of one checkpoint.
        baseline: score without intervention (`baseline_harmful` of table `carrier`); a dotted line.
    """
    rows = _named(style.drawable(table, "bypass", "subspaces"))
    families, canvas = ordered(rows["family"], "family"), Canvas("subspaces")
    for place, family in enumerate(families):
        subset, symbol = rows[rows["family"] == family].sort_values("k"), _SYMBOLS.get(family, "x")
        colour = style.NEUTRAL if "random" in family else style.ARM_COLOURS[place % len(style.ARM_COLOURS)]
        dash = {"random": "dash", "random_cone": "dot"}.get(family, "solid")
        look: Look = {"colour": colour, "shift": (place - (len(families) - 1) / 2) * 0.06}
        shapes = [symbol if admissible else f"{symbol}-open" for admissible in subset["admissible"]]
        ends: Look = {"interval": "bars", "ends": ("bypass_low", "bypass_high")}
        canvas.line(subset, "k", "bypass", word("family", family), symbol=shapes, dash=dash, size=8, **ends, **look)
        star = POINTS | look | {"symbol": "star", "size": 17}
        canvas.line(subset[subset["smallest"]], "k", "bypass", "smallest that is enough", **star)
    sizes = sorted({int(k) for k in rows["k"]})
    if not wording.is_missing(baseline):
        ends = pd.DataFrame({"k": [sizes[0] - 0.35, sizes[-1] + 0.35], "bypass": float(baseline or 0.0)})
        text = f"no intervention {wording.number(baseline, 3)}"
        dotted = RANDOM | {"mode": "lines", "dash": "dot", "hover": [text, text]}
        canvas.line(ends, "k", "bypass", "no intervention", **dotted)
    canvas.x(tickvals=sizes)
    return canvas.finish(wording.counts(rows["n"], "harmful prompts"), "open: not admissible")


def smallest_k(table: pd.DataFrame) -> go.Figure:
    """The smallest k that is enough over optimiser steps, one line an arm (table `subspaces` of all checkpoints)."""
    chosen = style.drawable(table[table["smallest"]], "k", "the smallest subspace that is enough")
    checkpoints = table[["arm", "step"]].drop_duplicates()
    rows = checkpoints.merge(_named(chosen).drop_duplicates(["arm", "step"]), on=["arm", "step"], how="left")
    canvas = Canvas("smallest_k")
    for arm, subset, look in style.each_arm(rows):
        canvas.line(subset, "step", "k", arm, interval="none", size=8, **look)
    canvas.steps(rows["step"])
    canvas.y(range=[0, int(max(5, rows["k"].max())) + 0.5], dtick=1)
    return canvas.finish("no point: none is")


def effective_rank(table: pd.DataFrame, *, rows: str) -> go.Figure:
    """Effective rank, exp(entropy of the normalised singular values), over optimiser steps (table `effective_rank`).

    Args:
        rows: which vectors are the rows of the matrix (`positions`, `layers`, `admissible`). Colour is the arm, the
            dash is the variant: raw or unit rows, entropy over sigma or sigma squared.
    """
    chosen = style.drawable(table[table["rows"] == rows], "value", f"effective rank over {rows}")
    variants = sorted(set(zip(chosen["scaling"], chosen["weight"], strict=True)))
    canvas = Canvas("effective_rank")
    for arm, subset, look in style.each_arm(chosen):
        for place, (scaling, weight) in enumerate(variants):
            variant = f"{scaling}, {word('weight', weight)}"
            rows_of = subset[(subset["scaling"] == scaling) & (subset["weight"] == weight)].assign(variant=variant)
            dashed = {"dash": style.DASHES[place % len(style.DASHES)], "interval": "none", "shift": 0.0}
            canvas.line(rows_of, "step", "value", f"{arm}: {variant}", **look | dashed)
    canvas.steps(chosen["step"])
    canvas.y(rangemode="tozero")
    return canvas.finish(wording.counts(chosen["n_rows"], "rows"), rows=word("rank_rows", rows))


def zero_distances(directions: pd.DataFrame, carrier: pd.DataFrame | None = None) -> go.Figure:
    """Where zero lies along the direction of each layer: a line a checkpoint, 0 the harmless mean, 1 the harmful one.

    At the position of the carrier, or of the best candidate in its place (marked at its layer); at the last position
    where there is neither. Dashes and lighter lines tell an arm's checkpoints apart, the last is solid.

    Args:
        directions: table `directions` of one or several checkpoints, with `zero_distance`.
        carrier: table `carrier` of the same.
    """
    rows = style.drawable(directions, "zero_distance", "where zero lies along the directions")
    keys = sorted(set(zip(rows["arm"], rows["step"], strict=True)), key=checkpoint_order)
    canvas, values = Canvas("zero_distances"), []
    for key in keys:
        subset = rows[(rows["arm"] == key[0]) & (rows["step"] == key[1])]
        kind, place = _reference(carrier, key) or ("", (int(subset["position"].max()), -1))
        subset = subset[(subset["position"] == place[0]) & subset["zero_distance"].notna()].sort_values("layer")
        subset = subset.assign(here=(subset["layer"] == place[1]).map({True: f"the {kind}'s layer", False: ""}))
        values.append(subset["zero_distance"])
        name, look = checkpoint_name({"arm": key[0], "step": key[1]}, limit=16), style.checkpoint_style(key, keys)
        canvas.line(subset, "layer", "zero_distance", name, interval="none", **look | {"symbol": "circle", "size": 4})
        star = {"symbol": "star" if kind == CARRIER else "star-open", "size": 13, "colour": look["colour"]}
        canvas.line(subset[subset["layer"] == place[1]], "layer", "zero_distance", name, **POINTS | star)
    low, high = _limits(pd.concat(values))
    far = sum(int(((each < low) | (each > high)).sum()) for each in values)
    for value, name in _MEANS.items():
        dashed = {"width": 1.4, "dash": "dash", "color": style.WHISKER}
        at = {"text": name, "x": 1, "xanchor": "right", "showarrow": False, "font": {"size": 11}}
        corner = "top right" if value else "bottom right"
        canvas.figure.add_hline(y=value, line=dashed, annotation=at, annotation_position=corner)
    canvas.x(dtick=max(1, rows["layer"].nunique() // 10))
    canvas.y(range=[low, high], zeroline=False)
    return canvas.finish("star: the carrier's layer", f"{far} values out of the picture" if far else "")


def _reference(carrier: pd.DataFrame | None, key: tuple[str, int]) -> tuple[str, tuple[int, int]] | None:
    """What a checkpoint has, carrier or best candidate, and its (position, layer); None where it has neither."""
    if carrier is None:
        return None
    for _, row in carrier[(carrier["arm"] == key[0]) & (carrier["step"] == key[1])].head(1).iterrows():
        for kind, place in ((CARRIER, carrier_place(row)), (BEST, best_place(row))):
            if place is not None:
                return kind, place
    return None


def _limits(values: pd.Series) -> tuple[float, float]:
    """The range of the values and of both means, without those that are out of all proportion."""
    low, high = float(values.quantile(0.25)), float(values.quantile(0.75))
    reach = _FAR * max(high - low, 1.0)
    near = values[(values > low - reach) & (values < high + reach)]
    low, high = min(float(near.min()), 0.0), max(float(near.max()), 1.0)
    room = 0.06 * (high - low)
    return low - room, high + room


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Subspaces with the names of their families, and whether they are admissible, in words."""
    states = {True: "admissible", False: "not admissible"}
    names = [word("family", family) for family in rows["family"]]
    return rows.assign(family_name=names, state=rows["admissible"].map(states))
