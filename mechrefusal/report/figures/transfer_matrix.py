"""Whether a carrier found at one checkpoint is one at another: a matrix of sources and targets."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import heatmaps, style
from mechrefusal.report.order import checkpoint_order

_EFFECTS = {
    "bypass": ("What ablation takes away", "nats"),
    "induce": ("What putting it in reaches", "nats"),
}
_CLEAR = "clear of random"


def transfer(table: pd.DataFrame, *, effect: str = "bypass") -> go.Figure:
    """Heatmap of a direction's effect at other checkpoints: x = target, y = source (table `transfer`).

    A dot marks effects that are clear of a random direction: the 95% interval of the change, prompt by prompt, excludes
    the random one, on the side of more effect; under ablation the directions of both halves of the direction prompts
    must also take away more. The hover text has what these do. On the diagonal, where the prompts chose the direction,
    what is taken away is that of every prompt under what the other prompts choose, where that is known. A source with
    an asterisk has no carrier: its best candidate stands in.

    Args:
        effect: `bypass`: the target's score on harmful prompts without intervention minus that with the direction
            ablated (nats; positive takes refusal away). `induce`: score on harmless prompts with it put in (nats;
            positive means refusal).
    """
    if effect not in _EFFECTS:
        raise MechrefusalError(f"unknown effect '{effect}' of a transfer: expected one of {', '.join(_EFFECTS)}")
    shown = _taken_away(table) if effect == "bypass" else table["induce"]
    rows = style.drawable(table.assign(shown=shown), "shown", f"the transfer of '{effect}'")
    sources, targets = (_places(rows, side) for side in ("source", "target"))
    instead = {_key(row, "source") for _, row in rows.iterrows() if str(row["kind"]) == "best candidate"}
    values = np.full((len(sources), len(targets)), np.nan)
    texts = [["not measured" for _ in targets] for _ in sources]
    clear: list[tuple[int, int]] = []
    for _, row in rows.iterrows():
        i, j = sources.index(_key(row, "source")), targets.index(_key(row, "target"))
        values[i, j], texts[i][j] = row["shown"], _cell(row)
        if _is_clear(row, effect):
            clear.append((j, i))
    name, unit = _EFFECTS[effect]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=list(range(len(targets))),
            y=list(range(len(sources))),
            text=texts,
            hoverinfo="text",
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
        )
    )
    if clear:
        marker = {"symbol": "circle", "size": 6, "color": "#111111", "line": {"color": "#ffffff", "width": 1.2}}
        x, y = zip(*clear, strict=True)
        look = {"mode": "markers", "name": _CLEAR, "marker": marker, "hoverinfo": "skip", "showlegend": True}
        figure.add_trace(go.Scatter(x=list(x), y=list(y), **look))
    figure.update_layout(coloraxis=heatmaps.colour_axis([values], 0.0, None, unit))
    shown = {"showgrid": False, "zeroline": False}
    named = [f"{_label(key)}{'*' if key in instead else ''}" for key in sources]
    figure.update_xaxes(
        title="at (target)", tickvals=list(range(len(targets))), ticktext=[_label(key) for key in targets], **shown
    )
    figure.update_xaxes(tickangle=-90 if len(targets) > 3 else 0)
    figure.update_yaxes(
        title="from (source)",
        tickvals=list(range(len(sources))),
        ticktext=named,
        range=[len(sources) - 0.5, -0.5],
        **shown,
    )
    counted = wording.counts(rows[f"n_{'harmful' if effect == 'bypass' else 'harmless'}"])
    note = "* no carrier: best candidate" if instead else ""
    subtitle = "; ".join(part for part in (counted, note) if part)
    return style.finish(figure, title=name, subtitle=subtitle, height=int(min(820, 250 + 34 * len(sources))))


def _taken_away(rows: pd.DataFrame) -> pd.Series:
    """What ablation takes away; from prompts that did not choose the direction, where they did choose it."""
    lowered = rows["baseline_harmful"] - rows["bypass"]
    return lowered.mask(lowered.notna() & rows["decrease_held_out"].notna(), rows["decrease_held_out"])


def _key(row: pd.Series, side: str) -> tuple[str, int]:
    return str(row[f"arm_{side}"]), int(row[f"step_{side}"])


def _places(rows: pd.DataFrame, side: str) -> list[tuple[str, int]]:
    found = {_key(row, side) for _, row in rows.iterrows()}
    return sorted(found, key=checkpoint_order)


def _label(key: tuple[str, int]) -> str:
    return wording.for_plotly(f"{wording.shortened(key[0], 16)} {key[1]}")


def _is_clear(row: pd.Series, effect: str) -> bool:
    """The paired interval of the change excludes what a random direction does, as does each half of the direction
    prompts where that is known; missing numbers never do."""
    if effect == "bypass":
        half, low = row["decrease_half_low"], row["decrease_low"]
        if not wording.is_missing(row["decrease_held_out_low"]):
            half, low = half - (row["decrease"] - row["decrease_held_out"]), row["decrease_held_out_low"]
        random, low = row["random_decrease"], [low, *([] if wording.is_missing(half) else [half])]
    else:
        random, low = row["random_induce"] - row["baseline_harmless"], [row["rise_low"]]
    return not any(map(wording.is_missing, [random, *low])) and bool(min(low) > random)


def _cell(row: pd.Series) -> str:
    source, target = (_label(_key(row, side)) for side in ("source", "target"))
    where = f"{row['kind']}: layer {wording.whole(row['layer'])}, position {wording.whole(row['position'])}"
    lines = [f"<b>{source} → {target}</b>", where]
    for name, side in (("bypass", "harmful"), ("induce", "harmless")):
        lines += [
            f"{name} {wording.number(row[name])}{style.interval(row, f'{name}_low', f'{name}_high')}",
            f"  random {wording.number(row[f'random_{name}'])}, without {wording.number(row[f'baseline_{side}'])}, "
            f"n = {wording.whole(row[f'n_{side}'])}",
        ]
        if name == "bypass":
            lines += [*_held_out(row), *_halves(row)]
    lines.append(f"kl {wording.number(row['kl'], 3)}")
    return style.hover([*lines, wording.for_plotly(row.get("reason", ""))])


def _held_out(row: pd.Series) -> list[str]:
    if wording.is_missing(row["decrease_held_out"]):
        return []
    ends = style.interval(row, "decrease_held_out_low", "decrease_held_out_high")
    return [f"  prompts that did not choose it lose {wording.number(row['decrease_held_out'])}{ends}"]


def _halves(row: pd.Series) -> list[str]:
    low, high = row["decrease_half_low"], row["decrease_half_high"]
    if wording.is_missing(low) or wording.is_missing(high):
        return []
    return [f"  halves of the direction prompts take away {wording.number(low)} and {wording.number(high)}"]
