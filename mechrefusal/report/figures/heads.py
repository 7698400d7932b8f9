"""Heads beside each other: estimated and exact patches, what two checkpoints share, heads over training steps."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import axes, style
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import ordered, word
from mechrefusal.report.figures.style import RANDOM, Look
from mechrefusal.report.order import checkpoint_order

Head = tuple[int, int]
"""Layer, and number of the head in it."""
_SCORED = {"finalist": ("circle", style.ARM_COLOURS[0]), "random": ("diamond-open", style.ARM_COLOURS[1])}


def attribution_patching(table: pd.DataFrame) -> go.Figure:
    """Exact change of the metric against its first-order estimate, nats: one panel a site.

    Args:
        table: table `attribution_patching` of one checkpoint; cells that were not patched exactly are left out.
    """
    rows = style.drawable(table[table["scored"].isin(list(_SCORED))], "exact", "estimates against exact patches")
    rows = rows.dropna(subset=["estimate", "exact"])
    sites = ordered(rows["site"], "site")
    canvas = Canvas("attribution_patching", [word("site", site) for site in sites], columns=2, panel_height=230)
    for panel, site in enumerate(sites):
        subset = rows[rows["site"] == site]
        both = subset[["estimate", "exact"]].to_numpy(float)
        equal = RANDOM | {"width": 1, "dash": "dot", "mode": "lines", "hover": [], "panel": panel}
        canvas.line(pd.DataFrame({"at": [both.min(), both.max()]}), "at", "at", "estimate = exact", **equal)
        for scored, (symbol, colour) in _SCORED.items():
            look: Look = {"symbol": symbol, "colour": colour, "size": 7, "mode": "markers", "interval": "bars"}
            canvas.line(subset[subset["scored"] == scored], "estimate", "exact", scored, panel=panel, **look)
    thin = {"thickness": 1, "width": 0, "color": style.AXIS}
    canvas.figure.update_traces(selector={"mode": "markers"}, error_y=thin)
    return canvas.finish(wording.counts(rows["n"], "pairs"))


def top_heads(table: pd.DataFrame, value: str, k: int) -> dict[tuple[str, int], list[Head]]:
    """The `k` heads of largest absolute `value` of each (arm, step); a checkpoint with fewer values has none."""
    rows = table.assign(size=table[value].abs()).dropna(subset=[value])
    rows = rows[rows["head"] >= 0].sort_values("size", ascending=False, kind="stable")
    best = {}
    for (arm, step), subset in rows.groupby(["arm", "step"], sort=False):
        heads = list(dict.fromkeys(zip(subset["layer"].astype(int), subset["head"].astype(int), strict=True)))[:k]
        if len(heads) == k:
            best[str(arm), int(step)] = heads
    return best


def shared_heads(table: pd.DataFrame, *, value: str = "raw", k: int = 10, title: str = "") -> go.Figure:
    """How many of their `k` top heads (largest absolute `value`) two checkpoints share; the hover names them.

    Args:
        table: one row a head and checkpoint, with `arm`, `step`, `layer`, `head`: table `patching` of several
            checkpoints with site `z` and one mode, or `knockout` with component `head` and value `refusal`.

    Raises:
        MechrefusalError: fewer than two checkpoints have `k` heads with a value, or there is no such column.
    """
    if value not in table:
        raise MechrefusalError(f"cannot draw shared heads: the table has no column '{value}'")
    best = top_heads(table, value, k)
    if len(best) < 2:
        raise MechrefusalError(
            f"cannot draw shared heads: {len(best)} checkpoints have {k} heads with a value of '{value}', it takes two"
        )
    keys = sorted(best, key=checkpoint_order)
    names = {key: f"{wording.shortened(key[0], 16)} {key[1]}" for key in keys}
    shared = {(a, b): [head for head in best[a] if head in best[b]] for a in keys for b in keys}
    rows = pd.DataFrame(
        [
            {"one": names[a], "other": names[b], "shared": len(heads), "k": k}
            | {"heads": ", ".join(wording.head_name(*head) for head in heads)}
            for (a, b), heads in shared.items()
        ]
    )
    canvas, pairs = Canvas("shared_heads"), list(zip(*shared, strict=True))
    down, across = (axes.named(keys_of_rows, names.__getitem__) for keys_of_rows in pairs)
    canvas.matrix(rows, "shared", down, across, written="{shared:whole}")
    canvas.colours("heads", most=k)
    n = len(table[table["head"] >= 0].drop_duplicates(["layer", "head"]))
    chance = f"of the top {k}; {wording.number(k * k / n, 1)} expected of chance among {n} heads"
    return canvas.finish(chance, title=title, height=int(min(720, 190 + 34 * len(keys))))


def head_lines(
    table: pd.DataFrame,
    *,
    heads: Sequence[Head] | None = None,
    value: str = "effect",
    k: int = 5,
    unit: str = "",
    title: str = "",
) -> go.Figure:
    """What single heads do over training steps: one panel an arm, one line a head, with 95% intervals.

    Args:
        table: one row a head and checkpoint, with `arm`, `step`, `layer`, `head`: table `patching` of several
            checkpoints with site `z` and one mode, `knockout`, or `attribution_compared` of one `onto`.
        heads: (layer, head) of the lines; by default the `k` whose `value` is largest at any checkpoint.
    """
    rows = style.drawable(table[table["head"] >= 0], value, f"'{value}' of heads over training steps")
    keys = list(zip(rows["layer"].astype(int), rows["head"].astype(int), strict=True))
    rows = rows.assign(key=keys, quantity=word("quantity", value), shown=rows[value])
    largest = rows[value].abs().groupby(rows["key"]).max().sort_values(ascending=False, kind="stable")
    chosen = list(heads) if heads is not None else list(largest.dropna().index[:k])
    if rows.duplicated(["arm", "step", "layer", "head"]).any():
        raise MechrefusalError("several rows of one head at one checkpoint: filter the table by site, mode or onto")
    rows = style.drawable(rows[rows["key"].isin(chosen)], value, "the chosen heads over training steps")
    arms = style.arms(rows)
    canvas = Canvas("head_lines", arms, columns=2, shared="y", panel_height=230)
    ends = ("", "") if value == "raw" and "effect" in rows else ("low", "high")
    for panel, arm in enumerate(arms):
        subset = style.with_base(rows, arm)
        for number, head in enumerate(chosen):
            look: Look = {"colour": style.ARM_COLOURS[number % len(style.ARM_COLOURS)], "ends": ends, "panel": panel}
            symbol = style.ARM_SYMBOLS[number // len(style.ARM_COLOURS) % len(style.ARM_SYMBOLS)]
            canvas.line(subset[subset["key"] == head], "step", "shown", wording.head_name(*head), symbol=symbol, **look)
    canvas.rule(y=0)
    canvas.y(0, title=unit or word("unit", value))
    n = wording.counts(rows["n"]) if "n" in rows else ""
    return canvas.finish(n, title=title, unit=unit or word("unit", value), quantity=word("quantity", value))
