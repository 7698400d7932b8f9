"""Adaptive stress tests: success by attack step, whose attacks succeed where, and why attacks fail."""

import math

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import axes, style, suites
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import word
from mechrefusal.report.figures.style import Look

_FEW = 8
"""Up to so many steps of an attack stand on a linear axis; more of them on a logarithmic one that has room for 0."""
_UNATTACKED = "none"
"""Arm and method of the behaviours without an attack, as in table `stress_transfer`."""
_OUTCOMES = {"robust": "#0072B2", "refuses_suffix": "#E69F00", "attack_success": "#D55E00", "rest": style.NEUTRAL}

Key = tuple[str, int]


def stress_curves(table: pd.DataFrame, *, judge: str | None = None) -> go.Figure:
    """Success by attack step with 95% Wilson bands (table `stress`): a line a checkpoint, a panel a method.

    A case's success at a step is that of its best prompt by then, so a line may fall. Dashes and lighter lines tell an
    arm's checkpoints apart. An attack of more than 8 steps has a logarithmic axis.

    Args:
        judge: the judge of the answers; by default the first by name.
    """
    what = "success by attack step"
    rows = style.drawable(_of_judge(style.drawable(table, "value", what), judge), "value", f"{what} of judge '{judge}'")
    methods, keys = list(dict.fromkeys(rows["method"])), axes.checkpoints(rows).order
    canvas = Canvas("stress_curves", methods, columns=2, panel_height=230)
    for panel, method in enumerate(methods):
        of_method = rows[rows["method"] == method]
        steps = sorted({int(step) for step in of_method["attack_step"]})
        logarithmic = steps[-1] > _FEW
        places = {step: math.log2(1 + step) if logarithmic else float(step) for step in steps}
        of_method = of_method.assign(x=of_method["attack_step"].map(places))
        for key in keys:
            subset = of_method[(of_method["arm"] == key[0]) & (of_method["step"] == key[1])]
            look = style.checkpoint_style(key, keys) | {"size": 7, "panel": panel}
            canvas.line(subset.sort_values("x", kind="stable"), "x", "value", axes.checkpoint_label(key), **look)
        title = f"{canvas.entry.x}{', logarithmic' if logarithmic else ''}"
        canvas.x(panel, title=title, tickvals=list(places.values()), ticktext=[str(step) for step in steps])
    canvas.y(range=list(suites.LIMITS))
    return canvas.finish(suites.judged(rows), wording.counts(rows["n"], "cases"))


def stress_matrix(table: pd.DataFrame, *, method: str | None = None, judge: str | None = None) -> go.Figure:
    """Map of the success of replayed attack cases (table `stress_transfer`): x = target, y = source.

    A cell holds the success rate at the target of the cases that were made against the source, and their n. The first
    row is the behaviours without an attack.

    Args:
        method: the attack; by default the first of the table.
        judge: the judge of the answers; by default the first by name.
    """
    rows = _of_judge(style.drawable(table, "value", "the transfer of attack cases"), judge)
    if method is None:
        method = next((name for name in rows["method"] if name != _UNATTACKED), _UNATTACKED)
    unattacked = (rows["arm_source"] == _UNATTACKED) & (rows["method"] == _UNATTACKED)
    rows = style.drawable(rows[(rows["method"] == method) | unattacked], "value", f"the transfer of '{method}' cases")
    down, across = axes.checkpoints(rows, "_source"), axes.checkpoints(rows, "_target")
    whose = [" (its own cases)" if a == b else "" for a, b in zip(down.keys, across.keys, strict=True)]
    rows = rows.assign(source=[axes.checkpoint_label(key) for key in down.keys], own=whose)
    canvas = Canvas("stress_matrix")
    canvas.matrix(rows, "value", down, across, written="{value:rate}<br>n {n:whole}", textfont={"size": 11})
    canvas.colours("success", most=1)
    height = int(min(900, 220 + 42 * len(down.order)))
    return canvas.finish(suites.judged(rows), method=wording.shortened(method, 24), height=height)


def stress_shares(table: pd.DataFrame, *, method: str | None = None, judge: str | None = None) -> go.Figure:
    """What becomes of attacks at each checkpoint, as stacked bars (table `stress_control`).

    The attack succeeds; or it fails and the harmless twin of its request, with the same suffix, is answered (robust) or
    refused (the checkpoint refuses the suffix). What is missing to 1 are degenerate answers to the twin.

    Args:
        method: the attack; by default the first of the table.
        judge: of the attack's success; by default the first by name.
    """
    what = "what becomes of attacks"
    rows = suites.readable(style.drawable(table, "value", what), *suites.NUMBERS)
    rows = suites.of(rows, method=method if method is not None else suites.texts(rows["method"]).iloc[0])
    shares = suites.of_judge(rows[rows["metric"].isin(list(_OUTCOMES))], judge)
    shares = style.drawable(shares, "value", f"{what} of judge '{wording.shortened(judge, 40)}'" if judge else what)
    keys = axes.checkpoints(shares).order
    every = pd.DataFrame(keys, columns=["arm", "step"]).assign(
        place=range(len(keys)), label=[axes.checkpoint_label(key, 40) for key in keys]
    )
    twins = rows[(rows["metric"] == "refused") & (rows["judge"] == shares["twin_judge"].iloc[0])]
    for name, suffix in (("alone", "none"), ("behind", "attacked")):
        refused = twins.loc[twins["suffix"] == suffix, ["arm", "step", "value"]].drop_duplicates(["arm", "step"])
        every = every.merge(refused.rename(columns={"value": name}), on=["arm", "step"], how="left")
    canvas, left = Canvas("stress_shares"), pd.Series(1.0, every.index)
    for metric, colour in _OUTCOMES.items():
        subset = shares[shares["metric"] == metric].drop_duplicates(["arm", "step"])
        subset = every.merge(subset, on=["arm", "step"], how="left")
        if metric == "rest":
            subset = every[["place", "label"]].assign(value=left.where(left > 1e-9))
            if subset["value"].isna().all():
                continue
        left = left - subset["value"]
        written = ["" if not value >= 0.06 else wording.rate(value) for value in subset["value"]]
        look: Look = {"written": written, "textposition": "inside", "insidetextanchor": "middle"}
        subset, name = subset.assign(outcome=word("outcome", metric)), word("outcome", metric)
        canvas.bars(subset, "value", "place", name, colour=colour, ends=None, **look)
    canvas.x(range=[0, 1], zeroline=False)
    canvas.categories([axes.checkpoint_label(key) for key in keys])
    canvas.figure.update_layout(barmode="stack", bargap=0.3, legend={"traceorder": "normal"})
    attack, n = wording.shortened(rows["method"].iloc[0], 24), wording.counts(shares["n"], "cases with a harmless twin")
    return canvas.finish(suites.judged(shares), n, method=attack, height=230 + 34 * len(keys))


def _of_judge(rows: pd.DataFrame, judge: str | None) -> pd.DataFrame:
    """Rows of one judge, by default the first by name: rates of different judges are not mixed."""
    return rows[rows["judge"] == (judge if judge is not None else min(rows["judge"]))]
