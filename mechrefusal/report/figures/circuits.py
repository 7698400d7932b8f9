"""The circuit of refusal as a graph: heads and MLPs that carry it, and the paths between them."""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import catalogue, style
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import component_name
from mechrefusal.report.figures.style import Look

EMBEDDING, LOGITS = "embedding", "logits"
_BENDS = 14
_PATHS = {True: (style.POSITIVE, "path that carries refusal"), False: (style.NEGATIVE, "path against it")}
_PATH_HOVER = ("<b>{sender} → {receiver}</b>",)


def circuit(nodes: pd.DataFrame, edges: pd.DataFrame) -> go.Figure:
    """The circuit: x = head (MLPs to the right), y = layer, from the embedding below to the logits above.

    Colours are effects as a share of the gap between harmful and harmless prompts; the width of a path grows with the
    root of its effect. Where pairs were held out from the choice, what does not differ from nothing on them (p < 0.05,
    adjusted for all kept ones) has a pale outline or a dotted line.

    Args:
        nodes: table `circuit_nodes` of one checkpoint.
        edges: table `circuit_edges` of one checkpoint; paths that were not kept, or with an end that `nodes` does not
            keep, are left out. May be empty.
    """
    rows = style.drawable(nodes, "effect", "the circuit")
    rows = rows.assign(place=rows["kept"].map({True: "in the circuit", False: "outside the circuit"}))
    kept = rows[rows["kept"]]
    if not len(kept):
        style.drawable(rows.assign(effect=np.nan), "effect", "the circuit")  # raises with the reason of the table
    heads = rows.loc[rows["component"] == "head", "head"]
    mlps_at = float(heads.max() if len(heads) else 0) + 1.5
    layers, middle = int(rows["layer"].max()) + 1, (mlps_at - 1.5) / 2
    rows = rows.assign(x=rows["head"].astype(float).where(rows["component"] == "head", mlps_at))
    kept = rows[rows["kept"]]
    places = {row.node: (row.x, float(row.layer)) for row in kept.itertuples()}
    places |= {EMBEDDING: (middle, -2.2), LOGITS: (middle, layers + 1.2)}
    canvas, paths = Canvas("circuit"), _paths(edges, places)
    _draw_paths(canvas, paths, places)
    dots: Look = {"mode": "markers", "colour": style.NEUTRAL, "size": 3.5, "opacity": 0.6, "interval": "none"}
    canvas.line(rows[~rows["kept"]], "x", "layer", "outside the circuit", **dots)
    limit = float(kept["effect"].abs().max()) or 1.0
    for kind, symbol, name in (("head", "circle", "head"), ("mlp", "square", "MLP")):
        _draw_nodes(canvas, kept[kept["component"] == kind], symbol, name, limit)
    _draw_ends(canvas, places)
    canvas.colours("share of the gap", limit=limit)
    numbers = list(range(int(mlps_at - 1.5) + 1))
    numbers = numbers[:: math.ceil(len(numbers) / 16)]
    canvas.categories([*map(str, numbers), "MLP"], axis="x", places=[*numbers, mlps_at], tickangle=0)
    canvas.x(range=[-0.9, mlps_at + 0.9])
    at = list(range(0, layers, max(1, math.ceil(layers / 10))))
    canvas.categories([str(layer) for layer in at], places=at, range=[-4.4, layers + 3.2])
    canvas.figure.update_layout(hovermode="closest")
    counted = f"{len(kept)} of {len(rows)} heads and MLPs; {len(paths)} paths"
    height = int(min(980, max(480, 19 * layers + 220)))
    return canvas.finish(counted, wording.counts(kept["n"], "pairs"), height=height)


