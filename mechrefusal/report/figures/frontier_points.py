"""Robustness against what it costs: attack success against over-refusal or utility, with where refusal lives."""

from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import style, suites
from mechrefusal.report.order import BASE, SHARED

SUCCESS = "attack_success"
COSTS = {"refusal": "any_refusal", "answered": "answered"}
"""Metrics of what robustness costs on harmless prompts."""

_CORNERS = {"refusal": "lower left", "answered": "lower right"}
_BASE_SYMBOL = "star"
_SCALE = sample_colorscale("Viridis", [0.18 + 0.074 * i for i in range(11)])
"""Cividis has a grey in its middle, which means something else here; the ends would vanish on a light or dark page."""


class _Layer(NamedTuple):
    """Layer that a marker's colour shows, what it is of (carrier, reference or none), and the hover's words."""

    value: float
    kind: str
    words: str


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
    title: str | None = None,
) -> go.Figure:
    """Attack success (y) against a cost on harmless prompts (x): all anchors and arms, with 95% intervals both ways.

    One symbol an arm, its anchors joined in order from the base model (star) or the end of the shared warm-up, the
    step beside each. Colour: layer of the carrier. Open: there is no carrier, the colour is that of the best candidate.
    Grey: neither was found.

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
        n_layers: of the model; colours then span its depth instead of the layers that were found.

    Raises:
        MechrefusalError: an unknown `against`, or no checkpoint has both rates.
    """
    if against not in COSTS:
        raise MechrefusalError(f"unknown cost '{against}' of a frontier: expected one of {', '.join(COSTS)}")
    cost = _rates(rates, harmless, "harmless", COSTS[against], "none", judge)
    own_judge = str(cost["judge"].iloc[0])
    if stress is None:
        success = _rates(rates, harmful, "harmful", SUCCESS, attack, success_judge, preferred=own_judge)
    else:
        success = _last(stress, attack, success_judge, preferred=own_judge)
    points = success.merge(cost, on=["arm", "step"], suffixes=("_y", "_x"))
    if not len(points):
        rates_of = [(SUCCESS, harmful), (COSTS[against], harmless)]
        both = " and ".join(f"{wording.metric_name(name)} on '{wording.shortened(of)}'" for name, of in rates_of)
        raise MechrefusalError(f"cannot draw the frontier: no checkpoint has both {both}")
    left_out = len({*_keys(success), *_keys(cost)}) - len(points)
    layers = _layers(carrier)
    points["layer"] = [
        layers.get(key, _Layer(float("nan"), "none", "no carrier was measured")) for key in _keys(points)
    ]
    names, figure = style.arms(points), go.Figure()
    for place, arm in enumerate(names):
        _add_arm(figure, points, arm, names, "bottom" if place % 2 else "top")
    if (points["arm"] == BASE).any():
        _add_points(figure, points[points["arm"] == BASE], _BASE_SYMBOL, style.NEUTRAL, BASE, "top")
    _legend(figure, points, names)
    _axes(figure, points, n_layers)
    pressed = "" if attack == "none" else f", {attack}"
    asked = "" if stress is None else ", last step"
    figure.update_xaxes(title=f"{wording.metric_name(COSTS[against])}<br>{_name(_set(harmless))}")
    figure.update_yaxes(title=f"attack success<br>{_name(f'{_set(harmful)}{pressed}{asked}')}")
    notes = [_judges(success, cost), f"best: {_CORNERS[against]}"]
    notes += [f"{left_out} checkpoints have one of the rates only"] if left_out else []
    return style.finish(
        figure,
        title=title or f"Attack success against {'over-refusal' if against == 'refusal' else 'utility'}",
        subtitle="; ".join(notes),
        height=480,
    )


