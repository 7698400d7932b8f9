"""Where the carrier is, how sure that is, how it moves: candidates' scores, bootstrap wins, layers over steps."""

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import heatmaps, lines, style
from mechrefusal.statistics.choosing import BEST, PUBLISHED

SCORES = {
    "bypass": ("Bypass", "score"),
    "induce": ("Induce", "score"),
    "kl": ("Divergence (logarithmic colour)", "KL"),
}
_WINNERS = 8


class Placed(Protocol):
    """A `Direction` or a `Carrier`."""

    @property
    def position(self) -> int | None:
        """From the end of the prompt."""

    @property
    def layer(self) -> int | None:
        """Where it was taken."""


def carriers(
    table: pd.DataFrame,
    *,
    score: str = "bypass",
    tokens: Mapping[int, str] | None = None,
    reference: tuple[int, int] | Placed | None = None,
    title: str = "",
) -> go.Figure:
    """Scores of every candidate direction of one checkpoint: x = position, y = layer (Arditi et al. 2024, section 2.3).

    Admissible candidates carry a dot, the winner a star; the hover says why a candidate was rejected, how often it wins
    in bootstraps, and whether it was only screened (scored roughly, and put out of the running).

    Args:
        table: table `carriers` of one checkpoint.
        score: `bypass` (refusal score on harmful prompts under ablation, lower removes refusal), `induce` (refusal
            score on harmless prompts with it put in, higher induces refusal) or `kl` (in nats, colour is logarithmic).
        tokens: token string of each position (from table `directions`).
        reference: a candidate that is not a carrier but stands in for one, or its (position, layer); a white diamond.
        title: by default the name of the score.
    """
    if score not in SCORES:
        raise MechrefusalError(f"unknown score '{score}' of a carrier: expected one of {', '.join(SCORES)}")
    name, unit = SCORES[score]
    table = style.drawable(table, score, f"{score} of carriers")
    grid = heatmaps.values_by_layer(table, "position", score)
    layers, positions = list(grid.index), list(grid.columns)
    rows = {(int(r["layer"]), int(r["position"])): r for _, r in table.iterrows()}
    labels = dict(zip(positions, heatmaps.position_labels(positions, tokens or {}), strict=True))
    texts = [[_candidate(rows.get((layer, p)), labels[p]) for p in positions] for layer in layers]
    values = grid.to_numpy(dtype=float)
    figure = go.Figure(
        go.Heatmap(
            z=_colour(values, score),
            x=list(range(len(positions))),
            y=layers,
            text=texts,
            hoverinfo="text",
            coloraxis="coloraxis",
        )
    )
    axis = _log_axis(values) if score == "kl" else heatmaps.colour_axis([values], 0.0, None, unit)
    figure.update_layout(coloraxis=axis, showlegend=True)
    marked = table.assign(admissible=table["admissible"].fillna(False).astype(bool))
    plain = marked[marked["admissible"] & ~marked["winner"]]
    _mark(figure, plain, positions, "admissible", {"symbol": "circle", "size": 5})
    _mark(figure, marked[marked["winner"]], positions, "carrier", {"symbol": "star", "size": 14})
    if reference is not None:
        position, layer = reference if isinstance(reference, tuple) else (reference.position, reference.layer)
        there = marked[(marked["position"] == position) & (marked["layer"] == layer)]
        _mark(figure, there, positions, f"no carrier: {BEST}", {"symbol": "diamond", "size": 12})
    ticks = [labels[p] for p in positions]
    figure.update_xaxes(tickvals=list(range(len(ticks))), ticktext=ticks, tickangle=heatmaps.tick_angle(ticks))
    figure.update_xaxes(title="position in the prompt (last = −1)", showgrid=False, zeroline=False)
    half = min(np.diff(layers), default=1) / 2
    figure.update_yaxes(title="layer", showgrid=False, zeroline=False, range=[layers[0] - half, layers[-1] + half])
    counted = [f"{len(table)} candidates", f"{int(marked['admissible'].sum())} admissible"]
    screened = int((~table["exact"]).sum()) if "exact" in table else 0
    counted += [f"{screened} only screened"] if screened else []
    return style.finish(
        figure, title=title or name, subtitle=", ".join(counted), height=heatmaps.height_of(len(layers))
    )


