"""What it takes to remove refusal: figures of the tables of `durability.yaml` and `durability_pairs.yaml`."""

from collections.abc import Hashable

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import axes, style
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import pair_name
from mechrefusal.report.figures.style import Look

LIMITS: Look = {"range": [-0.03, 1.03]}
_LEAST_KL = 1e-4
_MATRICES = 12
_PARTS: dict[str, Look] = {
    "top": {"colour": style.ARM_COLOURS[0]},
    "all but top": {"colour": style.ARM_COLOURS[1], "symbol": "square"},
    "random": {"colour": style.NEUTRAL, "dash": "dash"},
    "all but random": {"colour": style.NEUTRAL, "dash": "dot", "symbol": "square"},
}
"""Parts of an update by singular directions; those of random draws are means over the draws."""
_SIDES = ("harmful", "harmless")


def _of(rows: pd.DataFrame, key: tuple[str, int]) -> pd.DataFrame:
    return rows[(rows["arm"] == key[0]) & (rows["step"] == key[1])]


# (a) Cost of removal


def removal_curves(table: pd.DataFrame) -> go.Figure:
    """Share refused against KL of every ablation that was tried, and the line of those that none beats.

    Args:
        table: table `removal_trials` of all checkpoints.
    """
    rows = style.drawable(table, "refused", "the cost of removal")
    rows = rows.assign(x=rows["kl"].clip(lower=_LEAST_KL))
    keys, canvas = axes.checkpoints(rows).order, Canvas("removal_curves")
    for key in keys:
        look, name, of_key = style.checkpoint_style(key, keys), axes.checkpoint_label(key), _of(rows, key)
        others, front = of_key[~of_key["unbeaten"]], of_key[of_key["unbeaten"]].sort_values("x", kind="stable")
        faint: Look = {**look, "opacity": 0.3, "mode": "markers", "size": 5, "interval": "none"}
        canvas.line(front, "x", "refused", name, interval="bars", **look)
        canvas.figure.data[-1].update(line={"shape": "hv"})
        canvas.line(others, "x", "refused", name, **faint)
    canvas.x(type="log", dtick=1, exponentformat="power")
    canvas.y(**LIMITS)
    return canvas.finish(wording.counts(rows["n"], "harmful prompts of the search"))


def removal(table: pd.DataFrame) -> go.Figure:
    """Fewest refusals within a KL: on the prompts of the search, on held-out ones, and along random directions.

    Args:
        table: table `removal` of all checkpoints; one panel a checkpoint.
    """
    rows = style.drawable(table, "refused", "the fewest refusals within a KL")
    rows = rows.dropna(subset=["refused"])
    keys, levels = axes.checkpoints(rows).order, sorted(set(rows["level"]))
    canvas = Canvas("removal", [axes.checkpoint_label(key) for key in keys], columns=3, panel_height=190, shared="y")
    places = {level: place for place, level in enumerate(levels)}
    for panel, key in enumerate(keys):
        of_key = _of(rows, key).sort_values("level")
        of_key = of_key.assign(x=[places[level] for level in of_key["level"]])
        blue, orange = style.ARM_COLOURS[:2]
        canvas.add(style.between(of_key, "x", "random_least", "random_most", style.NEUTRAL), panel)
        canvas.line(of_key, "x", "random_refused", "random directions", panel=panel, **style.RANDOM)
        searched: Look = {"colour": orange, "dash": "dot", "symbol": "square", "interval": "none"}
        canvas.line(of_key, "x", "search_refused", "prompts of the search", panel=panel, **searched)
        canvas.line(of_key, "x", "refused", "held-out prompts", colour=blue, interval="bars", panel=panel)
        plain: Look = {"colour": style.WHISKER, "width": 1, "dash": "solid", "mode": "lines", "interval": "none"}
        canvas.line(of_key, "x", "untouched", "no ablation", panel=panel, hover=[], **plain)
        names = [wording.number(level, 2) for level in levels]
        canvas.categories(names, axis="x", places=list(places.values()), panel=panel)
    canvas.y(**LIMITS)
    return canvas.finish(wording.counts(rows["n"], "held-out harmful prompts"))


