"""Pages as data: `pages/<name>.yaml` lists sections, each a question that opens, with its figures and tables.

A block (a section is one, and holds others in `blocks`) has these keys, all optional:

    heading, text   words; `{{ run.name }}` and the like are filled in. Text stands only where there is something below
    say             expressions that give a sentence, or several
    figures         what is drawn (below); `layout` is a class of the style sheet
    table           `of` (a table, or an expression), `columns` (see `grids.grid`), `most`; or an expression of a grid
    missing         table, `by` and `value`: what has no value, and why
    include         a template for what is neither
    absent          what is said where there is nothing
    fold            heading of a part that is closed at first
    only            expression; where it is false the block is left out

A figure has `draw` (a function of `report.figures`), `table`, `query` (of its rows), `needs` (a column that must have a
value), `each` (one figure for every value of these columns, handed to the function; `split` does not hand them on),
`order` (of those values), `with` (other arguments), `title` (said where it cannot be drawn) and `heads` (a click opens
a card). `plan` gives panels, or (summary, panels) for parts that open. Tables, arguments and plans that begin with `$`
are expressions, as Jinja has them, of `page`, `run`, `table("name")` and the modules of findings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib.resources import files
from typing import Any, ClassVar

import pandas as pd
import yaml
from markupsafe import Markup

from mechrefusal import tables
from mechrefusal.report import (
    carrier_findings,
    causal_findings,
    durability_findings,
    embedding,
    evaluation_findings,
    figures,
    findings,
    gate,
    grids,
    headline,
    language,
    wording,
)
from mechrefusal.report.figures import catalogue, forest, heatmaps
from mechrefusal.report.grids import Grid
from mechrefusal.report.panels import Panel, Panels
from mechrefusal.report.reading import MeasuredRun

Spec = Mapping[str, Any]
FINDINGS = {
    module.__name__.rsplit(".", 1)[1]: module
    for module in (
        carrier_findings,
        causal_findings,
        durability_findings,
        evaluation_findings,
        findings,
        forest,
        gate,
        headline,
        heatmaps,
        language,
    )
} | {"figures": figures, "TARGETS": list(catalogue.words("probe_target"))}
"""What expressions of `pages/*.yaml` may call."""


NOTHING = Markup("")


@dataclass(frozen=True)
class Block:
    """A part of a page, ready to be put into HTML."""

    id: str = ""
    heading: Markup = NOTHING
    text: Markup = NOTHING
    says: list[str] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    layout: str = ""
    grid: Grid | None = None
    missing: list[tuple[str, str, int]] = field(default_factory=list)
    html: Markup = NOTHING
    absent: Markup = NOTHING
    fold: Markup = NOTHING
    is_open: bool = False
    blocks: list["Block"] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to see but words that would be there anyway."""
        parts = (self.says, self.panels, self.grid, self.missing, self.html)
        return not any(parts) and all(block.is_empty for block in self.blocks)


