"""Adaptive stress tests: how success grows with the steps of an attack, and whose attacks succeed where."""

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrefusal.report import wording
from mechrefusal.report.figures import heatmaps, style
from mechrefusal.report.order import checkpoint_order

_COLUMNS = 2
_FEW = 8
"""Up to so many steps of an attack stand on a linear axis; more of them on a logarithmic one that has room for 0."""
_UNATTACKED = "none"
"""Arm and method of the behaviours without an attack, as in table `stress_transfer`."""

Key = tuple[str, int]


def stress_curves(table: pd.DataFrame, *, judge: str | None = None) -> go.Figure:
    """Success by attack step with 95% Wilson bands (table `stress`): a line a checkpoint, a panel a method.

    The cases were made anew against each checkpoint. A case's success at a step is that of its best prompt by then,
    so a line may fall. Colour is the arm; dashes and lighter lines tell its checkpoints apart. An attack of more than 8
    steps has a logarithmic axis.

    Args:
        judge: the judge of the answers; by default the first by name.
    """
    rows = _of_judge(style.drawable(table, "value", "success by attack step"), judge)
    rows = style.drawable(rows, "value", f"success by attack step of judge '{judge}'")
    methods, keys = list(dict.fromkeys(rows["method"])), _checkpoints(rows, "")
    columns = min(_COLUMNS, len(methods))
    lines = math.ceil(len(methods) / columns)
    figure = make_subplots(
        rows=lines,
        cols=columns,
        subplot_titles=[wording.for_plotly(method) for method in methods],
        horizontal_spacing=0.09,
        vertical_spacing=0.32 / lines,
    )
    shown: set[Key] = set()
    for place, method in enumerate(methods):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        of_method = rows[rows["method"] == method]
        steps = sorted({int(step) for step in of_method["attack_step"]})
        logarithmic = steps[-1] > _FEW
        for key in keys:
            own = of_method[_is(of_method, "", key)].sort_values("attack_step", kind="stable")
            if not own["value"].notna().any():
                continue
            own = own.assign(x=[_place(step, logarithmic=logarithmic) for step in own["attack_step"]])
            _add_line(figure, own, key, keys, at, legend=key not in shown)
            shown.add(key)
        title = "attack step, logarithmic" if logarithmic else "attack step"
        ticks = [_place(step, logarithmic=logarithmic) for step in steps]
        figure.update_xaxes(title=title, tickvals=ticks, ticktext=[str(step) for step in steps], **at)
        figure.update_yaxes(title="success" if at["col"] == 1 else None, range=[-0.03, 1.03], **at)
    figure.update_layout(showlegend=True, legend={"y": -0.26 / lines, "yanchor": "top"})
    subtitle = "; ".join(part for part in (_judged(rows), wording.counts(rows["n"], "cases")) if part)
    return style.finish(figure, title="Success by attack step", subtitle=subtitle, height=130 + 290 * lines)


def stress_matrix(table: pd.DataFrame, *, method: str | None = None, judge: str | None = None) -> go.Figure:
    """Heatmap of the success of replayed attack cases (table `stress_transfer`): x = target, y = source.

    A cell holds the success rate at the target of the cases that were made against the source, and their n. Where the
    two are the same checkpoint it is the attack's own success. The first row is the behaviours without an attack.

    Args:
        method: the attack; by default the first of the table.
        judge: the judge of the answers; by default the first by name.
    """
    rows = _of_judge(style.drawable(table, "value", "the transfer of attack cases"), judge)
    named = rows["method"]
    if method is None:
        method = next((one for one in named if one != _UNATTACKED), _UNATTACKED)
    unattacked = (rows["arm_source"] == _UNATTACKED) & (named == _UNATTACKED)
    rows = style.drawable(rows[(named == method) | unattacked], "value", f"the transfer of '{method}' cases")
    sources, targets = _checkpoints(rows, "_source"), _checkpoints(rows, "_target")
    values = np.full((len(sources), len(targets)), np.nan)
    written = [["" for _ in targets] for _ in sources]
    texts = [["not measured" for _ in targets] for _ in sources]
    for _, row in rows.iterrows():
        i, j = sources.index(_key(row, "_source")), targets.index(_key(row, "_target"))
        values[i, j], texts[i][j] = row["value"], _cell(row)
        written[i][j] = f"{wording.rate(row['value'])}<br>n {wording.whole(row['n'])}"
    figure = heatmaps.written_grid(values, written, texts, title="success", textfont={"size": 11})
    look = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(
        title="replayed at (target)", tickvals=list(range(len(targets))), ticktext=[_label(key) for key in targets]
    )
    figure.update_xaxes(tickangle=-90 if len(targets) > 3 else 0, **look)
    figure.update_yaxes(
        title="made against (source)",
        tickvals=list(range(len(sources))),
        ticktext=[_label(key) for key in sources],
        range=[len(sources) - 0.5, -0.5],
        **look,
    )
    title = f"Where {wording.for_plotly(wording.shortened(method, 24))} cases succeed"
    return style.finish(figure, title=title, subtitle=_judged(rows), height=int(min(900, 220 + 42 * len(sources))))