def _rates(
    table: pd.DataFrame,
    name: str,
    side: str,
    metric: str,
    attack: str,
    judge: str | None,
    *,
    preferred: str | None = None,
) -> pd.DataFrame:
    """One row a checkpoint that has a value, of one judge."""
    rows = suites.of(table, suite=name, side=side, attack=attack, intervention="none", by="all", metric=metric)
    rows = rows if side == "harmful" else suites.of(rows, kind="refusal")
    own = _one_a_checkpoint(rows, judge, preferred)
    if own["value"].notna().any():
        return own[own["value"].notna()]
    words = wording.metric_name(metric)
    raise MechrefusalError(
        f"cannot draw the frontier: no checkpoint has {words} on '{wording.shortened(name)}'"
        + (f" under attack '{wording.shortened(attack)}'" if attack != "none" else "")
        + (f" by judge '{wording.shortened(judge)}'" if judge else "")
    )


def _last(table: pd.DataFrame, method: str, judge: str | None, *, preferred: str | None) -> pd.DataFrame:
    """Success at the last step of an attack that was made anew against each checkpoint."""
    rows = suites.readable(suites.of(table, method=method), *suites.NUMBERS, "attack_step")
    rows = rows[rows["value"].notna() & rows["attack_step"].notna()].sort_values("attack_step", ascending=False)
    rows = _one_a_checkpoint(rows, judge, preferred)
    if not len(rows):
        raise MechrefusalError(
            f"cannot draw the frontier: table 'stress' has no value of '{wording.shortened(method)}'"
        )
    return rows


def _one_a_checkpoint(rows: pd.DataFrame, judge: str | None, preferred: str | None) -> pd.DataFrame:
    there = set(suites.texts(rows["judge"]))
    chosen = judge if judge is not None else preferred if preferred in there else None
    found = suites.readable(suites.of_judge(rows, chosen), *suites.NUMBERS).drop_duplicates(["arm", "step"])
    return found[["arm", "step", "judge", *(name for name in suites.NUMBERS if name in found)]]


def _layers(table: pd.DataFrame | None) -> dict[tuple[str, int], _Layer]:
    if table is None or not len(table):
        return {}
    numbers = ("layer", "layer_low", "layer_high", "reference_layer")
    known = table.assign(**{name: table.get(name, float("nan")) for name in numbers})
    return {(row["arm"], row["step"]): _layer(row) for _, row in suites.readable(known, *numbers).iterrows()}


def _layer(row: pd.Series) -> _Layer:
    ends = [row["layer_low"], row["layer_high"]]
    sure = "" if any(map(wording.is_missing, ends)) else f" (95%: {'–'.join(map(wording.whole, ends))})"
    if not wording.is_missing(row["layer"]):
        return _Layer(row["layer"], "carrier", f"carrier at layer {wording.whole(row['layer'])}{sure}")
    if not wording.is_missing(row["reference_layer"]):
        where = wording.whole(row["reference_layer"])
        return _Layer(row["reference_layer"], "reference", f"no carrier; best candidate at layer {where}{sure}")
    return _Layer(float("nan"), "none", "no carrier and no candidate")


