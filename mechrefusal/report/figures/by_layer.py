"""Profiles: the logit lens and linear probes by layer, interventions by dose, the circuit's faithfulness by size."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import catalogue, style
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import word
from mechrefusal.report.figures.style import POINTS, RANDOM, Look

_SETS = {"harmful": (style.POSITIVE, "solid"), "harmless": (style.NEGATIVE, "dash")}
_PROBES = {
    "shuffled_auc": ("shuffled labels", style.NEUTRAL, "dot", "x"),
    "mean_auc": ("difference in means", style.ARM_COLOURS[1], "dash", "square"),
    "auc": ("probe (95% interval)", style.ARM_COLOURS[0], "solid", "circle"),
}
_SIDES = {"kept": style.ARM_COLOURS[0], "lost": style.ARM_COLOURS[1]}


def logit_lens(table: pd.DataFrame) -> go.Figure:
    """Log-probability of refusal and of compliance and the score by layer, harmful against harmless prompts.

    Each layer's input goes through the final norm and the unembedding; the last point is the model's output.

    Args:
        table: table `logit_lens` of one checkpoint.
    """
    quantities = [name for name in catalogue.entry("logit_lens").panels if name != "gap"]
    rows = style.drawable(table[table["quantity"].isin(quantities)], "value", "the logit lens")
    shown = [name for name in quantities if rows.loc[rows["quantity"] == name, "value"].notna().any()]
    last, gap = int(rows["layer"].max()), _gap(rows)
    rows, n_panels = rows.assign(where=_where(rows["layer"], last)), len(shown) + (len(gap) > 0)
    canvas = Canvas("logit_lens", [*shown, *(["gap"] if len(gap) else [])], shared="x", panel_height=115)
    for panel, quantity in enumerate(shown):
        of_quantity = rows[rows["quantity"] == quantity]
        for kind, (colour, dash) in _SETS.items():
            subset = of_quantity[of_quantity["set"] == kind].sort_values("layer")
            canvas.line(subset, "layer", "value", f"{kind} prompts", colour=colour, dash=dash, size=4, panel=panel)
        canvas.y(panel, range=_without_first_layer(of_quantity))
    if len(gap):
        texts = catalogue.hovers(gap.assign(where=_where(gap["layer"], last)), ("<b>{where}</b>", "{gap:+3} nats"))
        look: Look = {"colour": style.NEUTRAL, "size": 4, "panel": n_panels - 1, "hover": texts, "interval": "none"}
        canvas.line(gap, "layer", "gap", "harmful − harmless", **look)
    step = max(1, last // 10)
    ticks = [layer for layer in range(0, last, step) if last - layer >= step / 2]
    canvas.x(tickvals=[*ticks, last], zeroline=False)
    canvas.x(n_panels - 1, ticktext=[*map(str, ticks), "output"])
    canvas.y(nticks=5)
    return canvas.finish(wording.counts(rows["n"]))


def _gap(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean score of harmful minus harmless prompts by layer, `gap`; empty where one is missing."""
    score = rows[rows["quantity"] == "score"].drop_duplicates(["set", "layer"])
    by_set = score.pivot(index="layer", columns="set", values="value")
    if not set(_SETS) <= set(by_set):
        return pd.DataFrame()
    return (by_set["harmful"] - by_set["harmless"]).dropna().sort_index().rename("gap").reset_index()


def _where(layers: pd.Series, last: int) -> list[str]:
    return ["output" if layer == last else f"input of layer {layer}" for layer in layers]


def _without_first_layer(rows: pd.DataFrame) -> list[float] | None:
    """The y range without the input of layer 0, where that alone would more than double it; else plotly's own."""
    ends = rows.assign(**{end: rows[end].fillna(rows["value"]) for end in ("low", "high")})
    later = ends[ends["layer"] > 0]
    bottom, top = float(later["low"].min()), float(later["high"].max())
    if not bottom < top or (ends["low"].min() > bottom - (top - bottom) and ends["high"].max() < top + (top - bottom)):
        return None
    return [bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom)]


