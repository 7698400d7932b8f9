"""The circuit of refusal as a graph: heads and MLPs that carry it, and the paths between them."""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import heatmaps, style
from mechrefusal.report.figures.attribution import component_name

EMBEDDING, LOGITS = "embedding", "logits"
_BENDS = 14
_PATHS = {True: (style.POSITIVE, "path that carries refusal"), False: (style.NEGATIVE, "path against it")}


def circuit(nodes: pd.DataFrame, edges: pd.DataFrame) -> go.Figure:
    """The circuit: x = head (MLPs to the right), y = layer, from the embedding below to the logits above.

    Colour of a node: its effect, as a share of the gap between harmful and harmless prompts (red carries refusal, blue
    works against it). A path runs upwards; red ones carry refusal, blue ones work against it, and their width grows
    with the root of their effect. Small grey dots are heads and MLPs outside the circuit. Where pairs were held out
    from the choice, nodes and paths that differ from nothing on them (p < 0.05, adjusted for all kept
    ones) have a dark outline and a solid line, the others a pale outline and a dotted line. Numbers are in the hover.

    Args:
        nodes: table `circuit_nodes` of one checkpoint.
        edges: table `circuit_edges` of one checkpoint; paths that were not kept, or with an end that `nodes` does not
            keep, are left out. May be empty.
    """
    rows = style.drawable(nodes, "effect", "the circuit")
    kept = rows[rows["kept"]]
    if not len(kept):
        style.drawable(rows.assign(effect=np.nan), "effect", "the circuit")  # raises with the reason of the table
    layers, mlps_at = int(rows["layer"].max()) + 1, _mlps_at(rows)
    places = {str(row["node"]): _place(row, mlps_at) for _, row in kept.iterrows()}
    middle = (mlps_at - 1.5) / 2
    places |= {EMBEDDING: (middle, -2.2), LOGITS: (middle, layers + 1.2)}
    figure = go.Figure()
    paths = _paths(edges, places)
    _draw_paths(figure, paths, places)
    _draw_rest(figure, rows.drop(kept.index), mlps_at)
    limit = float(kept["effect"].abs().max()) or 1.0
    for kind, symbol, name in (("head", "circle", "head"), ("mlp", "square", "MLP")):
        own = kept[kept["component"] == kind]
        if len(own):
            figure.add_trace(_nodes(own, places, symbol, name, limit))
    figure.add_trace(_ends(places))
    figure.update_layout(coloraxis=heatmaps.colour_axis([kept["effect"].to_numpy(float)], 0.0, limit, "effect"))
    heads = list(range(int(mlps_at - 1.5) + 1))
    step = math.ceil(len(heads) / 16)
    ticks = {"tickvals": [*heads[::step], mlps_at], "ticktext": [*map(str, heads[::step]), "MLP"]}
    figure.update_xaxes(title="head", range=[-0.9, mlps_at + 0.9], showgrid=False, zeroline=False, **ticks)
    every = max(1, math.ceil(layers / 10))
    at = list(range(0, layers, every))
    figure.update_yaxes(
        title="layer",
        tickvals=at,
        ticktext=[str(y) for y in at],
        range=[-4.4, layers + 3.2],
        showgrid=False,
        zeroline=False,
    )
    legend = {"y": -0.09, "yanchor": "top"}
    figure.update_layout(showlegend=True, legend=legend, hovermode="closest")
    counted = f"{len(kept)} of {len(rows)} heads and MLPs; {len(paths)} paths"
    n = wording.counts(kept["n"], "pairs")
    subtitle = "; ".join(part for part in (counted, n) if part)
    return style.finish(
        figure, title="Heads, MLPs and paths", subtitle=subtitle, height=int(min(980, max(480, 19 * layers + 220)))
    )


def _mlps_at(rows: pd.DataFrame) -> float:
    heads = rows.loc[rows["component"] == "head", "head"]
    return float(heads.max() if len(heads) else 0) + 1.5


def _place(row: pd.Series, mlps_at: float) -> tuple[float, float]:
    return (float(row["head"]) if row["component"] == "head" else mlps_at), float(row["layer"])


