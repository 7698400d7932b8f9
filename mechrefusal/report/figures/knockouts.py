"""What refusal loses without a head or an MLP, what that costs, and the smallest set of heads that it needs."""

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrefusal.report import wording
from mechrefusal.report.figures import heatmaps, style
from mechrefusal.report.figures.attribution import component_name

_LEAST_KL = 1e-5
_NAMED = 8
_SYMBOLS = {"head": ("circle", style.ARM_COLOURS[0]), "mlp": ("square", style.ARM_COLOURS[1])}
_OTHER = ("diamond", style.ARM_COLOURS[2])


def knockout(table: pd.DataFrame, *, title: str = "Heads") -> go.Figure:
    """Heatmap of heads: change of the refusal score of harmful prompts without each, nats.

    A dot: p < 0.05, adjusted for all components. Blue: refusal falls without the head, it carried refusal.

    Args:
        table: table `knockout` of one checkpoint.
    """
    rows = style.drawable(table[table["component"] == "head"], "refusal", "the knock-out of heads")
    rows = rows.assign(told=style.told(rows))
    figure = heatmaps.layer_by_head(
        rows, value="refusal", title=title, unit="nats", more=_cost, marked="told", mark=style.TOLD
    )
    return figure.update_layout(title={"subtitle": {"text": _subtitle(rows)}})


def knockout_mlps(table: pd.DataFrame, *, title: str = "MLPs") -> go.Figure:
    """Bars of MLPs: change of the refusal score of harmful prompts without each, nats, with 95% intervals; y = layer.

    Args:
        table: table `knockout` of one checkpoint.
    """
    rows = style.drawable(table[table["component"] == "mlp"], "refusal", "the knock-out of MLPs").sort_values("layer")
    figure = go.Figure(
        go.Bar(
            x=style.numbers(rows["refusal"]),
            y=[int(layer) for layer in rows["layer"]],
            orientation="h",
            marker={"color": [style.POSITIVE if value >= 0 else style.NEGATIVE for value in rows["refusal"].fillna(0)]},
            error_x=style.error_bars(rows, "refusal", color=style.WHISKER, thickness=1, width=2),
            text=[_hover(row) for _, row in rows.iterrows()],
            textposition="none",
            hoverinfo="text",
        )
    )
    figure.update_xaxes(title="change of refusal (nats)")
    figure.update_yaxes(title="layer", showgrid=False)
    return style.finish(figure, title=title, subtitle=_subtitle(rows), height=heatmaps.height_of(len(rows)))


def knockout_cost(table: pd.DataFrame) -> go.Figure:
    """Change of refusal against its cost: KL of harmless prompts' next token (log scale), one point a component.

    Far down and left: refusal goes, and nothing else. The largest changes with p < 0.05, adjusted for all, are named.

    Args:
        table: table `knockout` of one checkpoint.
    """
    rows = style.drawable(table, "refusal", "the cost of knock-outs")
    rows = style.drawable(rows, "kl", "the cost of knock-outs").dropna(subset=["refusal", "kl"])
    clear = rows.loc[style.told(rows), "refusal"].abs()
    named = set(clear.sort_values(ascending=False, kind="stable").index[:_NAMED])
    figure = go.Figure()
    for kind in dict.fromkeys(rows["component"]):
        own = rows[rows["component"] == kind]
        symbol, colour = _SYMBOLS.get(kind, _OTHER)
        names = {"head": "heads", "mlp": "MLPs"}
        figure.add_trace(
            go.Scatter(
                x=[max(float(value), _LEAST_KL) for value in own["kl"]],
                y=style.numbers(own["refusal"]),
                error_y=_bars_of(own, named),
                mode="markers",
                name=names.get(kind, wording.for_plotly(kind)),
                marker={"symbol": symbol, "color": colour, "size": 7, "opacity": 0.75},
                hovertext=[_hover(row) for _, row in own.iterrows()],
                hoverinfo="text",
            )
        )
    for x, y, name in _apart(rows, named):
        look = {"showarrow": False, "font": {"size": 10}, "xanchor": "left", "xshift": 6, "yshift": 8}
        figure.add_annotation(x=x, y=y, text=name, **look)
    figure.add_hline(y=0, line={"width": 1, "color": style.AXIS})
    top = float(rows["kl"].max())
    figure.update_xaxes(
        title="KL on harmless prompts (nats)",
        type="log",
        dtick=1,
        exponentformat="power",
        range=[min(math.log10(max(float(rows["kl"].min()), _LEAST_KL)), -2) - 0.2, math.log10(max(top, 1e-3)) + 0.7],
    )
    figure.update_yaxes(title="change of refusal (nats)", zeroline=False)
    figure.update_layout(showlegend=True, legend={"y": -0.26, "yanchor": "top"})
    return style.finish(
        figure,
        title="Refusal lost against its cost",
        subtitle=_subtitle(rows),
        height=heatmaps.height_of(rows["layer"].nunique()),
    )


