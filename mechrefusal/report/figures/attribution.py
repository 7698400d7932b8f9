"""What writes refusal on harmful prompts and not on harmless ones, and from which part of the prompt it is read."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrefusal.report import wording
from mechrefusal.report.figures import heatmaps, style

SEGMENTS = ("before", "instruction", "attack", "after", "target", "opening")


def beyond_chance(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with a column `beyond`: p < 0.05, adjusted for all components.

    Args:
        table: table `attribution_compared`, or rows of it. A missing number is never beyond.
    """
    return table.assign(beyond=style.told(table))


def attribution_difference(
    table: pd.DataFrame, *, title: str = "Heads: harmful − harmless", unit: str = "logits"
) -> go.Figure:
    """Heatmap of heads: what each writes on harmful prompts more than on harmless ones.

    A dot: p < 0.05, adjusted for all components.

    Args:
        table: table `attribution_compared`, one `onto` and checkpoint.
        unit: of the colour bar.
    """
    rows = beyond_chance(style.drawable(table, "difference", "the difference of attributions"))
    figure = heatmaps.layer_by_head(
        rows[rows["component"] == "head"],
        value="difference",
        title=title,
        unit=unit,
        more=_compared,
        marked="beyond",
        mark=style.TOLD,
    )
    return figure.update_layout(title={"subtitle": {"text": _counted(rows)}})


def top_components(table: pd.DataFrame, *, k: int = 15, unit: str = "logits") -> go.Figure:
    """Bars of the `k` components whose contribution differs most between harmful and harmless prompts, largest first.

    Black: the 95% interval of the difference. Grey: the floor, ± the 95th percentile of |difference| when the prompts'
    labels are drawn at random.

    Args:
        table: table `attribution_compared`, one `onto` and checkpoint.
    """
    rows = style.drawable(table[table["component"] != "total"], "difference", "the components that differ most")
    order = rows["difference"].abs().sort_values(ascending=False, kind="stable").index[:k]
    rows = beyond_chance(rows).loc[order].dropna(subset=["difference"]).iloc[::-1]
    names, places = [component_name(row) for _, row in rows.iterrows()], list(range(len(rows)))
    floors = style.numbers(rows["floor"])
    figure = go.Figure(
        go.Bar(
            x=[None if floor is None else 2 * floor for floor in floors],
            base=[0 if floor is None else -floor for floor in floors],
            y=places,
            orientation="h",
            width=0.86,
            name="floor: random labels (95%)",
            marker={"color": "rgba(128,128,128,0.28)"},
            hoverinfo="skip",
        )
    )
    figure.add_trace(
        go.Bar(
            x=style.numbers(rows["difference"]),
            y=places,
            orientation="h",
            width=0.5,
            name="difference (95% interval)",
            marker={"color": [style.POSITIVE if value >= 0 else style.NEGATIVE for value in rows["difference"]]},
            error_x=style.error_bars(rows, "difference", color="#111111"),
            text=[
                style.hover(
                    [f"<b>{name}</b>", f"difference {_signed(r['difference'])}{style.interval(r)}", *_compared(r)]
                )
                for name, (_, r) in zip(names, rows.iterrows(), strict=True)
            ],
            textposition="none",
            hoverinfo="text",
        )
    )
    figure.update_layout(barmode="overlay", showlegend=True, legend={"y": -0.16, "yanchor": "top"})
    figure.update_xaxes(title=wording.for_plotly(unit))
    figure.update_yaxes(tickvals=places, ticktext=names, showgrid=False)
    height = max(300, 24 * len(rows) + 150)
    return style.finish(
        figure, title=f"The {len(rows)} that differ most", subtitle=_counted(rows, n=True), height=height
    )


