"""Figures on their way into a page: title and subtitle become HTML (which wraps), the rest is JSON."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import embedding


@dataclass(frozen=True)
class Panel:
    """A figure in a page, or the reason why it is not there (`data` is then None).

    Fields:
        figure: name of the function that drew it.
        definition, docs: what it shows in a sentence, and where the documentation tells more.
        rows: what it shows as a table, which the page offers as `csv`.
    """

    figure: str
    title: str
    subtitle: str = ""
    identifier: str = ""
    height: int = 0
    definition: str = ""
    docs: str = ""
    data: Markup | None = None
    reason: str = ""
    rows: pd.DataFrame | None = field(default=None, repr=False, compare=False)
    csv: str = ""


@dataclass
class Panels:
    """Draws the figures of one page; identifiers are unique in it."""

    page: str
    drawn: list[Panel] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)

    def add(
        self,
        name: str,
        draw: Callable[[], go.Figure],
        *,
        title: str = "",
        rows: pd.DataFrame | None = None,
        heads_of: str = "",
    ) -> Panel:
        """Draw a figure; one that cannot be drawn becomes a panel with the reason below `title`.

        Args:
            name: of the figure function, part of the panel's identifier.
            rows: what the figure shows, offered as CSV.
            heads_of: checkpoint whose heads the figure maps (x = head, y = layer): a click opens the head's card.
        """
        try:
            figure = draw()
        except MechrefusalError as error:
            return Panel(name, title, reason=str(error))
        self.counted[name] += 1
        layout = figure.layout
        words = dict(layout.meta or {})
        identifier = f"{name}-{self.counted[name]}"
        height = int(layout.height) - 50
        # plotly's labels are a small HTML dialect in which data has been escaped already
        shown, subtitle = Markup(layout.title.text or title), Markup(layout.title.subtitle.text or "")
        meta = words | ({"heads": True, "checkpoint": heads_of} if heads_of else {})
        figure.update_layout(
            title=None, height=height, margin={"t": 34 if _has_legend(figure) else 22}, meta=meta or None
        )
        panel = Panel(
            name,
            shown,
            subtitle,
            f"fig-{identifier}",
            height,
            words.get("definition", ""),
            words.get("docs", ""),
            embedding.escaped_json(figure.to_json()),
            rows=rows,
            csv=f"tables/{self.page}.{identifier}.csv" if rows is not None else "",
        )
        self.drawn.append(panel)
        return panel


def _has_legend(figure: go.Figure) -> bool:
    named = [trace for trace in figure.data if trace.showlegend is not False and trace.name]
    return len(named) > 1 or bool(figure.layout.showlegend)