def head_set(table: pd.DataFrame) -> go.Figure:
    """Share of refusal that is gone, and the cost, by size of the greedy set of heads; below each size the head added.

    Grey: random sets of the same size, their mean and (of the share) range. Dash-dotted: the set on prompts that the
    search did not see, of their own gap. Dotted: half of refusal. Bands are 95%
    intervals over prompts.

    Args:
        table: table `head_sets` of one checkpoint.
    """
    rows = table[table["size"] > 0]
    rows = style.drawable(rows, "share", "the smallest set of heads").sort_values("size")
    for name, source in {
        "share_low": "high",
        "share_high": "low",
        "random_share": "random_refusal",
        "random_low": "random_refusal_most",
        "random_high": "random_refusal_least",
    }.items():
        rows = rows.assign(**{name: -rows[source] / rows["gap"]})
    measures = {
        "share": ("Share of refusal gone", "share", ("share_low", "share_high"), "random_share", "held_out_share"),
        "harmless": ("Change of harmless score", "nats", ("harmless_low", "harmless_high"), "random_harmless", ""),
        "kl": ("KL, harmless prompts", "nats", ("kl_low", "kl_high"), "random_kl", "held_out_kl"),
    }  # fmt: skip
    titles = [title for title, *_ in measures.values()]
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.09)
    sizes = [int(size) for size in rows["size"]]
    texts = [_set(row) for _, row in rows.iterrows()]
    for place, (name, (_, unit, ends, random, unseen)) in enumerate(measures.items(), start=1):
        shaded = [(("random_low", "random_high"), style.NEUTRAL)] if name == "share" else []
        for (low, high), colour in [*shaded, (ends, style.ARM_COLOURS[0])]:
            area = style.between(rows, "size", low, high, colour)
            if area is not None:
                figure.add_trace(area, row=place, col=1)
        dashed = {"color": style.NEUTRAL, "width": 1.5, "dash": "dash"}
        for column, label, line in (
            (random, "random sets", dashed),
            (unseen, "the set on unseen prompts", {**dashed, "color": style.ARM_COLOURS[0], "dash": "dashdot"}),
            (name, "the set found", {"color": style.ARM_COLOURS[0], "width": 2}),
        ):
            values = rows[column] if column else pd.Series(dtype=float)
            if not values.notna().any():
                continue
            bars = style.error_bars(rows, name, *ends) if column == name and len(rows) == 1 else None
            look = {"mode": "lines+markers", "line": line, "marker": {"size": 6}, "error_y": bars}
            known = any(trace.legendgroup == label for trace in figure.data)
            figure.add_trace(
                go.Scatter(
                    x=sizes,
                    y=style.numbers(values),
                    name=label,
                    legendgroup=label,
                    showlegend=not known,
                    text=texts,
                    hoverinfo="text",
                    **look,
                ),
                row=place,
                col=1,
            )
        figure.update_yaxes(title=unit, nticks=5, row=place, col=1)
    figure.add_hline(y=0.5, line={"width": 1.2, "dash": "dot", "color": style.WHISKER}, row=1, col=1)
    ticks = [
        f"{size}<br>{wording.head_name(r.layer, r.head)}" for size, r in zip(sizes, rows.itertuples(), strict=True)
    ]
    figure.update_xaxes(tickvals=sizes, range=[min(sizes) - 0.5, max(sizes) + 0.5])
    figure.update_xaxes(ticktext=ticks, title="heads knocked out, and the one added", row=3, col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 12})
    figure.update_layout(showlegend=True, legend={"y": -0.22, "yanchor": "top"})
    return style.finish(figure, title="The smallest set of heads", subtitle=_subtitle(rows), height=560)