def _add_line(
    figure: go.Figure, own: pd.DataFrame, key: Key, keys: list[Key], at: dict[str, int], *, legend: bool
) -> None:
    arms = style.arms(pd.DataFrame({"arm": [arm for arm, _ in keys]}))
    colour, symbol = style.arm_style(key[0], arms)
    of_arm = [step for arm, step in keys if arm == key[0]]
    rank = len(of_arm) - 1 - of_arm.index(key[1])  # the last checkpoint of an arm is solid
    look: dict[str, Any] = {"legendgroup": _label(key), "opacity": max(0.45, 1 - 0.18 * rank)}
    area = style.between(own[own["value"].notna()], "x", "low", "high", colour, **look)
    if area is not None:
        figure.add_trace(area, **at)
    line = go.Scatter(
        x=list(own["x"]),
        y=style.numbers(own["value"]),
        error_y=style.error_bars(own, "value") if area is None else None,
        mode="lines+markers",
        name=_label(key),
        showlegend=legend,
        line={"color": colour, "width": 2, "dash": style.DASHES[rank % len(style.DASHES)]},
        marker={"color": colour, "symbol": symbol, "size": 7},
        text=[_point(row, key) for _, row in own.iterrows()],
        hoverinfo="text",
        **look,
    )
    figure.add_trace(line, **at)


def _point(row: pd.Series, key: Key) -> str:
    return style.hover(
        [
            f"<b>{_label(key)}, attack step {wording.whole(row['attack_step'])}</b>",
            *_rate(row),
            f"target loss {wording.number(row['loss'], 3)} nats a token",
            f"{wording.grouped(row['forward_tokens'])} tokens run forward a case",
        ]
    )


def _cell(row: pd.Series) -> str:
    source, target = _key(row, "_source"), _key(row, "_target")
    own = " (its own cases)" if source == target else ""
    return style.hover([f"<b>{_label(source)} → {_label(target)}</b>{own}", *_rate(row)])


def _rate(row: pd.Series) -> list[str]:
    nulls = f", {wording.whole(row['nulls'])} without a verdict" if row["nulls"] else ""
    return [f"success {wording.rate(row['value'])}{style.interval(row)}", f"n = {wording.whole(row['n'])} cases{nulls}"]


def _place(step: float, *, logarithmic: bool) -> float:
    return math.log2(1 + float(step)) if logarithmic else float(step)


def _of_judge(rows: pd.DataFrame, judge: str | None) -> pd.DataFrame:
    """Rows of one judge, by default the first by name: rates of different judges are not mixed."""
    named = rows["judge"]
    return rows[named == (judge if judge is not None else min(named))]


def _judged(rows: pd.DataFrame) -> str:
    return f"judge: {wording.for_plotly(rows['judge'].iloc[0])}"


def _key(row: pd.Series, side: str) -> Key:
    return str(row[f"arm{side}"]), int(row[f"step{side}"])


def _is(rows: pd.DataFrame, side: str, key: Key) -> pd.Series:
    return (rows[f"arm{side}"] == key[0]) & (rows[f"step{side}"].astype(int) == key[1])


def _checkpoints(rows: pd.DataFrame, side: str) -> list[Key]:
    """The checkpoints of a side: no attack first, then base, warm-up, and arm by arm."""
    found = {_key(row, side) for _, row in rows.iterrows()}
    return sorted(found, key=lambda key: (key[1] >= 0, *checkpoint_order(key)))


def _label(key: Key) -> str:
    if key[1] < 0:
        return "no attack"
    return wording.for_plotly(f"{wording.shortened(key[0], 16)} {key[1]}")
