"""Bars and distributions: interventions, attribution of MLPs, wall times, refusal scores of prompts."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style

_INTERVENTIONS = {
    "none": "none",
    "ablate": "ablate carrier",
    "ablate_random": "ablate random",
    "induce": "induce carrier",
    "induce_random": "induce random",
}
_SET_COLOURS = {"harmful": style.POSITIVE, "harmless": style.NEGATIVE}


def interventions(table: pd.DataFrame, *, metric: str = "any_refusal") -> go.Figure:
    """Share of refusals of harmful and harmless prompts by intervention, with 95% intervals (one checkpoint)."""
    rows = table[(table["metric"] == metric) & (table["attack"] == "none") & (table["by"] == "all")]
    rows = rows[rows["suite"].isin(["evaluation_harmful", "evaluation_harmless"])]
    rows = style.drawable(rows, "value", f"{wording.metric_name(metric)} under interventions")
    figure = go.Figure()
    places: list[int] = []
    names: list[str] = []
    for kind in ("harmful", "harmless"):
        own = rows[rows["suite"] == f"evaluation_{kind}"].drop_duplicates("intervention").set_index("intervention")
        order = [name for name in _INTERVENTIONS if name in own.index] + sorted(set(own.index) - set(_INTERVENTIONS))
        own = own.loc[order]
        labels = [wording.for_plotly(_INTERVENTIONS.get(name, name)) for name in order]
        at = list(range(len(places) + (1 if places else 0), len(places) + (1 if places else 0) + len(order)))
        texts = [
            style.hover(
                [
                    f"<b>{label}</b>",
                    f"{kind} prompts: {wording.rate(r['value'])}{style.interval(r)}",
                    f"n = {wording.whole(r['n'])}",
                ]
            )
            for label, (_, r) in zip(labels, own.iterrows(), strict=True)
        ]
        figure.add_trace(
            go.Bar(
                x=at,
                y=style.numbers(own["value"]),
                error_y=_bars(own, width=4),
                name=f"{kind} prompts",
                marker={"color": _SET_COLOURS[kind]},
                text=texts,
                textposition="none",
                hoverinfo="text",
            )
        )
        places, names = places + at, names + labels
    figure.update_layout(bargap=0.35)
    figure.update_yaxes(title="refusal rate", range=[0, 1.03])
    figure.update_xaxes(
        title="intervention", tickangle=-45, tickvals=places, ticktext=names, showgrid=False, zeroline=False
    )
    return style.finish(figure, title="Refusal under interventions", subtitle=wording.counts(rows["n"]), height=360)


def mlps(table: pd.DataFrame, *, title: str = "MLPs", unit: str = "logits") -> go.Figure:
    """Contribution of each layer's MLP (component `mlp` of table `attribution`; one `onto` and `set`): y = layer."""
    rows = style.drawable(table[table["component"] == "mlp"], "value", "the contribution of MLPs").sort_values("layer")
    texts = [
        style.hover(
            [f"<b>MLP {int(r['layer'])}</b>", f"{wording.number(r['value'], 3, signed=True)}{style.interval(r)}"]
        )
        for _, r in rows.iterrows()
    ]
    colours = [style.POSITIVE if v >= 0 else style.NEGATIVE for v in rows["value"].fillna(0)]
    figure = go.Figure(
        go.Bar(
            x=style.numbers(rows["value"]),
            y=list(rows["layer"].astype(int)),
            orientation="h",
            marker={"color": colours},
            error_x={
                "type": "data",
                "array": style.numbers(rows["high"] - rows["value"]),
                "arrayminus": style.numbers(rows["value"] - rows["low"]),
                "thickness": 1,
                "width": 2,
                "color": style.WHISKER,
            },
            text=texts,
            textposition="none",
            hoverinfo="text",
        )
    )
    figure.update_xaxes(title=wording.for_plotly(unit))
    figure.update_yaxes(title="layer", showgrid=False)
    return style.finish(
        figure, title=title, subtitle=wording.counts(rows["n"]), height=int(min(760, max(320, 13 * len(rows) + 170)))
    )


def durations(table: pd.DataFrame, *, title: str = "Wall time") -> go.Figure:
    """Wall time of each stage in seconds (tables `stages` and `timings`), longest at the top."""
    rows = style.drawable(table, "seconds", "wall times").sort_values("seconds")
    names = [wording.for_plotly(wording.shortened(stage, 40)) for stage in rows["stage"]]
    texts = [wording.seconds(value) for value in rows["seconds"]]
    places = list(range(len(rows)))
    figure = go.Figure(
        go.Bar(
            x=style.numbers(rows["seconds"]),
            y=places,
            orientation="h",
            marker={"color": style.ARM_COLOURS[0]},
            text=texts,
            textposition="auto",
            hoverinfo="text",
        )
    )
    figure.update_xaxes(title="seconds")
    figure.update_yaxes(tickvals=places, ticktext=names, showgrid=False)
    return style.finish(
        figure,
        title=title,
        subtitle=f"in all {wording.seconds(rows['seconds'].sum())}",
        height=max(180, 24 * len(rows) + 110),
    )


def scores(table: pd.DataFrame, *, score: str = "score") -> go.Figure:
    """Distribution of the refusal score by prompt set (table `scores`, one checkpoint); the hover says who refused.

    Args:
        score: `score` (discovered opening) or `rd_score` (hand-picked tokens, Arditi et al. 2024).
    """
    rows = style.drawable(table, score, f"'{score}' of prompts")
    figure = go.Figure()
    for name, own in rows.groupby("set", sort=True):
        kind = "harmless" if "harmless" in str(name) or str(name) in ("overrefusal", "utility") else "harmful"
        refused = own["refused"].fillna(False)
        texts = [
            style.hover(
                [
                    f"<b>{wording.for_plotly(r.prompt_id)}</b>",
                    wording.number(getattr(r, score), 3, signed=True),
                    "refused" if was else "answered",
                ]
            )
            for r, was in zip(own.itertuples(), refused, strict=True)
        ]
        colour = _SET_COLOURS[kind]
        figure.add_trace(
            go.Box(
                x=style.numbers(own[score]),
                name=wording.for_plotly(wording.set_name(str(name))).replace(" of the ", "<br>of the "),
                orientation="h",
                boxpoints="all",
                jitter=0.6,
                pointpos=0,
                fillcolor="rgba(0,0,0,0)",
                line={"color": colour, "width": 1},
                marker={"color": colour, "size": 4, "opacity": 0.55},
                text=texts,
                hoverinfo="text",
                showlegend=False,
            )
        )
    figure.add_vline(x=0, line={"width": 1, "color": style.AXIS})
    figure.update_xaxes(title="refusal score (log odds)")
    n = f"positive refuses; {wording.counts(rows.groupby('set').size(), 'prompts a set')}"
    return style.finish(figure, title="Refusal score of prompts", subtitle=n, height=140 + 56 * rows["set"].nunique())


def _bars(rows: pd.DataFrame, *, width: int) -> dict:
    up, down = (rows["high"] - rows["value"]).clip(lower=0), (rows["value"] - rows["low"]).clip(lower=0)
    return {
        "type": "data",
        "array": style.numbers(up),
        "arrayminus": style.numbers(down),
        "thickness": 1.2,
        "width": width,
        "color": style.WHISKER,
    }