def _subtitle(rows: pd.DataFrame) -> str:
    sizes = [wording.counts(rows[f"n_{kind}"], f"{kind} prompts") for kind in ("harmful", "harmless")]
    how = sorted({wording.for_plotly(name) for name in rows["how"]}) if "how" in rows else []
    replaced = f"{'/'.join(how)} ablation" if how else ""
    return "; ".join(part for part in (replaced, " and ".join(size for size in sizes if size)) if part)


def _bars_of(rows: pd.DataFrame, named: set) -> dict | None:
    """Intervals of the named components only: hundreds would hide each other."""
    known = rows.index.isin(list(named))
    shown = rows.assign(**{end: rows[end].where(known) for end in ("low", "high")})
    return style.error_bars(shown, "refusal", color=style.WHISKER, thickness=1)


def _apart(rows: pd.DataFrame, named: set) -> list[tuple[float, float, str]]:
    """(log10 of KL, refusal, name) of named components, largest first; a name that would cover one is left out."""
    tall = float(rows["refusal"].max() - rows["refusal"].min()) or 1.0
    placed: list[tuple[float, float, str]] = []
    for _, row in rows.loc[list(named)].sort_values("refusal", key=lambda v: -v.abs(), kind="stable").iterrows():
        x, y = math.log10(max(float(row["kl"]), _LEAST_KL)), float(row["refusal"])
        if all(abs(x - a) > 1.2 or abs(y - b) > 0.05 * tall for a, b, _ in placed):
            placed.append((x, y, component_name(row)))
    return placed


def _cost(row: pd.Series) -> list[str]:
    return [
        f"harmless prompts {wording.number(row['harmless'], 3, signed=True)}"
        f"{style.interval(row, 'harmless_low', 'harmless_high')}",
        f"kl {wording.number(row['kl'], 4)}{style.interval(row, 'kl_low', 'kl_high')}",
        f"n = {wording.whole(row['n_harmful'])} and {wording.whole(row['n_harmless'])} prompts",
    ]


def _hover(row: pd.Series) -> str:
    refusal = f"refusal {wording.number(row['refusal'], 3, signed=True)}{style.interval(row)}"
    return style.hover([f"<b>{component_name(row)}</b>", refusal, *_cost(row)])


def _set(row: pd.Series) -> str:
    unseen = (
        ""
        if wording.is_missing(row["held_out_share"])
        else f"{wording.whole(row['n_held_out'])} unseen prompts: {wording.percent(row['held_out_share'])}"
    )
    random = (
        ""
        if wording.is_missing(row["random_share"])
        else f"{wording.whole(row['n_random'])} random sets: {wording.percent(row['random_share'])}, "
        f"{wording.percent(row['random_low'])} to {wording.percent(row['random_high'])}"
    )
    return style.hover(
        [
            f"<b>{wording.whole(row['size'])} heads, {wording.head_name(row['layer'], row['head'])} added</b>",
            f"gone {wording.percent(row['share'])} of {wording.number(row['gap'])} nats",
            f"refusal {wording.number(row['refusal'], 3, signed=True)}{style.interval(row)}",
            *_cost(row),
            unseen,
            random,
        ]
    )
