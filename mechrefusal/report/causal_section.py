"""What the page of one checkpoint shows of cause and attribution by layer and head."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import causal_findings, figures, wording
from mechrefusal.report.figures.catalogue import words
from mechrefusal.report.panels import Panel, Panels
from mechrefusal.report.reading import MeasuredCheckpoint

_NO_EFFECT = {"denoising": 0.0, "noising": 1.0}
_PATCHED = ("resid_pre", "attn_out", "mlp_out", "z")
_COMPONENTS = ("attn_out", "mlp_out", "z")
_ONTO = {
    "refusal_logits": ("the refusal logits", "logits"),
    "carrier": ("the carrier", "projection"),
    "best candidate": ("the best candidate (no carrier)", "projection"),
}


def context(checkpoint: MeasuredCheckpoint, panels: Panels) -> dict[str, Any]:
    """Everything that the template `causal.html` needs."""
    tables = checkpoint.tables
    return {
        **_patching(tables["patching"], panels),
        "pairs": causal_findings.pairs(tables["pairs"]),
        "screening": _drawn(panels, tables["attribution_patching"], figures.attribution_patching, "Estimate and exact"),
        "agreement": causal_findings.agreement(tables["attribution_agreement"]),
        "attribution": _attribution(tables["attribution"], tables["attribution_compared"], panels),
        "sources": _sources(tables["token_sources"], panels),
        "tokens": causal_findings.top_tokens(tables["token_sources"]),
        "lens": _drawn(panels, tables["logit_lens"], figures.logit_lens, "Logit lens"),
        "knockout": _knockout(tables["knockout"], panels),
        "knockout_found": causal_findings.knock_outs(tables["knockout"]),
        "head_set": _head_set(tables["head_sets"], panels),
        "head_set_found": causal_findings.head_set(tables["head_sets"]),
        "circuit": _circuit(tables["circuit_nodes"], tables["circuit_edges"], panels),
        "circuit_found": causal_findings.circuit(tables["circuit_nodes"], tables["faithfulness"]),
        "faithfulness": _faithfulness(tables["faithfulness"], panels),
    }


def _patching(table: pd.DataFrame, panels: Panels) -> dict[str, Any]:
    """One group of panels a mode. Attention, MLPs and heads share one scale; the residual stream's ends at ± 1."""
    parts = table[table["site"].isin(_COMPONENTS)]
    limit = _furthest(parts)
    groups = []
    for mode in dict.fromkeys(table["mode"]):
        rows, centre = table[table["mode"] == mode], _NO_EFFECT.get(mode, 0.0)
        drawn = []
        for site in _PATCHED:
            own = rows[rows["site"] == site]
            if not len(own):
                continue
            draw: Callable[..., go.Figure] = figures.layer_by_head if site == "z" else figures.layer_by_position
            shown: dict[str, Any] = {"title": words("site")[site], "unit": "effect", "centre": centre}
            shown["limit"] = 1.0 if site == "resid_pre" else limit
            drawn.append(panels.add(partial(draw, own, **shown), title=words("site")[site]))
        groups.append({"mode": mode, "centre": f"{centre:.0f}", "panels": drawn})
    return {"patching": groups, "patching_limit": wording.number(limit)}


def _furthest(table: pd.DataFrame) -> float | None:
    """The largest distance of an effect from "no effect", over all modes; None where nothing has a value."""
    if not len(table):
        return None
    centre = pd.Series([_NO_EFFECT.get(str(mode), 0.0) for mode in table["mode"]], index=table.index, dtype=float)
    far = (table["effect"] - centre).abs().max()
    return None if wording.is_missing(far) or far == 0 else float(far)


def _attribution(table: pd.DataFrame, compared: pd.DataFrame, panels: Panels) -> list[dict[str, Any]]:
    groups = []
    for onto in dict.fromkeys([*table["onto"], *compared["onto"]]):
        words, unit = _ONTO.get(onto, (onto, ""))
        own = compared[compared["onto"] == onto]
        drawn = []
        if len(own):
            drawn = [
                panels.add(partial(figures.attribution_difference, own, unit=unit), title="Heads: harmful − harmless"),
                panels.add(partial(figures.top_components, own, unit=unit), title="Components that differ most"),
            ]
        groups.append(
            {
                "onto": words,
                "difference": drawn,
                "chance": causal_findings.chance(own),
                "sets": _of_sets(table[table["onto"] == onto], unit, panels),
            }
        )
    return groups


def _of_sets(table: pd.DataFrame, unit: str, panels: Panels) -> list[dict[str, Any]]:
    groups = []
    for name in [name for name in ("harmful", "harmless") if name in set(table["set"])]:
        rows = table[table["set"] == name]
        heads = partial(
            figures.layer_by_head, rows[rows["component"] == "head"], value="value", title="Heads", unit=unit
        )
        drawn = [
            panels.add(heads, title="Heads"),
            panels.add(partial(figures.mlps, rows, unit=unit), title="MLPs"),
        ]
        groups.append({"set": name, "panels": drawn, "sums": _sums(rows)})
    return groups


def _sums(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Sum of each kind of component, and the total that they should add up to."""
    values = rows.groupby("component", sort=False)["value"].sum(min_count=1)
    shown = [
        (str(name).replace("_", " "), wording.number(value, 3, signed=True))
        for name, value in values.items()
        if name != "total"
    ]
    if "total" in values and pd.notna(values["total"]):
        shown.append(("sum of these", wording.number(values.drop("total").sum(), 3, signed=True)))
        shown.append(("measured total", wording.number(values["total"], 3, signed=True)))
    return shown


def _sources(table: pd.DataFrame, panels: Panels) -> list[Panel]:
    return _drawn(panels, table, figures.token_segments, "By part of the prompt")


def _knockout(table: pd.DataFrame, panels: Panels) -> list[Panel]:
    return [
        panel
        for draw, title in (
            (figures.knockout, "Heads"),
            (figures.knockout_mlps, "MLPs"),
            (figures.knockout_cost, "Refusal lost against its cost"),
        )
        for panel in _drawn(panels, table, draw, title)
    ]


def _head_set(table: pd.DataFrame, panels: Panels) -> list[Panel]:
    known = table[table["size"] > 0]
    return _drawn(panels, known, figures.head_set, "The smallest set of heads")


def _circuit(nodes: pd.DataFrame, edges: pd.DataFrame, panels: Panels) -> list[Panel]:
    return _drawn(panels, nodes, partial(figures.circuit, edges=edges), "Heads, MLPs and paths")


def _faithfulness(table: pd.DataFrame, panels: Panels) -> list[Panel]:
    found = dict.fromkeys(table["of"])
    title = "Faithfulness of the circuit"
    return [panels.add(partial(figures.faithfulness, table, of=name), title=title) for name in found]


def _drawn(panels: Panels, table: pd.DataFrame, draw: Callable[[pd.DataFrame], go.Figure], title: str) -> list[Panel]:
    """The figure of a table; nothing where the table has no rows."""
    return [panels.add(partial(draw, table), title=title)] if len(table) else []
