"""Whether the same heads carry refusal at two checkpoints: how many of the top ones they share."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import heatmaps, style
from mechrefusal.report.order import checkpoint_order

Head = tuple[int, int]


def top_heads(table: pd.DataFrame, value: str, k: int) -> dict[tuple[str, int], list[Head]]:
    """The `k` heads of largest absolute `value` of each (arm, step); a checkpoint with fewer values has none."""
    rows = table.assign(**{value: table[value].abs()}).dropna(subset=[value])
    rows = rows[rows["head"] >= 0]
    found = {}
    for (arm, step), own in rows.groupby(["arm", "step"], sort=False):
        best = own.sort_values(value, ascending=False, kind="stable").drop_duplicates(["layer", "head"])[:k]
        if len(best) == k:
            found[str(arm), int(step)] = [(int(row.layer), int(row.head)) for row in best.itertuples()]
    return found


def shared_heads(table: pd.DataFrame, *, value: str = "raw", k: int = 10, title: str = "Shared top heads") -> go.Figure:
    """How many of their `k` top heads (largest absolute `value`) two checkpoints share; the hover names them.

    Args:
        table: one row a head and checkpoint, with `arm`, `step`, `layer`, `head`: table `patching` of several
            checkpoints with site `z` and one mode, or `knockout` with component `head` and value `refusal`.

    Raises:
        MechrefusalError: fewer than two checkpoints have `k` heads with a value, or there is no such column.
    """
    if value not in table:
        raise MechrefusalError(f"cannot draw shared heads: the table has no column '{value}'")
    found = top_heads(table, value, k)
    if len(found) < 2:
        raise MechrefusalError(
            f"cannot draw shared heads: {len(found)} checkpoints have {k} heads with a value of '{value}', it takes two"
        )
    keys = sorted(found, key=checkpoint_order)
    labels = [wording.for_plotly(f"{wording.shortened(arm, 16)} {step}") for arm, step in keys]
    counts = [[len(set(found[a]) & set(found[b])) for b in keys] for a in keys]
    texts = [
        [
            style.hover(
                [
                    f"<b>{one} and {other}</b>",
                    f"{len(set(found[a]) & set(found[b]))} of {k} shared",
                    ", ".join(wording.head_name(*head) for head in found[a] if head in found[b]),
                ]
            )
            for b, other in zip(keys, labels, strict=True)
        ]
        for a, one in zip(keys, labels, strict=True)
    ]
    places = list(range(len(keys)))
    figure = heatmaps.written_grid(np.array(counts), counts, texts, title="heads", most=k)
    shown = {"tickvals": places, "ticktext": labels, "showgrid": False, "zeroline": False}
    figure.update_xaxes(tickangle=-90 if len(keys) > 3 else 0, **shown)
    figure.update_yaxes(range=[len(keys) - 0.5, -0.5], **shown)
    n = len(table[table["head"] >= 0].drop_duplicates(["layer", "head"]))
    subtitle = f"of the top {k}; {wording.number(k * k / n, 1)} expected of chance among {n} heads"
    return style.finish(figure, title=title, subtitle=subtitle, height=int(min(720, 190 + 34 * len(keys))))