def carrier_wins(
    table: pd.DataFrame, carrier: pd.DataFrame | None = None, *, tokens: Mapping[int, str] | None = None
) -> go.Figure:
    """How often each candidate wins when the validation prompts are drawn again: share of bootstraps, most at the top.

    Args:
        table: table `carriers` of one checkpoint, with `win_frequency`.
        carrier: table `carrier`, for the share of bootstraps with no admissible candidate.
        tokens: token string of each position.
    """
    rows = style.drawable(table, "win_frequency", "how often candidates win")
    rows = rows.sort_values(["win_frequency", "winner"], ascending=False, kind="stable")
    shown = rows[(rows["win_frequency"] > 0) | rows["winner"]].head(_WINNERS)
    bars = [
        (_place(r, tokens or {}), float(r["win_frequency"]), style.POSITIVE if r["winner"] else style.NEGATIVE)
        for _, r in shown.dropna(subset=["win_frequency"]).iterrows()
    ]
    rest = float(rows.drop(shown.index)["win_frequency"].sum())
    if rest > 0:
        bars.append(("all others", rest, style.NEGATIVE))
    first = carrier.iloc[0] if carrier is not None and len(carrier) else pd.Series(dtype=object)
    if not wording.is_missing(first.get("none_frequency")):
        bars.append(("none admissible", float(first["none_frequency"]), style.NEUTRAL))
    places = list(range(len(bars)))[::-1]
    figure = go.Figure(
        go.Bar(
            x=[value for _, value, _ in bars],
            y=places,
            orientation="h",
            marker={"color": [colour for _, _, colour in bars]},
            text=[wording.percent(value) for _, value, _ in bars],
            textposition="outside",
            hovertext=[f"{name}: {wording.number(value, 3)} of bootstraps" for name, value, _ in bars],
            hoverinfo="text",
        )
    )
    figure.update_xaxes(title="share of bootstraps", range=[0, 1.12], tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure.update_yaxes(tickvals=places, ticktext=[name for name, _, _ in bars], showgrid=False)
    n = first.get("n_bootstrap")
    drawn = "" if wording.is_missing(n) else f"{wording.whole(n)} bootstraps of the validation prompts; "
    return style.finish(
        figure, title="How often a candidate wins", subtitle=f"{drawn}red: the carrier", height=150 + 28 * len(bars)
    )


def carrier_layers(table: pd.DataFrame, *, n_layers: int | None = None) -> go.Figure:
    """Layer of the carrier over optimiser steps (table `carrier`); checkpoints without one stand on the line "none".

    Bars: 95% bootstrap interval of the layer, where it was taken.

    Args:
        n_layers: depth of the model; the published limit of admissible layers is then drawn (Arditi et al. 2024).
    """
    rows = table.assign(layer=table["layer"].astype(float), placed=0.0)
    none = -max(1.0, 0.07 * (n_layers or float(rows["layer"].max() if rows["layer"].notna().any() else 10)))
    rows["placed"] = rows["layer"].fillna(none)
    rows = style.drawable(rows, "placed", "the layer of the carrier")
    names = style.arms(rows)
    figure = go.Figure()
    for place, arm in enumerate(names):
        own = style.with_base(rows, arm)
        colour, symbol = style.arm_style(arm, names)
        shift = lines.beside(rows, place, len(names))
        shared = {
            "x": [step + shift for step in own["step"]],
            "legendgroup": arm,
            "name": wording.for_plotly(arm),
            "hoverinfo": "text",
        }
        texts = [_carrier(row) for _, row in own.iterrows()]
        line, marker = {"color": colour, "width": 2}, {"color": colour, "symbol": symbol, "size": 9}
        figure.add_trace(
            go.Scatter(
                y=style.numbers(own["layer"]),
                error_y=style.error_bars(own, "layer", "layer_low", "layer_high"),
                mode="lines+markers",
                line=line,
                marker=marker,
                text=texts,
                **shared,
            )
        )
        if own["layer"].isna().any():
            absent = [none if pd.isna(layer) else None for layer in own["layer"]]
            cross = {"symbol": "x-thin", "size": 9, "line": {"color": colour, "width": 2}}
            figure.add_trace(go.Scatter(y=absent, mode="markers", marker=cross, text=texts, showlegend=False, **shared))
    top = n_layers or int(rows["layer"].max() if rows["layer"].notna().any() else 10) + 1
    lines.step_axes(figure, rows, "layer of the carrier", (none * 1.6, top))
    step = max(1, math.ceil(top / 6))
    ticks = list(range(0, top, step))
    figure.update_yaxes(tickvals=[none, *ticks], ticktext=["none", *map(str, ticks)], zeroline=False)
    if n_layers:
        bound = len(PUBLISHED.layers(n_layers))
        figure.add_hline(y=bound - 0.5, line={"dash": "dot", "width": 1, "color": style.AXIS})
    subtitle = f"admissible below layer {bound} (dotted)" if n_layers else ""
    return style.finish(figure, title="Where the carrier stands", subtitle=subtitle, height=340)


def _candidate(row: pd.Series | None, label: str) -> str:
    if row is None:
        return f"{label}<br>not scored"
    wins, halves = row.get("win_frequency"), row.get("half_wins")
    allowed = not wording.is_missing(row["admissible"]) and row["admissible"]
    state = "the carrier" if row["winner"] else "admissible" if allowed else "rejected"
    reason = wording.for_plotly(row.get("rejected_because", ""))
    return style.hover(
        [
            f"<b>layer {int(row['layer'])}, {label}</b>",
            *(f"{name} {wording.number(row[name], 3)}" for name in SCORES),
            f"{state}: {reason}" if reason else state,
            "only screened: rough scores, cannot be the carrier" if not row.get("exact", True) else "",
            _under_zero(row),
            "" if wording.is_missing(wins) else f"wins {wording.percent(wins)} of bootstraps",
            "" if wording.is_missing(halves) else f"chosen by {int(halves)} of 2 halves of the direction prompts",
        ]
    )


def _under_zero(row: pd.Series) -> str:
    """The scores of the same candidate as Arditi et al. publish; empty where they were not taken."""
    known = [(name, row.get(f"{name}_zero")) for name in SCORES]
    if all(wording.is_missing(value) for _, value in known):
        return ""
    scores = ", ".join(f"{name} {wording.number(value, 3)}" for name, value in known)
    allowed = row.get("admissible_zero")
    state = "" if wording.is_missing(allowed) else f"; {'admissible' if allowed else 'not admissible'} so"
    return f"to zero: {scores}{state}"


def _mark(figure: go.Figure, rows: pd.DataFrame, positions: list[int], name: str, marker: dict) -> None:
    if not len(rows):
        return
    x = [positions.index(int(p)) for p in rows["position"]]
    inside, edge = ("#ffffff", "#111111") if marker["symbol"] == "diamond" else ("#111111", "#ffffff")
    marker = {**marker, "color": inside, "line": {"width": 1.2 if inside == "#111111" else 2.5, "color": edge}}
    figure.add_trace(
        go.Scatter(x=x, y=list(rows["layer"].astype(int)), mode="markers", name=name, marker=marker, hoverinfo="skip")
    )


def _place(row: pd.Series, tokens: Mapping[int, str]) -> str:
    return f"layer {int(row['layer'])}, {heatmaps.position_labels([int(row['position'])], tokens)[0]}"


def _carrier(row: pd.Series) -> str:
    head = f"<b>{wording.for_plotly(row['arm'])}, step {int(row['step'])}</b>"
    if pd.isna(row["layer"]):
        return style.hover([head, wording.for_plotly(row.get("reason", "")) or "no carrier"])
    token = wording.for_plotly(wording.token(row["token"]))
    where = f"layer {int(row['layer'])}, position {wording.whole(row['position'])} {token}"
    sure = f"layer of bootstraps {row['layer_low']} to {row['layer_high']} (95%)"
    often = f"wins {wording.percent(row['win_frequency'])} of bootstraps"
    scores = [f"{name} {wording.number(row[name], 3)}" for name in SCORES]
    return style.hover([head, where, sure, often, *scores])


def _colour(values: np.ndarray, score: str) -> np.ndarray:
    if score != "kl":
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(np.clip(values, 1e-4, None))


def _log_axis(values: np.ndarray) -> dict:
    top = max(0.0, math.ceil(math.log10(max(float(np.nanmax(values)), 1e-4))))
    powers = list(range(-4, int(top) + 1))
    names = {-4: "≤ 0.0001", -3: "0.001", -2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100"}
    bar = {"title": {"text": "KL (nats)"}, "tickvals": powers, "ticktext": [names.get(p, f"1e{p}") for p in powers]}
    return {"colorscale": style.SEQUENTIAL, "cmin": -4, "cmax": top, "colorbar": bar}
