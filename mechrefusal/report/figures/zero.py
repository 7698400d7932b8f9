"""Where zero lies along the direction: between the harmless and the harmful mean, or far from both."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.order import checkpoint_order
from mechrefusal.statistics.choosing import BEST, CARRIER
from mechrefusal.study.table_rows import best_place, carrier_place

_MEANS = {0: "harmless mean", 1: "harmful mean"}
_FAR = 3.0
"""Directions are next to nothing in the first layers, and zero then infinitely far: what is so many times the spread of
the middle 90% away is out of the picture."""


def zero_distances(directions: pd.DataFrame, carrier: pd.DataFrame | None = None) -> go.Figure:
    """Where zero lies along the direction of each layer: a line a checkpoint, 0 the harmless mean, 1 the harmful one.

    At the position of the carrier, or of the best candidate in its place (marked at its layer); at the last position
    where there is neither. Colour is the arm; dashes and lighter lines tell its checkpoints apart, the last is solid.

    Args:
        directions: table `directions` of one or several checkpoints, with `zero_distance`.
        carrier: table `carrier` of the same.
    """
    rows = style.drawable(directions, "zero_distance", "where zero lies along the directions")
    found_at = {(str(arm), int(step)) for arm, step in zip(rows["arm"], rows["step"], strict=True)}
    keys = sorted(found_at, key=checkpoint_order)
    names, figure = style.arms(rows), go.Figure()
    drawn: list[pd.Series] = []
    for key in keys:
        own = rows[(rows["arm"] == key[0]) & (rows["step"] == key[1])]
        place = _place(carrier, key)
        position = int(own["position"].max()) if place is None else place[0]
        own = own[(own["position"] == position) & own["zero_distance"].notna()].sort_values("layer")
        if len(own):
            drawn.append(own["zero_distance"])
            _add(figure, own, key, keys, names, place)
    low, high = _limits(pd.concat(drawn)) if drawn else (0.0, 1.0)
    far = sum(int(((values < low) | (values > high)).sum()) for values in drawn)
    for value, name in _MEANS.items():
        line = {"width": 1.4, "dash": "dash", "color": style.WHISKER}
        at = {"text": name, "x": 1, "xanchor": "right", "showarrow": False, "font": {"size": 11}}
        figure.add_hline(
            y=value, line=line, annotation=at, annotation_position="top right" if value else "bottom right"
        )
    figure.update_xaxes(title="layer", dtick=max(1, len(set(rows["layer"])) // 10))
    figure.update_yaxes(title="distance of zero<br>(harmless to harmful mean = 1)", range=[low, high], zeroline=False)
    figure.update_layout(showlegend=True, legend={"y": -0.2, "yanchor": "top"})
    note = f"; {far} values out of the picture" if far else ""
    return style.finish(
        figure, title="Where zero lies along the direction", subtitle=f"star: the carrier's layer{note}", height=430
    )


def _add(
    figure: go.Figure,
    own: pd.DataFrame,
    key: tuple[str, int],
    keys: list[tuple[str, int]],
    names: list[str],
    place: tuple[int, int, str] | None,
) -> None:
    colour, _ = style.arm_style(key[0], names)
    steps = [step for arm, step in keys if arm == key[0]]
    rank = len(steps) - 1 - steps.index(key[1])
    label = wording.for_plotly(f"{wording.shortened(key[0], 16)} {key[1]}")
    look = {"legendgroup": label, "hoverinfo": "text", "opacity": max(0.45, 1 - 0.18 * rank)}
    line = {"color": colour, "width": 2, "dash": style.DASHES[rank % len(style.DASHES)]}
    texts = [_hover(row, label, place) for _, row in own.iterrows()]
    values = style.numbers(own["zero_distance"])
    trace = go.Scatter(x=list(own["layer"].astype(int)), y=values, mode="lines+markers", name=label, line=line)
    figure.add_trace(trace.update(text=texts, marker={"color": colour, "size": 4}, **look))
    there = own[own["layer"] == place[1]] if place else own.iloc[:0]
    if len(there):
        symbol = "star" if place and place[2] == "carrier" else "star-open"
        marker = {"color": colour, "symbol": symbol, "size": 13, "line": {"width": 1, "color": colour}}
        text = [_hover(there.iloc[0], label, place)]
        star = go.Scatter(x=[place[1]] if place else [], y=style.numbers(there["zero_distance"]), mode="markers")
        figure.add_trace(star.update(text=text, marker=marker, showlegend=False, **{**look, "opacity": 1}))


def _hover(row: pd.Series, label: str, place: tuple[int, int, str] | None) -> str:
    here = place is not None and int(row["layer"]) == place[1]
    token = wording.for_plotly(wording.token(row.get("token")))
    return style.hover(
        [
            f"<b>{label}, layer {int(row['layer'])}</b>",
            f"zero at {wording.number(row['zero_distance'], 3)}",
            f"position {wording.whole(row['position'])} {token}",
            f"norm of the direction {wording.number(row.get('norm'), 3)}",
            f"the {place[2]}'s layer" if here and place else "",
        ]
    )


def _place(carrier: pd.DataFrame | None, key: tuple[str, int]) -> tuple[int, int, str] | None:
    """(position, layer, kind) of the carrier or of what stands in for it; None where there is neither."""
    if carrier is None or not len(carrier):
        return None
    own = carrier[(carrier["arm"] == key[0]) & (carrier["step"] == key[1])]
    if not len(own):
        return None
    for kind, place_of in ((CARRIER, carrier_place), (BEST, best_place)):
        if (place := place_of(own.iloc[0])) is not None:
            return *place, kind
    return None


def _limits(values: pd.Series) -> tuple[float, float]:
    """The range of the values and of both means, without those that are out of all proportion."""
    low, high = min(float(values.quantile(0.05)), 0.0), max(float(values.quantile(0.95)), 1.0)
    reach = _FAR * (high - low)
    near = values[(values > low - reach) & (values < high + reach)]
    low, high = min(float(near.min()), 0.0), max(float(near.max()), 1.0)
    room = 0.06 * (high - low)
    return low - room, high + room
