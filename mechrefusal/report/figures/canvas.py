"""What figures are drawn with: lines with intervals, bars, points, matrices and their marks, in one or more panels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrefusal.report import wording
from mechrefusal.report.figures import catalogue, style
from mechrefusal.report.figures.axes import Axis
from mechrefusal.report.figures.style import Look

_LINE: Look = {"colour": style.ARM_COLOURS[0], "dash": "solid", "symbol": "circle", "width": 2, "size": 6}
_LINE |= {"mode": "lines+markers", "opacity": None}
_AROUND = 165
"""Pixels of title, axis and legend."""


class Canvas:
    """A figure of the catalogue in the making.

    Panels are counted from 0, row by row. A figure without titles of panels has one.

    Args:
        name: of the figure in the catalogue: its axes, its hover, its title.
        panels: titles of the panels, plain text, or keys of the titles and units in the catalogue.
        shared: `x`: panels below each other have one x axis. `y`: panels beside each other have one y axis.
        panel_height, gap: of each panel, and between rows of them, pixels.
    """

    def __init__(
        self,
        name: str,
        panels: Sequence[str] = (),
        *,
        columns: int = 1,
        shared: str = "",
        panel_height: int = 260,
        gap: int | None = None,
        **layout: Any,
    ) -> None:
        self.entry = catalogue.entry(name)
        known = self.entry.panels
        self.columns, self.n_panels = max(1, min(columns, len(panels))), len(panels)
        self._in_legend: set[str] = set()
        self.height, self.figure = 0, go.Figure()
        if panels:
            lines, gap = math.ceil(len(panels) / self.columns), gap or (46 if shared == "x" else 84)
            high = lines * panel_height + (lines - 1) * gap
            self.height = high + _AROUND
            self.figure = make_subplots(
                rows=lines,
                cols=self.columns,
                subplot_titles=[wording.for_plotly(known.get(panel, (panel, ""))[0]) for panel in panels],
                shared_xaxes=shared == "x",
                shared_yaxes=shared == "y",
                horizontal_spacing=0.05 if shared == "y" else 0.26 / self.columns,
                vertical_spacing=gap / high if lines > 1 else 0.0,
                **layout,
            )
            left = {"x": 0, "xanchor": "left"} if self.columns == 1 else {}
            self.figure.update_annotations(font={"size": 12}, **left)
            self.figure.update_layout(margin={"t": 84})
        for place, panel in enumerate(panels or [""]):
            lowest, leftmost = place + self.columns >= len(panels), place % self.columns == 0
            self.x(place, title=self.entry.x if lowest or shared != "x" else None)
            self.y(place, title=known[panel][1] if panel in known else self.entry.y if leftmost else None)

    def _at(self, panel: int | None) -> dict[str, int]:
        row, column = divmod(panel or 0, self.columns)
        return {"row": row + 1, "col": column + 1} if self.n_panels and panel is not None else {}

    def x(self, panel: int | None = None, **look: Any) -> None:
        """Settings of the x axis of a panel, or of all."""
        self.figure.update_xaxes(**look, **self._at(panel))

    def y(self, panel: int | None = None, **look: Any) -> None:
        """Settings of the y axis of a panel, or of all."""
        self.figure.update_yaxes(**look, **self._at(panel))

    def add(self, trace: go.Scatter | go.Bar | go.Heatmap | go.Box | None, panel: int = 0) -> None:
        """Add a trace; None is nothing."""
        if trace is not None:
            self.figure.add_trace(trace, **self._at(panel))

    def named(self, name: str, group: str = "") -> dict[str, Any]:
        """Name and group of a trace, plain text; each group is in the legend once."""
        name, group = wording.for_plotly(name), wording.for_plotly(group or name)
        first = group not in self._in_legend
        self._in_legend.add(group)
        return {"name": name, "legendgroup": group, "showlegend": first and bool(name)}

    def hovers(self, rows: pd.DataFrame) -> list[str]:
        """The hover of every row, as the catalogue has it."""
        return catalogue.hovers(rows, self.entry.hover)

    def line(
        self,
        rows: pd.DataFrame,
        x: str,
        y: str,
        name: str,
        *,
        panel: int = 0,
        interval: str = "band",
        ends: tuple[str, str] = ("low", "high"),
        along: str = "y",
        shift: float = 0.0,
        group: str = "",
        hover: Sequence[str] | None = None,
        **look: Any,
    ) -> None:
        """Column `y` over column `x` with its 95% interval; nothing where every y is missing.

        Args:
            name: in the legend, once for all panels; plain text.
            interval: `band` (bars where there is one point only), `bars` or `none`; of the columns `ends`, `along` y
                or x.
            shift: how far points are moved along x, so that bars do not hide each other.
            group: what is shown and hidden together; the name by default.
            hover: one text a row, safe for plotly; by default that of the catalogue, none for an empty list.
            look: colour, dash, symbol, width, size, mode and opacity.
        """
        if not rows[y].notna().any():
            return
        rows = rows.assign(at_x=rows[x] + shift if shift else rows[x])
        legend, look, area = self.named(name, group), _LINE | look, None
        shared = {"legendgroup": legend["legendgroup"], "opacity": look["opacity"]}
        if interval == "band":
            area = style.between(rows[rows[y].notna()], "at_x", *ends, look["colour"], **shared)
            self.add(area, panel)
        bars = None
        if area is None and interval != "none":
            bars = style.error_bars(rows, y if along == "y" else x, *ends, color=look["colour"])
        texts = self.hovers(rows) if hover is None else list(hover)
        self.add(
            go.Scatter(
                x=list(rows["at_x"]),
                y=style.numbers(rows[y]),
                **{f"error_{along}": bars},
                mode=look["mode"],
                opacity=look["opacity"],
                line={"color": look["colour"], "width": look["width"], "dash": look["dash"]},
                marker={"color": look["colour"], "symbol": look["symbol"], "size": look["size"]},
                text=texts or None,
                hoverinfo="text" if texts else "skip",
                **legend,
            ),
            panel,
        )

    def bars(
        self,
        rows: pd.DataFrame,
        x: str,
        y: str,
        name: str = "",
        *,
        panel: int = 0,
        colour: str | Sequence[str] | None = None,
        ends: tuple[str, str] | None = ("low", "high"),
        written: Sequence[str] | None = None,
        hover: Sequence[str] | None = None,
        **look: Any,
    ) -> None:
        """Horizontal bars: lengths from column `x`, places from column `y`, whiskers between the columns `ends`.

        Args:
            colour: by default red where the value is positive, blue where it is negative.
            written: text on each bar.
        """
        signed = [style.POSITIVE if value >= 0 else style.NEGATIVE for value in rows[x].fillna(0)]
        whiskers = style.error_bars(rows, x, *ends, color=style.WHISKER, thickness=1.2, width=2) if ends else None
        texts = self.hovers(rows) if hover is None else list(hover)
        label = {"text": texts, "textposition": "none"} if written is None else {"text": written, "hovertext": texts}
        bar = go.Bar(
            x=style.numbers(rows[x]),
            y=list(rows[y]),
            orientation="h",
            error_x=whiskers,
            marker={"color": signed if colour is None else colour},
            hoverinfo="text" if texts else "skip",
            **label,
            **self.named(name),
        )
        self.add(bar.update(**look), panel)

    def matrix(
        self,
        rows: pd.DataFrame,
        value: str,
        down: Axis,
        across: Axis,
        *,
        panel: int = 0,
        written: str = "",
        **look: Any,
    ) -> np.ndarray:
        """Cells of column `value`, coloured on the figure's one colour axis; what has no row is not measured.

        Args:
            written: template of what is written into each cell (as a line of a hover).

        Returns:
            The cells, lines x columns.
        """
        lines, columns = ({key: i for i, key in enumerate(axis.order)} for axis in (down, across))
        cells = np.full((len(lines), len(columns)), np.nan)
        texts = [["not measured"] * len(columns) for _ in lines]
        inside = [[""] * len(columns) for _ in lines]
        for row, line, column in zip(rows.to_dict("records"), down.keys, across.keys, strict=True):
            i, j = lines[line], columns[column]
            cells[i, j] = np.nan if wording.is_missing(row[value]) else row[value]
            texts[i][j] = catalogue.hover(row, self.entry.hover)
            inside[i][j] = catalogue.hover(row, [written]) if written else ""
        labels: Look = {"text": texts}
        if written:
            labels = {"text": inside, "texttemplate": "%{text}", "hovertext": texts, "xgap": 1, "ygap": 1}
        places: Look = {"x": list(across.places.values()), "y": list(down.places.values())}
        heat = go.Heatmap(z=cells, hoverinfo="text", coloraxis="coloraxis", **places, **labels)
        self.add(heat.update(**look), panel)
        for draw, axis, ends in ((self.x, across, across.ends), (self.y, down, down.ends[:: -1 if down.names else 1])):
            draw(panel, showgrid=False, zeroline=False, range=ends)
            if axis.names:
                self.categories(axis.names, axis="x" if axis is across else "y", panel=panel, range=ends)
        return cells

    def marks(
        self, flags: Sequence[bool], down: Axis, across: Axis, name: str, *, panel: int = 0, **marker: Any
    ) -> None:
        """Dots (or what `marker` says) on the flagged rows of a matrix, which can be told from any of its colours."""
        if any(flags):
            look = {"symbol": "circle", "size": 5, "color": "#111111", "line": {"color": "#ffffff", "width": 1.2}}
            legend = self.named(name) | {"name": name}  # the names of marks are words of this package
            at: Look = {"x": across.where(flags), "y": down.where(flags), "marker": look | marker}
            self.add(go.Scatter(mode="markers", hoverinfo="skip", **at, **legend), panel)

    def steps(self, steps: pd.Series, panel: int | None = None) -> None:
        """Ticks of the x axis at these optimiser steps."""
        self.x(panel, tickvals=sorted({int(step) for step in steps}))

    def rule(self, *, x: float | None = None, y: float | None = None, panel: int | None = None, **line: Any) -> None:
        """A thin line across a panel, or across all, at an x or a y."""
        look: Look = {"line": {"width": 1, "color": style.AXIS} | line, **self._at(panel)}
        self.figure.add_hline(y=y, **look) if x is None else self.figure.add_vline(x=x, **look)

    def categories(
        self,
        names: Sequence[str],
        *,
        axis: str = "y",
        places: Sequence[float] = (),
        panel: int | None = None,
        **look: Any,
    ) -> None:
        """Names (plain text) at the places of an axis; on y the first is on top. Many names on x stand upright."""
        names = [wording.for_plotly(name) for name in names]
        at = list(places) or list(range(len(names)))
        shown: Look = {"tickvals": at, "ticktext": names, "showgrid": False, "zeroline": False}
        if axis == "x":
            angle = 0 if sum(map(len, names)) <= 40 else -45 if len(names) <= 6 else -90
            self.x(panel, **shown | {"tickangle": angle} | look)
        else:
            self.y(panel, **shown | {"range": [max(at) + 0.5, min(at) - 0.5]} | look)

    def colours(self, unit: str, *, limit: float | None = None, centre: float = 0.0, most: float | None = None) -> None:
        """One colour axis for all matrices: diverging around `centre` up to ± `limit`, or sequential, 0 to `most`."""
        bar = {"title": {"text": f"{wording.for_plotly(unit)}<br> "}}  # the line keeps it off the topmost tick
        axis: Look = {"colorscale": style.SEQUENTIAL, "colorbar": bar}
        if limit is not None:
            axis |= {"colorscale": style.DIVERGING, "cmin": centre - limit, "cmax": centre + limit}
        elif most:
            axis |= {"cmin": 0, "cmax": most}
        self.figure.update_layout(coloraxis=axis)

    def finish(self, *subtitle: str, title: str = "", unit: str | None = None, height: int = 0, **names) -> go.Figure:
        """The figure with its title, its subtitle (unit first) and what the catalogue says of it in `layout.meta`.

        Args:
            subtitle: parts of the subtitle, safe for plotly; empty ones are left out.
            title: in place of the catalogue's, safe for plotly.
            names: what stands in the catalogue's title, plain text.
        """
        unit = self.entry.unit if unit is None else unit
        filled: Look = {name: wording.for_plotly(value) for name, value in names.items()}
        text = title or self.entry.title.format(**filled)
        parts = "; ".join(part for part in (wording.for_plotly(unit), *subtitle) if part)
        meta = {"figure": self.entry.name, "definition": self.entry.definition, "docs": self.entry.docs, "unit": unit}
        return self.figure.update_layout(
            template=style.TEMPLATE,
            title={"text": text[:1].upper() + text[1:], "subtitle": {"text": parts}},
            height=height or self.height or self.entry.height,
            meta=meta,
        )
