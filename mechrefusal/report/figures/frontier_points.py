"""Robustness against what it costs: attack success against over-refusal or utility, with where refusal lives."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import style, suites
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import word, words
from mechrefusal.report.figures.style import Look
from mechrefusal.report.order import BASE, SHARED

SUCCESS = "attack_success"
COSTS = {"refusal": "any_refusal", "answered": "answered"}
"""Metrics of what robustness costs on harmless prompts."""
_CORNERS = {"refusal": "lower left", "answered": "lower right"}
_STAR, _GREY = "star", "#b9b9b9"
_SCALE = sample_colorscale("Viridis", [0.18 + 0.074 * i for i in range(11)])
"""Cividis has a grey in its middle, which means something else here; the ends would vanish on a light or dark page."""
_NUMBERS = ("value", "low", "high", "n", "nulls")


def frontier(
    rates: pd.DataFrame,
    carrier: pd.DataFrame | None = None,
    *,
    harmful: str,
    harmless: str,
    attack: str = "none",
    against: str = "refusal",
    judge: str | None = None,
    success_judge: str | None = None,
    stress: pd.DataFrame | None = None,
    n_layers: int | None = None,
    twins: Sequence[tuple[str, str]] = (),
    title: str | None = None,
) -> go.Figure:
    """Attack success (y) against a cost on harmless prompts (x): all anchors and arms, with 95% intervals both ways.

    Colour: layer of the carrier. Open: there is no carrier, the colour is that of the best candidate. Grey: neither.

        figures.frontier(found.rates, carrier, harmful="harmbench", harmless="xstest", attack="gcg")
        figures.frontier(rates, carrier, harmful="evaluation_harmful", harmless="overrefusal")

    Args:
        rates: table `rates`.
        harmful, harmless: suites: benchmarks, or the study's own (`evaluation_harmful`, `overrefusal`, `utility`).
        carrier: table `carrier` of the checkpoints; without it every marker is grey.
        attack: on the harmful prompts; `none` for the bare request.
        against: `refusal` (any refusal; low is good) or `answered` (high is good).
        judge: the judge of refusal; by default the first by name.
        success_judge: of attack success; by default `judge` where it has that rate.
        stress: table `stress`: y is then its success at the last step of method `attack`, by checkpoint.
        twins: pairs of arms, whose last checkpoints are joined by a dotted line: an arm, and the same with a guide.
        n_layers: of the model; colours then span its depth instead of the layers that were found.

    Raises:
        MechrefusalError: an unknown `against`, or no checkpoint has both rates.
    """
    if against not in COSTS:
        raise MechrefusalError(f"unknown cost '{against}' of a frontier: expected one of {', '.join(COSTS)}")
    cost_of = {"suite": harmless, "side": "harmless", "metric": COSTS[against], "attack": "none"}
    cost = _rates(rates, judge, kind="refusal", **cost_of)
    first_judge = str(cost["judge"].iloc[0])
    if stress is None:
        success_of = {"suite": harmful, "side": "harmful", "metric": SUCCESS, "attack": attack}
        success = _rates(rates, success_judge, first_judge, **success_of)
    else:
        success = _last(stress, attack, success_judge, first_judge)
    points = success.merge(cost, on=["arm", "step"], suffixes=("_y", "_x"))
    if not len(points):
        of = ((SUCCESS, harmful), (COSTS[against], harmless))
        both = " and ".join(f"{wording.metric_name(name)} on '{wording.shortened(suite)}'" for name, suite in of)
        raise MechrefusalError(f"cannot draw the frontier: no checkpoint has both {both}")
    left_out = len(success.merge(cost, on=["arm", "step"], how="outer")) - len(points)
    points = _with_layers(points, carrier)
    names, canvas = style.arms(points), Canvas("frontier")
    for place, arm in enumerate(names):
        colour, symbol = style.arm_style(arm, names)
        joined = style.with_base(points, arm)
        line: Look = {"mode": "lines", "colour": colour, "width": 1.6, "interval": "none", "hover": []}
        canvas.line(joined, "value_x", "value_y", arm, **line)
        canvas.figure.data[-1].update(legendgroup=arm, showlegend=False)
        if arm != BASE:
            _add_points(canvas, points[points["arm"] == arm], symbol, colour, arm, "bottom" if place % 2 else "top")
    _add_twins(canvas, points, twins)
    base = points[points["arm"] == BASE]
    _add_points(canvas, base, _STAR, style.NEUTRAL, BASE, "top")
    _add_legend(canvas, points, names)
    known = points["layer"].dropna()
    if len(known):
        low, high = (0.0, float(n_layers - 1)) if n_layers else (float(known.min()), float(known.max()))
        axis = {"cmin": low, "cmax": max(high, low + 1), "colorbar": {"title": {"text": "layer"}, "tickformat": "d"}}
        canvas.figure.update_layout(coloraxis={"colorscale": _SCALE, **axis})
    pressed = "" if attack == "none" else f", {attack}"
    harmful_name = wording.token(wording.set_name(harmful), 30) + pressed + ("" if stress is None else ", last step")
    cost_name, harmless_name = word("metric", COSTS[against]), wording.token(wording.set_name(harmless), 30)
    shown, harmful_name = (wording.for_plotly(wording.shortened(name, 44)) for name in (harmless_name, harmful_name))
    canvas.x(title=f"{cost_name}<br>{shown}", range=[-0.04, 1.04], zeroline=False)
    canvas.y(title=f"attack success<br>{harmful_name}", range=[-0.04, 1.04], zeroline=False)
    names = [wording.for_plotly(wording.shortened(rows["judge"].iloc[0])) for rows in (success, cost)]
    judges = f"judge: {names[0]}" if names[0] == names[1] else f"judge of success: {names[0]}, of refusal: {names[1]}"
    missing = f"{left_out} checkpoints have one of the rates only" if left_out else ""
    best = f"best: {_CORNERS[against]}"
    return canvas.finish(judges, best, missing, title=title or "", against=word("cost", against))


def _rates(table: pd.DataFrame, judge: str | None, preferred: str | None = None, **wanted: str) -> pd.DataFrame:
    """One row a checkpoint that has a value, of one judge: rates with the wanted suite, side, metric and attack."""
    rows = _one_a_checkpoint(suites.of(table, intervention="none", by="all", **wanted), judge, preferred)
    if rows["value"].notna().any():
        return rows[rows["value"].notna()]
    metric, suite, attack = (wanted[name] for name in ("metric", "suite", "attack"))
    raise MechrefusalError(
        f"cannot draw the frontier: no checkpoint has {wording.metric_name(metric)} on '{wording.shortened(suite)}'"
        + (f" under attack '{wording.shortened(attack)}'" if attack != "none" else "")
        + (f" by judge '{wording.shortened(judge)}'" if judge else "")
    )


def _last(table: pd.DataFrame, method: str, judge: str | None, preferred: str | None) -> pd.DataFrame:
    """Success at the last step of an attack that was made anew against each checkpoint."""
    rows = suites.readable(suites.of(table, method=method), *_NUMBERS, "attack_step")
    rows = rows[rows["value"].notna() & rows["attack_step"].notna()].sort_values("attack_step", ascending=False)
    if not len(rows := _one_a_checkpoint(rows, judge, preferred)):
        name = wording.shortened(method)
        raise MechrefusalError(f"cannot draw the frontier: table 'stress' has no value of '{name}'")
    return rows


def _one_a_checkpoint(rows: pd.DataFrame, judge: str | None, preferred: str | None) -> pd.DataFrame:
    chosen = judge if judge is not None else preferred if preferred in set(suites.texts(rows["judge"])) else None
    rows = suites.readable(suites.of_judge(rows, chosen), *_NUMBERS).drop_duplicates(["arm", "step"])
    return rows[["arm", "step", "judge", *(name for name in _NUMBERS if name in rows)]]


def _with_layers(points: pd.DataFrame, carrier: pd.DataFrame | None) -> pd.DataFrame:
    """Points with the `layer` that colours them, its `kind` (carrier, reference or none) and what the hover says."""
    columns = ["layer", "layer_low", "layer_high", "reference_layer"]
    table = pd.DataFrame(columns=["arm", "step"]) if carrier is None else carrier
    known = suites.readable(table.reindex(columns=["arm", "step", *columns]), *columns)
    rows = points.merge(known, on=["arm", "step"], how="left", indicator="measured")
    kind = pd.Series("none", rows.index).mask(rows["reference_layer"].notna(), "reference")
    kind = kind.mask(rows["layer"].notna(), "carrier")
    kind_words = kind.map(words("layer_of")).mask(rows["measured"] == "left_only", "no carrier was measured")
    return rows.assign(layer=rows["layer"].fillna(rows["reference_layer"]), kind=kind, where=kind_words)


def _add_points(canvas: Canvas, points: pd.DataFrame, symbol: str, colour: str, arm: str, place: str) -> None:
    """Markers of one arm with bars both ways: filled, open and grey ones are three traces, as each has its colours."""
    size, bars = 15 if symbol == _STAR else 13, {"color": style.translucent(colour, 0.55), "thickness": 1.2, "width": 2}
    looks: dict[str, dict[str, Any]] = {
        "carrier": {"symbol": symbol, "line": {"width": 1.6, "color": colour}},
        "reference": {"symbol": f"{symbol}-open", "line": {"width": 3}},
        "none": {"symbol": symbol, "line": {"width": 1.6, "color": colour}, "color": _GREY},
    }
    for kind, look in looks.items():
        subset = points[points["kind"] == kind]
        if not len(subset):
            continue
        coloured = {} if kind == "none" else {"color": list(subset["layer"]), "coloraxis": "coloraxis"}
        trace = go.Scatter(
            x=style.numbers(subset["value_x"]),
            y=style.numbers(subset["value_y"]),
            error_x=style.error_bars(subset, "value_x", "low_x", "high_x", **bars),
            error_y=style.error_bars(subset, "value_y", "low_y", "high_y", **bars),
            mode="markers+text",
            text=[arm if arm in SHARED else str(step) for step in subset["step"]],
            textposition=[f"{place} {'left' if x > 0.6 else 'right'}" for x in subset["value_x"]],
            textfont={"size": 11},
            marker={"size": size} | look | coloured,
            hovertext=canvas.hovers(subset),
            hoverinfo="text",
            legendgroup=arm,
            showlegend=False,
            cliponaxis=False,
        )
        canvas.add(trace)


def _add_twins(canvas: Canvas, points: pd.DataFrame, twins: Sequence[tuple[str, str]]) -> None:
    """Dotted lines from the last checkpoint of an arm to that of its twin."""
    last = points.sort_values("step").drop_duplicates("arm", keep="last").set_index("arm")
    for pair in (list(pair) for pair in twins if set(pair) <= set(last.index)):
        look: Look = {"mode": "lines", "colour": style.NEUTRAL, "width": 1.4, "dash": "dot"}
        name = "arm and its twin with a guide"
        canvas.line(last.loc[pair], "value_x", "value_y", name, interval="none", hover=[], **look)


def _add_legend(canvas: Canvas, points: pd.DataFrame, names: list[str]) -> None:
    """Entries without points: the colours of markers are layers, those of arms are their lines."""
    entries = [
        (wording.for_plotly(wording.shortened(arm, 24)), arm, *style.arm_style(arm, names), "lines+markers")
        for arm in names
        if arm != BASE
    ]
    entries += [(BASE, BASE, style.NEUTRAL, _STAR, "markers")] if (points["arm"] == BASE).any() else []
    kinds = set(points["kind"])
    entries += [("open: best candidate", "", style.NEUTRAL, "circle-open", "markers")] if "reference" in kinds else []
    entries += [("grey: no layer", "", _GREY, "circle", "markers")] if "none" in kinds else []
    for name, group, colour, symbol, mode in entries:
        marker = {"color": colour, "symbol": symbol, "size": 9}
        look: Look = {"mode": mode, "line": {"color": colour}, "marker": marker, "legendgroup": group or name}
        canvas.add(go.Scatter(x=[None], y=[None], name=name, hoverinfo="skip", showlegend=True, **look))