def _paths(edges: pd.DataFrame, places: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Kept paths between drawn nodes, weakest first."""
    if not len(edges):
        return edges
    chosen = edges["kept"] & edges["sender"].isin(list(places)) & edges["receiver"].isin(list(places))
    found = edges[chosen].dropna(subset=["effect"])
    return found.sort_values("effect", key=lambda values: values.abs(), kind="stable")


def _draw_paths(figure: go.Figure, paths: pd.DataFrame, places: dict[str, tuple[float, float]]) -> None:
    most = float(paths["effect"].abs().max()) if len(paths) else 1.0
    middles: list[tuple[float, float]] = []
    for colour, name in _PATHS.values():
        look = {"mode": "lines", "line": {"width": 3, "color": colour}, "name": name, "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(x=[None], y=[None], legendgroup=name, **look))
    dashes = np.where(_unconfirmed(paths), "dot", "solid").tolist() if len(paths) else []
    for (_, row), dash in zip(paths.iterrows(), dashes, strict=True):
        x, y = _bent(places[str(row["sender"])], places[str(row["receiver"])])
        share = abs(row["effect"]) / (most or 1.0)
        colour, name = _PATHS[bool(row["effect"] >= 0)]
        line = {"width": 0.8 + 5 * math.sqrt(share), "color": colour, "dash": dash}
        path = go.Scatter(x=x, y=y, mode="lines", line=line, name=name, legendgroup=name, hoverinfo="skip")
        figure.add_trace(path.update(opacity=0.35 + 0.45 * share, showlegend=False))
        middles.append((x[_BENDS // 2], y[_BENDS // 2]))
    if middles:
        x, y = (list(values) for values in zip(*middles, strict=True))
        texts = [_path(row) for _, row in paths.iterrows()]
        reach = {"size": 16, "opacity": 0}
        middle = go.Scatter(x=x, y=y, mode="markers", marker=reach, text=texts, hoverinfo="text", name="paths")
        figure.add_trace(middle.update(showlegend=False))


def _bent(start: tuple[float, float], end: tuple[float, float]) -> tuple[list[float], list[float]]:
    """A curve that bulges to one side, so that paths over the same column do not cover each other."""
    (x0, y0), (x1, y1) = start, end
    bulge = 0.018 * abs(y1 - y0) + 0.12
    t = np.linspace(0, 1, _BENDS + 1)
    x = (1 - t) ** 2 * x0 + 2 * (1 - t) * t * ((x0 + x1) / 2 + 2 * bulge) + t**2 * x1
    return [round(float(v), 3) for v in x], [round(float(v), 3) for v in y0 + t * (y1 - y0)]


def _draw_rest(figure: go.Figure, rest: pd.DataFrame, mlps_at: float) -> None:
    if not len(rest):
        return
    x, y = (list(values) for values in zip(*(_place(row, mlps_at) for _, row in rest.iterrows()), strict=True))
    marker = {"size": 3.5, "color": "rgba(128,128,128,0.45)"}
    texts = [_node(row) for _, row in rest.iterrows()]
    look = {"mode": "markers", "marker": marker, "text": texts, "hoverinfo": "text", "showlegend": False}
    figure.add_trace(go.Scatter(x=x, y=y, name="outside the circuit", **look))


def _nodes(
    own: pd.DataFrame, places: dict[str, tuple[float, float]], symbol: str, name: str, limit: float
) -> go.Scatter:
    x, y = (list(values) for values in zip(*(places[str(node)] for node in own["node"]), strict=True))
    sizes = [11 + 13 * min(1.0, abs(float(effect)) / limit) for effect in own["effect"].fillna(0)]
    colours = style.numbers(own["effect"])
    pale = _unconfirmed(own)
    outline = {"width": np.where(pale, 1.2, 1.8).tolist(), "color": np.where(pale, "#b0b0b0", "#222222").tolist()}
    return go.Scatter(
        x=x,
        y=y,
        mode="markers+text",
        name=name,
        marker={
            "symbol": symbol,
            "size": sizes,
            "color": colours,
            "coloraxis": "coloraxis",
            "line": outline,
            "opacity": 1,
        },
        text=[component_name(row) for _, row in own.iterrows()],
        textposition="bottom center" if symbol == "circle" else "middle right",
        textfont={"size": 10},
        hovertext=[_node(row) for _, row in own.iterrows()],
        hoverinfo="text",
    )


def _ends(places: dict[str, tuple[float, float]]) -> go.Scatter:
    x, y = (list(values) for values in zip(places[EMBEDDING], places[LOGITS], strict=True))
    return go.Scatter(
        x=x,
        y=y,
        mode="markers+text",
        marker={"symbol": "diamond", "size": 13, "color": style.NEUTRAL, "line": {"width": 1.2, "color": "#333333"}},
        text=[EMBEDDING, LOGITS],
        textposition=["bottom center", "top center"],
        hovertext=["<b>embedding</b>: where paths begin", "<b>logits</b>: the refusal score"],
        hoverinfo="text",
        name="ends",
        showlegend=False,
    )


def _node(row: pd.Series) -> str:
    return style.hover(
        [
            f"<b>{component_name(row)}</b>",
            f"effect {wording.number(row['effect'], 3, signed=True)}{style.interval(row)}",
            f"metric change {wording.number(row['raw'], 3, signed=True)} nats",
            f"n = {wording.whole(row['n'])} pairs",
            _held_out(row),
            "in the circuit" if row["kept"] else "outside the circuit",
            wording.for_plotly(row.get("reason", "")),
        ]
    )


def _path(row: pd.Series) -> str:
    return style.hover(
        [
            f"<b>{wording.for_plotly(row['sender'])} → {wording.for_plotly(row['receiver'])}</b>",
            f"effect {wording.number(row['effect'], 3, signed=True)}{style.interval(row)}",
            f"metric change {wording.number(row['raw'], 3, signed=True)} nats",
            f"n = {wording.whole(row['n'])} pairs",
            _held_out(row),
        ]
    )


def _unconfirmed(rows: pd.DataFrame) -> pd.Series:
    """Whether held-out pairs were asked, and do not tell a row from nothing."""
    return rows["p"].notna() & ~style.told(rows)


def _held_out(row: pd.Series) -> str:
    if wording.is_missing(row["held_out"]):
        return ""
    effect = f"{wording.number(row['held_out'], 3, signed=True)}{style.interval(row, 'held_out_low', 'held_out_high')}"
    p = "" if wording.is_missing(row["p"]) else f", p {wording.number(row['p'], 3)}"
    return f"on {wording.whole(row['n_held_out'])} held-out pairs {effect}{p}"
