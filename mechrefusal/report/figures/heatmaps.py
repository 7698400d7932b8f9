"""Maps of a model: layer by head, and layer by position."""

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording
from mechrefusal.report.figures import axes, style
from mechrefusal.report.figures.axes import largest, map_height
from mechrefusal.report.figures.canvas import Canvas
from mechrefusal.report.figures.catalogue import position_name, word
from mechrefusal.report.figures.style import Look


def layer_by_head(
    table: pd.DataFrame,
    *,
    value: str | None = None,
    title: str = "",
    unit: str = "",
    centre: float = 0.0,
    limit: float | None = None,
    marked: str = "",
    mark: str = "marked",
) -> go.Figure:
    """Map of heads: x = head, y = layer, colour = `value`, centred at `centre` (the value that means "no effect").

    Args:
        table: rows with `layer`, `head` (rows with head -1 are left out) and a value; `raw`, `n`, `low`, `high` go into
            the hover. One row a head and checkpoint: filter `site`, `mode`, `onto` and `set` first. Several
            checkpoints become panels.
        value: column to draw; `effect` if there is one, else `value`.
        unit: of the colour bar; by default what the catalogue knows of `value`.
        limit: colour saturates at `centre` ± limit; the largest deviation by default.
        marked: column of flags; its true cells get a dot, which `mark` names in the legend.
    """
    rows = table[table["head"] >= 0]
    value, panels = _panels(rows, value, "head")
    look: Look = {"title": title, "centre": centre, "limit": limit, "marked": marked, "mark": mark}
    return layer_map("layer_by_head", panels, "head", value, unit=unit or word("unit", value), **look)


def layer_by_position(
    table: pd.DataFrame,
    *,
    value: str | None = None,
    title: str = "",
    unit: str = "",
    centre: float | None = 0.0,
    limit: float | None = None,
    tokens: Mapping[int, str] | None = None,
) -> go.Figure:
    """Map of token positions: x = position counted from the end of the prompt, y = layer, colour = `value`.

    Args:
        table: rows with `layer`, `position` and a value (table `patching` with site `resid_pre`, or `directions`). One
            row a (layer, position) and checkpoint; several checkpoints become panels.
        centre: as in `layer_by_head`; None draws an unsigned value on a sequential scale.
        tokens: token string of each position; by default the table's own column `token`.
    """
    rows = table[table["site"] != "z"] if "site" in table else table
    value, panels = _panels(rows, value, "position")
    known = position_tokens(rows) if tokens is None else tokens
    look: Look = {"title": title, "centre": centre, "limit": limit, "tokens": known}
    return layer_map("layer_by_position", panels, "position", value, unit=unit or word("unit", value), **look)


def layer_map(
    name: str,
    panels: Sequence[tuple[str, pd.DataFrame]],
    across: str,
    value: str,
    *,
    unit: str,
    title: str = "",
    centre: float | None = 0.0,
    limit: float | None = None,
    tokens: Mapping[int, str] | None = None,
    marked: str = "",
    mark: str = style.CLEAR,
    columns: int = 4,
    subtitle: str = "",
    **names: str,
) -> go.Figure:
    """Maps side by side on one scale: y = layer, x = `across` (`head` or `position`), colour = `value`.

    Args:
        name: of the figure in the catalogue.
        panels: (title, rows) of each map; a single one without a title has no heading.
        subtitle: in place of the number of prompts.
        names: what stands in the catalogue's title.
    """
    most = max(rows["layer"].nunique() for _, rows in panels)
    titles = [title for title, _ in panels if title]
    canvas, cells = Canvas(name, titles, columns=columns, panel_height=map_height(most)), []
    for panel, (heading, rows) in enumerate(panels):
        if (twice := rows.duplicated(["layer", across])).any():
            row = rows[twice].iloc[0]
            raise MechrefusalError(
                f"several rows for layer {row['layer']}, {across} {row[across]}: "
                "filter the table by site, mode, onto, set or checkpoint before drawing it"
            )
        down = axes.numbers(rows["layer"])
        columns_axis = axes.numbers(rows["head"]) if across == "head" else axes.positions(rows["position"], tokens)
        cells.append(canvas.matrix(rows, value, down, columns_axis, panel=panel, name=wording.for_plotly(heading)))
        if across == "head":
            canvas.x(panel, tickvals=list(columns_axis.order))
        if marked:
            canvas.marks(list(rows[marked]), down, columns_axis, mark, panel=panel)
    middle = 0.0 if centre is None else centre
    limit = None if centre is None else limit or largest(cells, middle)
    canvas.colours(unit, limit=limit, centre=middle)
    everything = pd.concat([rows for _, rows in panels])
    n = subtitle or (wording.counts(everything["n"]) if "n" in everything else "")
    height = canvas.height or map_height(most) + 140
    names = {"quantity": word("quantity", value)} | names
    return canvas.finish(n, title=title, unit=unit, height=height, **names)


def position_tokens(table: pd.DataFrame) -> dict[int, str]:
    """Token string of each position, where the table has them."""
    if "token" not in table or "position" not in table:
        return {}
    rows = table.drop_duplicates("position")
    return dict(zip(rows["position"], rows["token"], strict=True))


def position_labels(positions: Sequence[int], tokens: Mapping[int, str]) -> list[str]:
    """`−3 <|im_end|>`: each position and its token, safe for plotly."""
    return [wording.for_plotly(position_name(position, tokens.get(position))) for position in positions]


def _panels(rows: pd.DataFrame, value: str | None, across: str) -> tuple[str, list[tuple[str, pd.DataFrame]]]:
    """The column to draw, and the rows of each checkpoint with what their hover says beside it."""
    value = value or ("effect" if "effect" in rows else "value")
    rows = style.drawable(rows, value, f"a heatmap of '{value}' by layer and {across}")
    ends = () if value == "raw" and "effect" in rows else ("low", "high")  # of table `patching` they are of the effect
    shown: Look = {"shown": rows[value]} | {f"shown_{end}": rows[end] for end in ends if end in rows}
    other = "effect" if value == "raw" else "raw"
    beside = {f"{other}_beside": rows[other]} if other in rows and other != value else {}
    rows = rows.assign(quantity=word("quantity", value), **shown, **beside)
    if not {"arm", "step"} <= set(rows):
        return value, [("", rows)]
    checkpoints = list(rows.groupby(["arm", "step"], sort=False))
    names = [f"{arm}, step {step}" if len(checkpoints) > 1 else "" for (arm, step), _ in checkpoints]
    return value, list(zip(names, (subset for _, subset in checkpoints), strict=True))
