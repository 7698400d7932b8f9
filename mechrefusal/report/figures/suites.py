"""Rates of suites and probes over optimiser steps and by category, and what changed on the same prompts."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import axes, style
from mechrefusal.report.figures.behaviour import arms_over_steps
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import checkpoint_name, word, words
from mechrefusal.report.figures.style import Look
from mechrefusal.report.order import checkpoint_order

NUMBERS = ("value", "low", "high", "n", "nulls")
PAIRS = ("checkpoints", "interventions")
LIMITS = (-0.03, 1.03)
_LONGEST = 40


def of(table: pd.DataFrame, **wanted: str | None) -> pd.DataFrame:
    """Rows whose columns have these values, as text; None takes any value."""
    keep = np.ones(len(table), dtype=bool)
    for column, value in wanted.items():
        if value is not None:
            keep &= (texts(table[column]) == value).to_numpy(dtype=bool)
    return table[keep]


def readable(table: pd.DataFrame, *numbers: str, arm: str = "arm", step: str = "step") -> pd.DataFrame:
    """`table` with float `numbers`, arms as text, whole steps; rows without a step have no place and are left out."""
    known: Look = {name: floats(table[name]) for name in (*numbers, step) if name in table}
    table = table.assign(**known, **{arm: texts(table[arm])})
    table = table[table[step].notna()]
    return table.assign(**{step: table[step].astype(int)})


def texts(values: pd.Series) -> pd.Series:
    """Texts of a column; a missing one is a dash."""
    return pd.Series([wording.MISSING if wording.is_missing(v) else str(v) for v in values], values.index, dtype=object)


def floats(values: pd.Series) -> pd.Series:
    """Numbers of a column; what is none, or infinite, is NaN."""
    return pd.to_numeric(values, errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def of_judge(rows: pd.DataFrame, judge: str | None) -> pd.DataFrame:
    """Rows of one judge, by default the first by name: rates of different judges are not mixed."""
    return of(rows, judge=judge if judge is not None else min(texts(rows["judge"]), default=""))


def judged(rows: pd.DataFrame) -> str:
    """`judge: refusal-rules`, safe for plotly."""
    return f"judge: {wording.for_plotly(wording.shortened(rows['judge'].iloc[0]))}" if len(rows) else ""


def rates(
    table: pd.DataFrame,
    *,
    suite: str = "evaluation_harmful",
    side: str | None = None,
    metric: str = "any_refusal",
    judge: str | None = None,
    attack: str = "none",
) -> go.Figure:
    """One rate of a suite over optimiser steps (table `rates`): one line an arm, dashed under interventions.

    Args:
        suite, metric, attack: values of the columns of these names.
        side: of a suite that has both; by default the harmful one where there is one.
        judge: by default the first by name.
    """
    side = side or min(texts(of(table, suite=suite)["side"]), default="harmful")
    rows = of_judge(of(table, suite=suite, side=side, metric=metric, attack=attack, by="all"), judge)
    what = f"{wording.metric_name(metric)} on '{wording.shortened(suite, _LONGEST)}'"
    rows = style.drawable(readable(rows, *NUMBERS), "value", what)
    canvas = Canvas("rates")
    add_rates(canvas, rows)
    canvas.y(title=word("metric", metric), range=list(LIMITS))
    return canvas.finish(judged(rows), wording.counts(rows["n"]), title=_title(metric, suite, side, attack))


def add_rates(canvas: Canvas, rows: pd.DataFrame, *, panel: int = 0) -> None:
    """Draw one rate over steps into a panel: a line an arm, dashed under interventions."""
    interventions = sorted(set(texts(rows["intervention"])), key=lambda name: (name != "none", name))
    for arm, subset, look in style.each_arm(rows):
        for number, intervention in enumerate(interventions):
            under = "" if intervention == "none" else wording.shortened(intervention, 24)
            name = wording.shortened(arm, 24) + (f": {under}" if under else "")
            dashed: Look = {"dash": style.DASHES[number % len(style.DASHES)], "size": 8, "panel": panel}
            if under:
                dashed |= {"symbol": f"{look['symbol']}-open", "interval": "bars"}
            of_intervention = of(subset, intervention=intervention).assign(under=under)
            canvas.line(of_intervention, "step", "value", name, **look | dashed)
    canvas.steps(rows["step"], panel)


def suite_categories(
    table: pd.DataFrame,
    *,
    suite: str,
    side: str = "harmful",
    metric: str = "any_refusal",
    judge: str | None = None,
    attack: str = "none",
    intervention: str = "none",
    by: str = "category",
) -> go.Figure:
    """Map of a rate by category of the prompts: x = checkpoint, y = category (table `rates`).

    Args:
        by: `category` (XSTest's type, HarmBench's semantic category) or `group` (HarmBench's functional category).
    """
    chosen = of(table, suite=suite, side=side, metric=metric, attack=attack, intervention=intervention, by=by)
    what = f"{wording.metric_name(metric)} by {by} on '{wording.shortened(suite, _LONGEST)}'"
    rows = style.drawable(readable(of_judge(chosen, judge), *NUMBERS), "value", what)
    rows = rows.assign(category=[wording.shortened(name) for name in texts(rows["of"])])
    down = axes.named(texts(rows["of"]), lambda name: wording.token(wording.metric_name(name), 26))
    canvas = Canvas("suite_categories")
    canvas.matrix(rows, "value", down, axes.checkpoints(rows, limit=12), written="{?{value:rate}?}")
    canvas.colours("rate", most=1)
    title = f"{_title(metric, suite, side, attack)}, by {wording.metric_name(by)}"
    return canvas.finish(judged(rows), wording.counts(rows["n"]), title=title, height=210 + 24 * len(down.order))


def answer_losses(table: pd.DataFrame, *, suite: str) -> go.Figure:
    """Cross-entropy of the base model's own answers, relative to the base, nats a token (table `answer_losses`)."""
    name = wording.shortened(suite, _LONGEST)
    rows = readable(of(table, suite=suite), "loss", "difference", "low", "high", "n")
    rows = style.drawable(rows, "difference", f"the loss of the base model's answers on '{name}'")
    figure = arms_over_steps("answer_losses", rows, "difference", suite=name)
    return figure.add_hline(y=0, line={"width": 1, "color": style.AXIS})


def probes(
    table: pd.DataFrame, *, set: str = "harmful", metric: str = "any_refusal", judge: str | None = None
) -> go.Figure:
    """A rate of one probe set over the anchors of training, with 95% intervals (table `probes`; unit: share of n).

    Args:
        set: `harmful`, `harmless` or `attacked` (behaviours of the pool with their suffixes of that moment).
        judge: the rule that judged; by default the first by name.
    """
    rows = of_judge(of(table, set=set, metric=metric), judge)
    rows = style.drawable(rows, "value", f"{wording.metric_name(metric)} of {wording.metric_name(set)} probes")
    names: Look = {"metric": word("metric", metric), "set": wording.metric_name(set), "noun": "probes"}
    return arms_over_steps("probes", rows, "value", judged(rows), limits=LIMITS, **names)


def suite_differences(
    table: pd.DataFrame,
    *,
    suite: str,
    side: str = "harmful",
    metric: str = "any_refusal",
    judge: str | None = None,
    attack: str = "none",
    intervention: str = "none",
    pairs: str = "checkpoints",
) -> go.Figure:
    """Paired differences of a rate as a forest plot (table `suite_differences`): b minus a, with 95% intervals.

    One line a pair a → b, in the colour of b's arm: checkpoints against the base, consecutive anchors, the last ones of
    two arms. Nothing is corrected for the number of pairs.

    Args:
        suite, side, metric, attack: values of the columns of these names.
        judge: by default the first by name.
        intervention: under which both checkpoints answered.
        pairs: `checkpoints`, or `interventions`: every intervention against none, at the same checkpoint.
    """
    if pairs not in PAIRS:
        raise MechrefusalError(f"unknown pairs '{pairs}' of differences: expected one of {', '.join(PAIRS)}")
    between = pairs == "checkpoints"
    wanted = of(table, suite=suite, side=side, metric=metric, attack=attack)
    wanted = wanted[(texts(wanted["pair"]) != "intervention").to_numpy() == between]
    wanted = of_judge(of(wanted, intervention=intervention if between else None), judge)
    what = f"differences of {wording.metric_name(metric)} on '{wording.shortened(suite, _LONGEST)}'"
    rows = style.drawable(_ordered(wanted), "difference", what)
    names = style.arms(pd.DataFrame({"arm": [*rows["arm_a"], *rows["arm_b"]]}))
    canvas = Canvas("suite_differences")
    for arm in dict.fromkeys(name for name in ("base", *names) if (rows["arm_b"] == name).any()):
        subset, (colour, symbol) = rows[rows["arm_b"] == arm], style.arm_style(arm, names)
        clear = (subset["low"] > 0) | (subset["high"] < 0)
        symbols = [symbol if filled else f"{symbol}-open" for filled in clear]
        look: Look = {"mode": "markers", "colour": colour, "size": 9, "symbol": symbols}
        name = wording.shortened(arm, 24)
        canvas.line(subset, "difference", "place", name, interval="bars", along="x", **look)
    canvas.rule(x=0)
    rate = word("metric", metric)
    canvas.x(title=f"difference of {wording.for_plotly(rate)}", zeroline=False)
    canvas.categories(list(rows["label"]))
    under = "" if intervention == "none" or not between else f", {wording.shortened(intervention, _LONGEST)}"
    rate_of = _title(metric, suite, side, attack) + wording.for_plotly(under)
    title = f"{'Change of' if between else 'What interventions change:'} {rate_of[:1].lower()}{rate_of[1:]}"
    height = 190 + (22 if len(rows) <= 60 else 16) * len(rows)
    n = wording.counts(rows["n"], "prompts that both answered")
    return canvas.finish(judged(rows), n, "filled: excludes 0", title=title, height=height)


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Readable rows by kind of pair, then by checkpoints, with their names and places."""
    numbers = [name for name in table if name.endswith(("low", "high", "_p", "adjusted", "difference")) or name == "n"]
    rows = readable(readable(table, *numbers, arm="arm_a", step="step_a"), arm="arm_b", step="step_b")
    kinds = list(words("pair"))
    order = []
    for row in rows.itertuples():
        kind = kinds.index(row.pair) if row.pair in kinds else len(kinds)
        ends = (*checkpoint_order((row.arm_b, 0)), *checkpoint_order((row.arm_a, row.step_a)))
        order.append((kind, *ends, row.step_b))
    rows = rows.iloc[sorted(range(len(rows)), key=order.__getitem__)].reset_index(drop=True)
    names: dict[str, list[str]] = {"label": [], "pair_name": []}
    for row in rows.to_dict("records"):
        for name, limit in (("label", 10), ("pair_name", 40)):
            first, second = (checkpoint_name(row, end, limit=limit) for end in ("_a", "_b"))
            intervened = f"{second}: {wording.shortened(row['intervention'], limit + 6)}"
            names[name].append(intervened if row["pair"] == "intervention" else f"{first} → {second}")
    kind_names = [word("pair", kind) for kind in rows["pair"]]
    return rows.assign(**names, kind_name=kind_names, place=range(len(rows)))


def _title(metric: str, suite: str, side: str, attack: str = "none") -> str:
    """`Share refused: xstest, harmless prompts`, safe for plotly; own suites have names that say the side."""
    pressed = "" if attack == "none" else f", {wording.shortened(attack, _LONGEST)}"
    prompts = f"{wording.shortened(suite, _LONGEST)}, {wording.shortened(side, _LONGEST)} prompts"
    prompts, rate = wording.SET_NAMES.get(suite, prompts), word("metric", metric)
    return wording.for_plotly(f"{rate[:1].upper()}{rate[1:]}: {prompts}{pressed}")