def _add_arm(figure: go.Figure, points: pd.DataFrame, arm: str, names: list[str], place: str) -> None:
    colour, symbol = style.arm_style(arm, names)
    joined = style.with_base(points, arm)
    line = {"color": colour, "width": 1.6}
    look = {"mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False, "legendgroup": arm}
    figure.add_trace(go.Scatter(x=style.numbers(joined["value_x"]), y=style.numbers(joined["value_y"]), **look))
    if arm != BASE:
        _add_points(figure, points[points["arm"] == arm], symbol, colour, arm, place)


def _add_points(figure: go.Figure, points: pd.DataFrame, symbol: str, colour: str, arm: str, place: str) -> None:
    """Markers of one arm with bars both ways: filled, open and grey ones are three traces, as each has its colours."""
    size = 15 if symbol == _BASE_SYMBOL else 13
    for kind in ("carrier", "reference", "none"):
        own = points[[layer.kind == kind for layer in points["layer"]]]
        if not len(own):
            continue
        marker: dict = {"symbol": symbol, "size": size, "line": {"width": 1.6, "color": colour}}
        if kind == "none":
            marker["color"] = "#b9b9b9"
        else:
            marker |= {"color": [layer.value for layer in own["layer"]], "coloraxis": "coloraxis"}
        if kind == "reference":
            marker |= {"symbol": f"{symbol}-open", "line": {"width": 3}}
        bars = {"color": _translucent(colour), "thickness": 1.2, "width": 2}
        trace = go.Scatter(
            x=style.numbers(own["value_x"]),
            y=style.numbers(own["value_y"]),
            error_x=style.error_bars(own, "value_x", "low_x", "high_x", **bars),
            error_y=style.error_bars(own, "value_y", "low_y", "high_y", **bars),
            mode="markers+text",
            text=[arm if arm in SHARED else str(step) for step in own["step"]],
            textposition=[f"{place} {'left' if x > 0.6 else 'right'}" for x in own["value_x"]],
            textfont={"size": 11},
            marker=marker,
            hovertext=[_hover(row) for _, row in own.iterrows()],
            hoverinfo="text",
            legendgroup=arm,
            showlegend=False,
            cliponaxis=False,
        )
        figure.add_trace(trace)


def _legend(figure: go.Figure, points: pd.DataFrame, names: list[str]) -> None:
    """Entries without points: the colours of markers are layers, those of arms are their lines."""
    kinds = {layer.kind for layer in points["layer"]}
    entries = [
        (wording.for_plotly(wording.shortened(arm, 24)), arm, *style.arm_style(arm, names), "lines+markers")
        for arm in names
        if arm != BASE
    ]
    entries += [(BASE, BASE, style.NEUTRAL, _BASE_SYMBOL, "markers")] if (points["arm"] == BASE).any() else []
    entries += (
        [("open: best candidate", "open", style.NEUTRAL, "circle-open", "markers")] if "reference" in kinds else []
    )
    entries += [("grey: no layer", "grey", "#b9b9b9", "circle", "markers")] if "none" in kinds else []
    for name, group, colour, symbol, mode in entries:
        marker = {"color": colour, "symbol": symbol, "size": 9}
        shown = {"mode": mode, "line": {"color": colour}, "marker": marker, "legendgroup": group, "showlegend": True}
        figure.add_trace(go.Scatter(x=[None], y=[None], name=name, hoverinfo="skip", **shown))


def _axes(figure: go.Figure, points: pd.DataFrame, n_layers: int | None) -> None:
    found = [layer.value for layer in points["layer"] if not wording.is_missing(layer.value)]
    if found:
        low, high = (0.0, float(n_layers - 1)) if n_layers else (min(found), max(found))
        bar = {"title": {"text": "layer"}, "tickformat": "d"}
        axis = {"colorscale": _SCALE, "cmin": low, "cmax": high if high > low else low + 1, "colorbar": bar}
        figure.update_layout(coloraxis=axis)
    figure.update_xaxes(range=[-0.04, 1.04], zeroline=False)
    figure.update_yaxes(range=[-0.04, 1.04], zeroline=False)
    figure.update_layout(legend={"y": -0.24, "yanchor": "top"}, showlegend=True)


def _hover(row: pd.Series) -> str:
    nulls = [
        f", {wording.whole(row[k])} nulls" if not wording.is_missing(row.get(k)) and row[k] else "" for k in _NULLS
    ]
    return style.hover(
        [
            f"<b>{suites.checkpoint_label(row['arm'], row['step'], 40)}</b>",
            f"attack success {wording.number(row['value_y'], 3)}{style.interval(row, 'low_y', 'high_y')}, "
            f"n = {wording.whole(row['n_y'])}{nulls[0]}",
            f"harmless prompts {wording.number(row['value_x'], 3)}{style.interval(row, 'low_x', 'high_x')}, "
            f"n = {wording.whole(row['n_x'])}{nulls[1]}",
            row["layer"].words,
        ]
    )


_NULLS = ("nulls_y", "nulls_x")


def _keys(rows: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(rows["arm"], rows["step"], strict=True))


def _set(name: str) -> str:
    return wording.token(wording.set_name(name), 30)


def _name(text: str) -> str:
    return wording.for_plotly(wording.shortened(text, 44))


def _judges(success: pd.DataFrame, cost: pd.DataFrame) -> str:
    names = [wording.for_plotly(wording.shortened(rows["judge"].iloc[0])) for rows in (success, cost)]
    return f"judge: {names[0]}" if names[0] == names[1] else f"judge of success: {names[0]}, of refusal: {names[1]}"


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.55)"
