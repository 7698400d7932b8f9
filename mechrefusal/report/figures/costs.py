"""What a training step costs, and where its time goes."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.style import Look

PARTS = ("refresh", "forward", "backward", "optimizer", "other")
_COLOURS = dict(zip(PARTS, ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#b3b3b3"), strict=True))
_NARROW = 0.05


def step_costs(table: pd.DataFrame) -> pd.DataFrame:
    """Totals of each arm (table `training`); a value that no step has is NaN.

    Returns:
        One row an arm: `steps` (logged), `seconds` (sum) and `seconds_a_step` (median); the share of the wall time of
        `refresh`, `forward`, `backward`, `optimizer` and `other` (the rest) in the `steps_timed` steps that have
        `seconds` and at least one part; `attack_tokens` (sum), `tokens_a_second` (of the refreshes), `peak_mib` (MiB).
    """
    return pd.DataFrame([_costs(arm, table[table["arm"] == arm]) for arm in (style.arms(table) if len(table) else [])])


def step_time(table: pd.DataFrame) -> go.Figure:
    """Where the wall time of a step goes: one stacked bar of shares an arm, beside it seconds a step (`training`)."""
    costs = step_costs(table)
    if not len(costs) or not costs["steps_timed"].any():
        raise MechrefusalError(
            "cannot draw where the time of a step goes: no row of table 'training' has 'seconds' and one of "
            f"{', '.join(f'seconds_{part}' for part in PARTS[:-1])}"
        )
    costs, canvas = costs.assign(place=range(len(costs))), Canvas("step_time")
    for part in PARTS:
        subset = costs.assign(part=part, share=costs[part].fillna(0.0), measured=costs[part])
        written = [f"{share:.0%}" if share >= _NARROW else "" for share in subset["share"]]
        inside: Look = {"textposition": "inside", "insidetextanchor": "middle", "textangle": 0, "written": written}
        look = inside | {"textfont": {"color": "black"}, "colour": _COLOURS[part], "ends": None}
        canvas.bars(subset, "share", "place", part, **look)
    canvas.figure.update_layout(barmode="stack", bargap=0.35, legend={"traceorder": "normal"}, margin={"r": 32})
    canvas.x(range=[0, 1.001], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%")
    each = [
        f"{wording.seconds(row.seconds_a_step)} a step" if row.steps_timed else "parts not recorded"
        for row in costs.itertuples()
    ]
    names = [f"{wording.for_plotly(arm)}<br>{time}" for arm, time in zip(costs["arm"], each, strict=True)]
    canvas.categories([""] * len(names), ticktext=names, ticklabelstandoff=4)
    return canvas.finish(height=170 + 60 * len(costs))


def _costs(arm: str, rows: pd.DataFrame) -> dict[str, object]:
    """One row of `step_costs`."""
    names = [f"seconds_{part}" for part in PARTS[:-1]]
    timed = rows[rows["seconds"].notna() & rows[names].notna().any(axis=1)]
    parts = timed[names].sum(min_count=1)
    whole = max(float(timed["seconds"].sum()), float(parts.sum()))  # the parts' clocks may add up to a little more
    rest = whole - float(parts.sum())
    shares = {part: value / whole if whole else float("nan") for part, value in zip(PARTS, [*parts, rest], strict=True)}
    attacked = rows[rows["attack_tokens"].notna() & (rows["seconds_refresh"] > 0)]
    spent = float(attacked["seconds_refresh"].sum())
    return {
        "arm": arm,
        "steps": len(rows),
        "steps_timed": len(timed),
        "seconds": float(rows["seconds"].sum(min_count=1)),
        "seconds_a_step": float(rows["seconds"].median()),
        **shares,
        "attack_tokens": float(rows["attack_tokens"].sum(min_count=1)),
        "tokens_a_second": float(attacked["attack_tokens"].sum()) / spent if spent else float("nan"),
        "peak_mib": float(rows["peak_mib"].max()),
    }