def _paths(edges: pd.DataFrame, places: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Kept paths between drawn nodes, weakest first."""
    if not len(edges):
        return edges
    chosen = edges["kept"] & edges["sender"].isin(list(places)) & edges["receiver"].isin(list(places))
    return edges[chosen].dropna(subset=["effect"]).sort_values("effect", key=abs, kind="stable")


def _draw_paths(canvas: Canvas, paths: pd.DataFrame, places: dict[str, tuple[float, float]]) -> None:
    """A curve each, and an invisible point in its middle that holds the hover."""
    for colour, name in _PATHS.values():
        look: Look = {"mode": "lines", "line": {"width": 3, "color": colour}, "hoverinfo": "skip"}
        canvas.add(go.Scatter(x=[None], y=[None], **look, **canvas.named(name)))
    if not len(paths):
        return
    most, middles = float(paths["effect"].abs().max()) or 1.0, []
    for row, dotted in zip(paths.to_dict("records"), _unconfirmed(paths), strict=True):
        x, y = _bent(places[row["sender"]], places[row["receiver"]])
        share, (colour, name) = abs(row["effect"]) / most, _PATHS[bool(row["effect"] >= 0)]
        line = {"width": 0.8 + 5 * math.sqrt(share), "color": colour, "dash": "dot" if dotted else "solid"}
        look = {"mode": "lines", "line": line, "opacity": 0.35 + 0.45 * share, "hoverinfo": "skip"}
        canvas.add(go.Scatter(x=x, y=y, **look, **canvas.named(name)))
        middles.append({"x": x[_BENDS // 2], "y": y[_BENDS // 2]})
    texts = catalogue.hovers(paths, (*_PATH_HOVER, *canvas.entry.hover[1:5]))
    look = {"mode": "markers", "size": 16, "opacity": 0.0, "interval": "none"}
    canvas.line(pd.DataFrame(middles), "x", "y", "paths", hover=texts, **look)
    canvas.figure.data[-1].showlegend = False


def _bent(start: tuple[float, float], end: tuple[float, float]) -> tuple[list[float], list[float]]:
    """A curve that bulges to one side, so that paths over the same column do not cover each other."""
    (x0, y0), (x1, y1) = start, end
    bulge = 0.018 * abs(y1 - y0) + 0.12
    t = np.linspace(0, 1, _BENDS + 1)
    x = (1 - t) ** 2 * x0 + 2 * (1 - t) * t * ((x0 + x1) / 2 + 2 * bulge) + t**2 * x1
    return [round(float(value), 3) for value in x], [round(float(value), 3) for value in y0 + t * (y1 - y0)]


def _draw_nodes(canvas: Canvas, subset: pd.DataFrame, symbol: str, name: str, limit: float) -> None:
    if not len(subset):
        return
    pale = _unconfirmed(subset)
    outline = {"width": np.where(pale, 1.2, 1.8).tolist(), "color": np.where(pale, "#b0b0b0", "#222222").tolist()}
    sizes = [11 + 13 * min(1.0, abs(float(effect)) / limit) for effect in subset["effect"].fillna(0)]
    colours = {"color": style.numbers(subset["effect"]), "coloraxis": "coloraxis"}
    canvas.add(
        go.Scatter(
            x=list(subset["x"]),
            y=list(subset["layer"]),
            mode="markers+text",
            marker={"symbol": symbol, "size": sizes, "line": outline, "opacity": 1, **colours},
            text=[wording.for_plotly(component_name(row)) for row in subset.to_dict("records")],
            textposition="bottom center" if symbol == "circle" else "middle right",
            textfont={"size": 10},
            hovertext=canvas.hovers(subset),
            hoverinfo="text",
            **canvas.named(name),
        )
    )


def _draw_ends(canvas: Canvas, places: dict[str, tuple[float, float]]) -> None:
    x, y = zip(places[EMBEDDING], places[LOGITS], strict=True)
    canvas.add(
        go.Scatter(
            x=list(x),
            y=list(y),
            mode="markers+text",
            marker={"symbol": "diamond", "size": 13, "color": style.NEUTRAL},
            text=[EMBEDDING, LOGITS],
            textposition=["bottom center", "top center"],
            hovertext=["<b>embedding</b>: where paths begin", "<b>logits</b>: the refusal score"],
            hoverinfo="text",
            showlegend=False,
        )
    )


def _unconfirmed(rows: pd.DataFrame) -> pd.Series:
    """Whether held-out pairs were asked, and do not tell a row from nothing."""
    return rows["p"].notna() & ~style.is_clear(rows)