def linear_probes(table: pd.DataFrame, *, target: str, position: int | None = None) -> go.Figure:
    """AUC by layer: a cross-validated probe (95% interval), the difference in means, a probe on shuffled labels.

    Args:
        table: table `linear_probes` of one checkpoint.
        target: a value of the column `target`.
        position: where the activations were read; needed where the target was probed at several positions.
    """
    rows = table[table["target"] == target]
    rows = rows if position is None else rows[rows["position"] == position]
    rows = style.drawable(rows, "auc", f"probes of '{wording.plain(target)}'").sort_values(["layer"])
    canvas, alone = Canvas("linear_probes"), len(rows) == 1
    for place, (column, (name, colour, dash, symbol)) in enumerate(_PROBES.items()):
        look: Look = {"colour": colour, "dash": dash, "symbol": symbol, "size": 9 if alone else 5}
        shift, interval = 0.2 * (place - 1) if alone else 0.0, "band" if column == "auc" else "none"
        canvas.line(rows, "layer", column, name, shift=shift, interval=interval, **look)
    canvas.rule(y=0.5)
    canvas.x(zeroline=False)
    if alone:
        only = int(rows["layer"].iloc[0])
        canvas.x(tickvals=[only], range=[only - 1, only + 1])
    lowest = min(0.4, float(rows["low"].min()), float(rows["auc"].min()))
    canvas.y(range=[max(0.0, lowest) - 0.03, 1.03])
    positions = sorted(set(rows["position"]))
    where = f"position {wording.whole(positions[0])}" if len(positions) == 1 else ""
    n = " and ".join(wording.whole(rows.iloc[0][name]) for name in ("n_positive", "n_negative"))
    return canvas.finish(where, f"n = {n} prompts", target=wording.shortened(word("probe_target", target)))


def doses(table: pd.DataFrame, *, intervention: str = "ablate") -> go.Figure:
    """Each measure against the coefficient of an intervention, below each other; dashed: a random direction.

    Args:
        table: table `doses` of one checkpoint.
        intervention: `ablate` or `induce`; its control is `<intervention>_random`.
    """
    kinds = {intervention: "the direction", f"{intervention}_random": "random direction"}
    rows = table[table["intervention"].isin(list(kinds))]
    rows = style.drawable(rows, "value", f"the dose-response of '{wording.plain(intervention)}'")
    present = set(rows.loc[rows["value"].notna(), "measure"])
    known = [name for name in catalogue.entry("doses").panels if name in present]
    measures = known + sorted(present - set(known))
    canvas = Canvas("doses", measures, shared="x", panel_height=80)
    for panel, measure in enumerate(measures):
        for kind, name in kinds.items():
            subset = rows[(rows["measure"] == measure) & (rows["intervention"] == kind)].sort_values("coefficient")
            subset, control = subset.assign(name=name), kind != intervention
            look = RANDOM | {"interval": "band"} if control else {}
            canvas.line(subset, "coefficient", "value", name, size=5, panel=panel, **look)
    canvas.y(nticks=4)
    return canvas.finish(wording.counts(rows["n"]), intervention=word("intervention", intervention))


def faithfulness(table: pd.DataFrame, *, of: str = "harmful") -> go.Figure:
    """Share of the metric that the first k heads and MLPs keep alone, and that is lost without them, by k.

    Sizes are evenly spaced. Grey: random sets of as many heads and MLPs, their mean and range.

    Args:
        table: table `faithfulness` of one checkpoint.
        of: which score, `harmful` or `difference` (column `of`).
    """
    rows = style.drawable(table[table["of"] == of], "kept", f"the faithfulness of '{wording.plain(of)}'")
    rows = rows.sort_values("size").assign(at=list(range(len(rows))))
    rows = rows.assign(circuit=rows["is_circuit"].map({True: "the circuit: ", False: ""}))
    canvas = Canvas("faithfulness", list(_SIDES), columns=2, shared="y")
    for panel, (side, colour) in enumerate(_SIDES.items()):
        canvas.add(style.between(rows, "at", f"random_{side}_least", f"random_{side}_most", style.NEUTRAL), panel)
        sides: Look = {f"side_{end}": rows[f"{side}_{end}"] for end in ("low", "high")}
        random: Look = {f"random{end}": rows[f"random_{side}{end}"] for end in ("", "_least", "_most")}
        subset = rows.assign(side=side, share=rows[side], **sides, **random)
        canvas.line(subset, "at", "random", "random sets", panel=panel, **RANDOM)
        canvas.line(subset, "at", "share", side, colour=colour, panel=panel, ends=("side_low", "side_high"))
        star = POINTS | {"symbol": "star", "size": 15, "colour": colour, "panel": panel}
        canvas.line(subset[subset["is_circuit"]], "at", "share", "the circuit", **star)
        canvas.rule(y=0, panel=panel)
        canvas.rule(y=1, panel=panel, dash="dot")
    sizes = [wording.whole(size) for size in rows["size"]]
    canvas.x(tickvals=list(rows["at"]), ticktext=sizes, tickangle=-90, zeroline=False)
    canvas.y(zeroline=False)
    measured = ", ".join(sorted({wording.for_plotly(name) for name in rows["measured_on"] if name}))
    on = f"measured on {measured}" if measured else ""
    return canvas.finish(on, wording.counts(rows["n"], "pairs"), of=word("faithful_to", of))