class Page:
    """A page of the report: where its tables come from, and what its sections hold.

    Subclasses name the file of sections and have the attributes that it names.
    """

    name: ClassVar[str]

    def __init__(self, run: MeasuredRun, *, show_completions: bool = False) -> None:
        self.run, self.show_completions = run, show_completions
        self.panels = Panels(self.id)

    @property
    def id(self) -> str:
        """Name of its file, without the ending."""
        return self.name

    def table(self, name: str) -> pd.DataFrame:
        """A table: of the run, or of all checkpoints together."""
        return self.run.across[name] if name in tables.ACROSS else self.run.together(name)

    @cached_property
    def sections(self) -> list[Block]:
        """The sections of the page in order."""
        specs = [self._block(spec) for spec in _specs(self.name)]
        return [section for section in specs if section is not None]

    def json(self, value: Any) -> Markup:
        """Data for a script element."""
        return embedding.json_for_html(value)

    def value(self, expression: str) -> Any:
        """What an expression of `pages/*.yaml` gives."""
        names = {"page": self, "run": self.run, "table": self.table, **FINDINGS}
        return embedding.environment().compile_expression(expression, undefined_to_none=False)(**names)

    def words(self, text: str) -> Markup:
        """Words of a section with what they name filled in."""
        return embedding.rendered(text, page=self, run=self.run)

    def draw(self, spec: Spec) -> list[Panel]:
        """The panels of one figure: its `rows`, and the rest as in a file of sections. Nothing in it is evaluated."""
        rows = spec["rows"].query(spec["query"]) if "query" in spec else spec["rows"]
        if not len(rows) or ("needs" in spec and not rows[spec["needs"]].notna().any()):
            return []
        drawing: Callable[..., Any] = getattr(figures, spec["draw"])
        heads_of, panels = self.id if spec.get("heads") else "", []
        for values, part in self._each(rows, spec):
            title, look = spec.get("title", ""), {**spec.get("with", {})}
            if values:
                title = title.format_map({name: wording.metric_name(str(value)) for name, value in values.items()})
                look |= values if "each" in spec else {}
            drawn = partial(drawing, part, **look)
            title = f"{title[:1].upper()}{title[1:]}"
            panels.append(self.panels.add(spec["draw"], drawn, title=title, rows=part, heads_of=heads_of))
        return panels

    def _evaluated(self, spec: Spec) -> dict[str, Any]:
        """A figure of a file of sections, with what its expressions give."""
        given = {name: self._argument(value) for name, value in spec.get("with", {}).items()}
        order = {name: self._argument(value) for name, value in spec.get("order", {}).items()}
        return {**spec, "rows": self._rows(spec["table"]), "with": given, "order": order}

    def _each(self, rows: pd.DataFrame, spec: Spec) -> list[tuple[dict[str, Any], pd.DataFrame]]:
        columns = spec.get("each", spec.get("split", []))
        if not columns:
            return [({}, rows)]
        keys = list(rows[columns].itertuples(index=False, name=None))
        order: dict[str, list[str]] = spec.get("order", {})

        def place(key: tuple) -> tuple[int, ...]:
            known = [(order[name], value) for name, value in zip(columns, key, strict=True) if name in order]
            return tuple(names.index(value) if value in names else len(names) for names, value in known)

        chosen = sorted(dict.fromkeys(keys), key=place)
        return [(dict(zip(columns, key, strict=True)), rows[[each == key for each in keys]]) for key in chosen]

    def _rows(self, name: str) -> pd.DataFrame:
        return self._argument(name) if name.startswith("$") else self.table(name)

    def _argument(self, value: Any) -> Any:
        return self.value(value[1:]) if isinstance(value, str) and value.startswith("$") else value

    def _block(self, spec: Spec) -> Block | None:
        if "only" in spec and not _is_there(self.value(spec["only"])):
            return None
        says = [sentence for name in _list(spec.get("say", [])) for sentence in _list(self.value(name)) if sentence]
        panels, folded = self._panels(spec.get("figures", []))
        html = NOTHING
        if "include" in spec:
            template = embedding.environment().get_template(f"{spec['include']}.html")
            html = Markup(template.render(page=self, run=self.run, **FINDINGS).strip())
        block = Block(
            id=spec.get("id", ""),
            heading=self.words(spec.get("question", spec.get("heading", ""))),
            says=says,
            panels=panels,
            layout=spec.get("layout", ""),
            grid=self._grid(spec["table"]) if "table" in spec else None,
            missing=self._missing(spec["missing"]) if "missing" in spec else [],
            html=html,
            fold=self.words(spec.get("fold", "")),
            is_open=spec.get("open", False),
            blocks=folded + [block for part in spec.get("blocks", []) if (block := self._block(part)) is not None],
        )
        has_own = says or panels or block.grid or html or folded or "blocks" in spec
        words = {"text": self.words(spec.get("text", "")) if has_own else NOTHING}
        if not has_own or block.is_empty:
            words["absent"] = self.words(spec.get("absent", ""))
        return Block(**{**vars(block), **words})

    def _panels(self, specs: Sequence[Spec]) -> tuple[list[Panel], list[Block]]:
        panels: list[Panel] = []
        folded: list[Block] = []
        for spec in specs:
            for part in self.value(spec["plan"]) if "plan" in spec else self.draw(self._evaluated(spec)):
                if isinstance(part, Panel):
                    panels.append(part)
                else:
                    summary, drawn = part
                    layout = spec.get("layout", "two")
                    folded.append(Block(fold=Markup.escape(summary), panels=drawn, layout=layout, is_open=not folded))
        return panels, folded

    def _grid(self, spec: Spec | str) -> Grid:
        if isinstance(spec, str):
            return self._argument(spec)
        rows, name = self._rows(spec["of"]), spec["of"]
        return grids.grid(rows, spec["columns"], name=spec.get("schema", name), most=spec.get("most", 200))

    def _missing(self, spec: Spec) -> list[tuple[str, str, int]]:
        table = self._rows(spec["table"])
        groups = table.groupby(spec["by"], sort=False) if "by" in spec else [("", table)]
        return [
            (wording.readable(name), why, n)
            for name, rows in groups
            for why, n in findings.reasons(rows, spec.get("value", "value"))
        ]


def _is_there(value: Any) -> bool:
    return bool(len(value)) if isinstance(value, pd.DataFrame) else bool(value)


def _list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


@cache
def _specs(name: str) -> list[Spec]:
    return yaml.safe_load((files("mechrefusal.report") / "pages" / f"{name}.yaml").read_text(encoding="utf-8"))