def token_segments(table: pd.DataFrame) -> go.Figure:
    """Which part of the prompt each top head reads refusal from: stacked bars, harmful and harmless prompts beside.

    Bars to the right add to the refusal logits, to the left take from them; the parts of a head sum to what it writes.

    Args:
        table: table `token_sources` of one checkpoint; rows with `by` other than "segment" are left out.
    """
    rows = style.drawable(table[table["by"] == "segment"], "value", "what the top heads read from")
    heads = list(dict.fromkeys(rows[["layer", "head"]].itertuples(index=False, name=None)))[::-1]
    found = set(rows["name"])
    segments = [name for name in SEGMENTS if name in found] + sorted(found - set(SEGMENTS))
    kinds = [name for name in ("harmful", "harmless") if name in set(rows["set"])]
    figure = make_subplots(
        cols=len(kinds),
        shared_yaxes=True,
        subplot_titles=[f"{kind} prompts" for kind in kinds],
        horizontal_spacing=0.04,
    )
    for place, kind in enumerate(kinds, start=1):
        for number, segment in enumerate(segments):
            own = rows[(rows["set"] == kind) & (rows["name"] == segment)].set_index(["layer", "head"])
            at = [i for i, head in enumerate(heads) if head in own.index]
            if not at:
                continue
            chosen = own.loc[[heads[i] for i in at]]
            figure.add_trace(
                go.Bar(
                    x=style.numbers(chosen["value"]),
                    y=at,
                    orientation="h",
                    name=wording.for_plotly(segment),
                    legendgroup=segment,
                    showlegend=not any(trace.legendgroup == segment for trace in figure.data),
                    marker={"color": style.ARM_COLOURS[number % len(style.ARM_COLOURS)]},
                    text=[_read(row, segment) for _, row in chosen.iterrows()],
                    textposition="none",
                    hoverinfo="text",
                ),
                row=1,
                col=place,
            )
    figure.update_layout(barmode="relative", bargap=0.3, showlegend=True, legend={"y": -0.2, "yanchor": "top"})
    figure.update_annotations(font={"size": 12})
    figure.update_xaxes(title="logits", matches="x")
    figure.update_yaxes(
        tickvals=list(range(len(heads))), ticktext=[wording.head_name(*h) for h in heads], showgrid=False
    )
    height = max(280, 30 * len(heads) + 190)
    return style.finish(figure, title="By part of the prompt", subtitle=wording.counts(rows["n"]), height=height)


def component_name(row: pd.Series) -> str:
    """`L12.H3`, `MLP 4`, `embed`, safe for plotly."""
    kind = str(row["component"])
    if kind == "head":
        return wording.head_name(row["layer"], row["head"])
    return f"MLP {wording.whole(row['layer'])}" if kind == "mlp" else wording.for_plotly(wording.metric_name(kind))


def _signed(value: object) -> str:
    return wording.number(value, 3, signed=True)


def _compared(row: pd.Series) -> list[str]:
    return [
        f"harmful {_signed(row['harmful'])} (n = {wording.whole(row['n_harmful'])})",
        f"harmless {_signed(row['harmless'])} (n = {wording.whole(row['n_harmless'])})",
        f"floor ±{wording.number(row['floor'], 3)}",
        style.TOLD if row["beyond"] else "",
    ]


def _counted(rows: pd.DataFrame, *, n: bool = False) -> str:
    if n:
        sizes = (wording.counts(rows[f"n_{kind}"], f"{kind} prompts") for kind in ("harmful", "harmless"))
        return " and ".join(part for part in sizes if part)
    heads = rows[rows["component"] == "head"]
    return f"{int(heads['beyond'].sum())} of {len(heads)} heads: {style.TOLD}"


def _read(row: pd.Series, segment: str) -> str:
    return style.hover(
        [
            f"<b>{wording.head_name(*row.name)}, {wording.for_plotly(segment)}</b>",
            f"{_signed(row['value'])}{style.interval(row)} logits",
            f"attention {wording.number(row['weight'], 3)}",
            f"n = {wording.whole(row['n'])}",
        ]
    )
