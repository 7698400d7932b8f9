"""Where the carrier is, how sure that is, how it moves: candidates' scores, bootstrap wins, layers over steps."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import axes, style
from mechrefusal.report.figures.axes import largest, map_height
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import position_name
from mechrefusal.report.figures.style import POINTS, Look
from mechrefusal.statistics.choosing import BEST, PUBLISHED

CARRIER_SCORES = ("bypass", "induce", "kl")
_WINNERS = 8
_LEAST_KL = 1e-4
_WHITE: Look = {"color": "#ffffff", "line": {"color": "#111111", "width": 2.5}}


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

    Args:
        table: table `carriers` of one checkpoint.
        score: `bypass` (refusal score on harmful prompts under ablation, lower removes refusal), `induce` (refusal
            score on harmless prompts with it put in, higher induces refusal) or `kl` (in nats, colour is logarithmic).
        tokens: token string of each position (from table `directions`).
        reference: a candidate that is not a carrier but stands in for one, or its (position, layer); a white diamond.
    """
    if score not in CARRIER_SCORES:
        raise MechrefusalError(f"unknown score '{score}' of a carrier: expected one of {', '.join(CARRIER_SCORES)}")
    rows = _candidates(style.drawable(table, score, f"{score} of carriers"), tokens or {})
    shown = np.log10(rows[score].astype(float).clip(lower=_LEAST_KL)) if score == "kl" else rows[score]
    canvas, down, across = Canvas("carriers"), axes.numbers(rows["layer"]), axes.positions(rows["position"], tokens)
    cells = canvas.matrix(rows.assign(shown=shown), "shown", down, across)
    heading, unit = canvas.entry.panels[score]
    canvas.colours(unit, limit=None if score == "kl" else largest([cells]))
    if score == "kl":
        canvas.figure.update_layout(coloraxis=_log_axis(float(np.nanmax(cells))))
    canvas.marks(rows["allowed"] & ~rows["winner"], down, across, "admissible")
    canvas.marks(rows["winner"], down, across, "carrier", symbol="star", size=14)
    if reference is not None:
        place = reference if isinstance(reference, tuple) else (reference.position, reference.layer)
        best = (rows["position"] == place[0]) & (rows["layer"] == place[1])
        canvas.marks(best, down, across, f"no carrier: {BEST}", symbol="diamond", size=12, **_WHITE)
    screened = int((~table["exact"].astype(bool)).sum()) if "exact" in table else 0
    counted = f"{len(rows)} candidates, {int(rows['allowed'].sum())} admissible"
    counted += f", {screened} only screened" if screened else ""
    look: Look = {"title": title, "unit": unit, "height": map_height(len(down.order)) + 150}
    return canvas.finish(counted, score=heading, **look)


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
    bars = []
    for row in shown.dropna(subset=["win_frequency"]).itertuples():
        name = f"layer {row.layer}, {position_name(row.position, (tokens or {}).get(row.position))}"
        bars.append((name, row.win_frequency, style.POSITIVE if row.winner else style.NEGATIVE))
    if (others := float(rows.drop(shown.index)["win_frequency"].sum())) > 0:
        bars.append(("all others", others, style.NEGATIVE))
    first: Any = carrier.iloc[0] if carrier is not None and len(carrier) else {}
    if not wording.is_missing(first.get("none_frequency")):
        bars.append(("none admissible", float(first["none_frequency"]), style.NEUTRAL))
    shares = pd.DataFrame(bars, columns=["name", "share", "colour"]).assign(place=range(len(bars)))
    canvas = Canvas("carrier_wins")
    written = [wording.percent(share) for share in shares["share"]]
    colours = list(shares["colour"])
    canvas.bars(shares, "share", "place", colour=colours, ends=None, written=written, textposition="outside")
    canvas.x(range=[0, 1.12], tickvals=[0, 0.25, 0.5, 0.75, 1])
    canvas.categories(list(shares["name"]))
    n = wording.counts([first.get("n_bootstrap")], "bootstraps of the validation prompts")
    return canvas.finish(n, "red: the carrier", height=150 + 28 * len(bars))


def carrier_layers(table: pd.DataFrame, *, n_layers: int | None = None) -> go.Figure:
    """Layer of the carrier over optimiser steps (table `carrier`); checkpoints without one stand on the line "none".

    Args:
        n_layers: depth of the model; the published limit of admissible layers is then drawn (Arditi et al. 2024).
    """
    canvas = Canvas("carrier_layers")
    style.drawable(table.assign(drawn=1.0), "drawn", "the layer of the carrier")
    add_carrier_layers(canvas, table, n_layers=n_layers)
    limit = f"admissible below layer {len(PUBLISHED.layers(n_layers))} (dotted)" if n_layers else ""
    return canvas.finish(limit)


def add_carrier_layers(canvas: Canvas, table: pd.DataFrame, *, n_layers: int | None, panel: int = 0) -> None:
    """Draw the layer of the carrier over steps into a panel: a line an arm, crosses where there is none."""
    rows = table.assign(layer=table["layer"].astype(float))
    deepest = int(rows["layer"].max()) if rows["layer"].notna().any() else 10
    top = n_layers or deepest + 1
    none = -max(1.0, 0.07 * (n_layers or deepest))
    why = rows["reason"].where(rows["reason"] != "", "no carrier") if "reason" in rows else "no carrier"
    rows = rows.assign(none=none, why=pd.Series(why, rows.index).where(rows["layer"].isna(), ""))
    for arm, subset, look in style.each_arm(rows):
        look |= {"panel": panel, "size": 9}
        canvas.line(subset, "step", "layer", arm, interval="bars", ends=("layer_low", "layer_high"), **look)
        canvas.line(subset[subset["layer"].isna()], "step", "none", arm, **look | POINTS | {"symbol": "x-thin-open"})
    ticks = list(range(0, top, max(1, math.ceil(top / 6))))
    canvas.steps(rows["step"], panel)
    labels: Look = {"tickvals": [none, *ticks], "ticktext": ["none", *map(str, ticks)]}
    canvas.y(panel, range=[none * 1.6, top], zeroline=False, **labels)
    if n_layers:
        canvas.rule(y=len(PUBLISHED.layers(n_layers)) - 0.5, panel=panel, dash="dot")


def _candidates(rows: pd.DataFrame, tokens: Mapping[int, str]) -> pd.DataFrame:
    """Rows with what their hover says: the token, and whether the candidate may be the carrier."""
    allowed, winner = (rows[name].fillna(False).astype(bool) for name in ("admissible", "winner"))
    state = allowed.map({True: "admissible", False: "rejected"}).where(~winner, "the carrier")
    screened = ~rows["exact"].fillna(True).astype(bool) if "exact" in rows else pd.Series(False, rows.index)
    note = screened.map({True: "only screened: rough scores, cannot be the carrier", False: ""})
    words = {True: "; admissible so", False: "; not admissible so"}
    zero = rows["admissible_zero"].map(words) if "admissible_zero" in rows else ""
    token = rows["position"].map(tokens)
    return rows.assign(allowed=allowed, winner=winner, state=state, note=note, zero_state=zero, token=token)


def _log_axis(top: float) -> dict[str, Any]:
    powers = list(range(-4, int(max(0.0, math.ceil(top))) + 1))
    names = {-4: "≤ 0.0001", -3: "0.001", -2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100"}
    ticks = {"tickvals": powers, "ticktext": [names.get(power, f"1e{power}") for power in powers]}
    return {"cmin": -4, "cmax": powers[-1], "colorbar": ticks}