# (c) Spectrum of the update


def update_ranks(table: pd.DataFrame) -> go.Figure:
    """Effective rank of the update by layer, one line a matrix; dashed: a random matrix of the same shape.

    Args:
        table: table `update_spectrum` of one pair.
    """
    rows = style.drawable(table, "effective_rank", "the rank of the update")
    layered = rows[rows["layer"].notna()].assign(layer=lambda each: each["layer"].astype(float))
    layered = style.drawable(layered, "effective_rank", "the rank of the update by layer").sort_values("layer")
    matrices = list(dict.fromkeys(layered["matrix"]))[:_MATRICES]
    canvas = Canvas("update_ranks")
    for place, matrix in enumerate(matrices):
        of_matrix = layered[layered["matrix"] == matrix]
        colour = style.ARM_COLOURS[place % len(style.ARM_COLOURS)]
        symbol = style.ARM_SYMBOLS[place // len(style.ARM_COLOURS)]
        look: Look = {"colour": colour, "size": 4, "symbol": symbol, "interval": "none"}
        canvas.line(of_matrix, "layer", "effective_rank", wording.shortened(matrix), **look)
        chance: Look = {**look, "mode": "lines", "dash": "dash", "width": 1, "opacity": 0.5, "hover": []}
        canvas.line(of_matrix, "layer", "random", "", group=wording.shortened(matrix), **chance)
    canvas.y(rangemode="tozero")
    return canvas.finish(pair=pair_name(rows.iloc[0]))


def update_scales(table: pd.DataFrame) -> go.Figure:
    """Share refused with the update times a factor: 0 is the model before training, 1 the trained one.

    Args:
        table: table `update_refusals` of one pair.
    """
    rows = style.drawable(table[table["kept"] == "scaled"], "refused", "refusals by the scale of the update")
    canvas = Canvas("update_scales")
    for side, of_side in _by_side(rows):
        dash = "solid" if side == _SIDES[0] else "dash"
        canvas.line(
            of_side.sort_values("scale"), "scale", "refused", f"{side} prompts", colour=_colour(side), dash=dash
        )
    canvas.y(**LIMITS)
    return canvas.finish(wording.counts(rows["n"], "prompts of each side"), pair=pair_name(rows.iloc[0]))


def update_directions(table: pd.DataFrame) -> go.Figure:
    """Share refused with the top k singular directions of every matrix alone, with all others, and with random ones.

    Args:
        table: table `update_refusals` of one pair.
    """
    rows = style.drawable(table[table["k"].notna()], "refused", "refusals by singular directions of the update")
    whole = table[(table["kept"] == "scaled") & (table["scale"] == 1)]
    ranks = sorted({int(k) for k in rows["k"]})
    canvas = Canvas("update_directions", _SIDES, columns=2, shared="y")
    for side, of_side in _by_side(rows.assign(x=[ranks.index(int(k)) for k in rows["k"]])):
        panel = _SIDES.index(side)
        for kept, look in _PARTS.items():
            of_part = of_side[of_side["kept"] == kept]
            drawn = of_part["draw"].notna().any()
            if drawn:
                names = {"refused": "mean", "share": "mean", "n": "max", "degenerate": "mean"}
                ends = of_part.groupby("x")["refused"].agg(low="min", high="max")
                of_part = of_part.groupby(["x", "k", "kept"], as_index=False).agg(names).join(ends, on="x")
            shift = 0.06 * (list(_PARTS).index(kept) - 1.5)
            canvas.line(of_part, "x", "refused", kept, panel=panel, interval="bars", shift=shift, **look)
        for value in whole.loc[whole["side"] == side, "refused"]:
            canvas.rule(y=float(value), panel=panel, dash="dot")
        canvas.categories(list(map(str, ranks)), axis="x", panel=panel)
    canvas.y(**LIMITS)
    return canvas.finish(wording.counts(rows["n"], "prompts of each side"), pair=pair_name(rows.iloc[0]))


def _by_side(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(side, of_side) for side in _SIDES if len(of_side := rows[rows["side"] == side])]


def _colour(side: Hashable) -> str:
    return style.SET_COLOURS[str(side)]
