"""How many directions refusal takes: bypass against the size of a subspace, and the smallest that is enough."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import lines, style

FAMILIES = {
    "categories": "categories of harm",
    "pca": "PCA",
    "successive": "successive",
    "cone": "cone (learned)",
    "random": "random",
    "random_cone": "cone of r and random",
}
_SYMBOLS = {
    "categories": "circle",
    "pca": "square",
    "successive": "diamond",
    "cone": "triangle-up",
    "random": "cross",
    "random_cone": "x",
}


def subspaces(table: pd.DataFrame, *, baseline: float | None = None) -> go.Figure:
    """Refusal score on harmful prompts with a subspace ablated, against its size k: one line a family of subspaces.

    Bars: 95% intervals over prompts. Filled points are admissible, open ones are not (the hover says why); the star
    marks the smallest admissible k that does 90% of what the best one does. Random subspaces are the floor, and for
    learned cones those of r and random directions: cones of k > 1 are the mean over directions drawn from them.

    Args:
        table: table `subspaces` of one checkpoint.
        baseline: score without intervention (`baseline_harmful` of table `carrier`); a dotted line.
    """
    rows = style.drawable(table, "bypass", "subspaces")
    figure, names = go.Figure(), _families(rows)
    for place, family in enumerate(names):
        own = rows[rows["family"] == family].sort_values("k")
        look, symbol = _look(family, names), _SYMBOLS.get(family, "hexagon")
        shapes = [symbol if flag else f"{symbol}-open" for flag in own["admissible"]]
        figure.add_trace(
            go.Scatter(
                x=[float(k) + (place - (len(names) - 1) / 2) * 0.06 for k in own["k"]],
                y=style.numbers(own["bypass"]),
                error_y=style.error_bars(own, "bypass", "bypass_low", "bypass_high", color=look["color"]),
                mode="lines+markers",
                name=wording.for_plotly(FAMILIES.get(family, family)),
                line=look,
                marker={"symbol": shapes, "size": 8, "color": look["color"], "line": {"width": 1.5}},
                text=[_subspace(row) for _, row in own.iterrows()],
                hoverinfo="text",
            )
        )
        chosen = own[own["smallest"]]
        if len(chosen):
            figure.add_trace(
                go.Scatter(
                    x=[float(k) + (place - (len(names) - 1) / 2) * 0.06 for k in chosen["k"]],
                    y=style.numbers(chosen["bypass"]),
                    mode="markers",
                    name="smallest that is enough",
                    marker={
                        "symbol": "star",
                        "size": 17,
                        "color": look["color"],
                        "line": {"width": 1, "color": "#111"},
                    },
                    text=[_subspace(row) for _, row in chosen.iterrows()],
                    hoverinfo="text",
                )
            )
    sizes = sorted({int(k) for k in rows["k"]})
    if not wording.is_missing(baseline):
        ends, line = [sizes[0] - 0.35, sizes[-1] + 0.35], {"dash": "dot", "width": 1.5, "color": style.WHISKER}
        text = f"no intervention {wording.number(baseline, 3)}"
        look = {"mode": "lines", "line": line, "text": text, "hoverinfo": "text"}
        figure.add_trace(go.Scatter(x=ends, y=[baseline, baseline], name="no intervention", **look))
    figure.update_xaxes(title="directions ablated (k)", tickvals=sizes)
    figure.update_yaxes(title="bypass: refusal score (nats)")
    figure.update_layout(legend={"y": -0.2, "yanchor": "top"})
    subtitle = "; ".join(
        part for part in (wording.counts(rows["n"], "harmful prompts"), "open: not admissible") if part
    )
    return style.finish(figure, title="Bypass of subspaces", subtitle=subtitle, height=470)


def smallest_k(table: pd.DataFrame) -> go.Figure:
    """The smallest k that is enough over optimiser steps, one line an arm (table `subspaces` of several checkpoints).

    A checkpoint where no subspace is admissible, or enough, has no point.
    """
    chosen = table[table["smallest"]]
    rows = style.drawable(chosen, "k", "the smallest subspace that is enough")
    asked = table[["arm", "step"]].drop_duplicates()
    rows = asked.merge(rows.drop_duplicates(["arm", "step"]), on=["arm", "step"], how="left")
    figure = lines.trajectory(
        rows, value="k", title="Directions that are enough", subtitle="no point: none is", unit="smallest k"
    )
    for trace, arm in zip(figure.data, style.arms(rows), strict=True):
        trace.text = [_smallest(row) for _, row in style.with_base(rows, arm).iterrows()]
    top = int(max(5, rows["k"].max()))
    figure.update_yaxes(range=[0, top + 0.5], dtick=1)
    return figure


def _families(rows: pd.DataFrame) -> list[str]:
    found = set(rows["family"])
    return [name for name in FAMILIES if name in found] + sorted(found - set(FAMILIES))


def _look(family: str, names: list[str]) -> dict:
    if family in ("random", "random_cone"):
        return {"color": style.NEUTRAL, "width": 1.5, "dash": "dash" if family == "random" else "dot"}
    return {"color": style.ARM_COLOURS[names.index(family) % len(style.ARM_COLOURS)], "width": 2}


def _subspace(row: pd.Series) -> str:
    name = wording.for_plotly(FAMILIES.get(str(row["family"]), row["family"]))
    state = "admissible" if row["admissible"] else "not admissible"
    if row["rejected_because"]:
        state = f"{state}: {wording.for_plotly(row['rejected_because'])}"
    return style.hover(
        [
            f"<b>{name}, k = {wording.whole(row['k'])}</b>",
            f"bypass {wording.number(row['bypass'], 3)}{style.interval(row, 'bypass_low', 'bypass_high')}",
            f"induce {wording.number(row['induce'], 3)}",
            f"kl {wording.number(row['kl'], 3)}{style.interval(row, 'kl_low', 'kl_high')}",
            *_drawn(row),
            f"share of the best {wording.percent(row['share_of_best'])}",
            state,
            wording.for_plotly(row.get("reason", "")),
        ]
    )


def _drawn(row: pd.Series) -> list[str]:
    """What a cone's scores are means over, and the worst of it."""
    n = row["n_sampled"]
    if not n:
        return []
    worst = ", ".join(f"{name} {wording.number(row[f'{name}_worst'], 3)}" for name in ("bypass", "induce", "kl"))
    return [
        f"mean of {wording.whole(n)} directions drawn from the cone; worst {worst}",
        f"admissible by themselves {wording.percent(row['share_admissible'])}",
    ]


def _smallest(row: pd.Series) -> str:
    head = f"<b>{wording.for_plotly(row['arm'])}, step {int(row['step'])}</b>"
    return head if pd.isna(row["k"]) else style.hover([head, _subspace(row)])
