"""What every figure shows, in words: `catalogue.yaml`, read once, and the hover of a row.

An entry holds what a figure draws (`table`, `rows`), its `title`, the titles of its axes (`x`, `y`), the `unit` of its
values, a `definition` for a reader who is new to the tool, the section of the documentation (`docs`), the lines of its
hover, and the titles of its `panels`, each with a unit.

A line of a hover is a template over the columns of a row. `{column}` is text, escaped for plotly; `{column:3}` a number
with three digits, `{column:+3}` one with its sign; `{column:percent}` (or `whole`, `rate`, `grouped`, `seconds`,
`token`) as `report.wording` writes it; `{low..high}` the interval ` [low, high]`, empty where there is none. What
stands between `{?` and `?}` is left out where a value in it is missing; `{column:count}` is missing where it is 0.
`{@head}`, `{@component}`, `{@checkpoint}`, `{@pair}`, `{@source}` and `{@target}` are names made of several columns.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import wording

_FIELD = re.compile(r"\{([^{}:?]+)(?::([^{}]*))?\}")
_OPTIONAL = re.compile(r"\{\?(.*?)\?\}")
_LONGEST_ARM = 40


@dataclass(frozen=True)
class Entry:
    """One figure of the catalogue. `panels`: title and unit of each panel, by what the panel shows."""

    name: str
    title: str
    definition: str
    docs: str
    table: str = ""
    rows: str = ""
    unit: str = ""
    x: str = ""
    y: str = ""
    height: int = 340
    hover: tuple[str, ...] = ()
    panels: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Map:
    """One map that the step slider of a report drives: which rows of which table, and how they are drawn.

    Fields:
        kind: what the columns of the map are, heads or positions.
        table, where, value: rows of a table with these values in these columns, and the column that is drawn.
        minus: what is taken off every value, so that 0 means no effect.
        scale: `diverging` is centred at 0.
        mark: column of flags, or `p`, whose cells below 0.05 are marked.
    """

    name: str
    kind: str
    table: str
    value: str
    title: str
    unit: str
    definition: str
    where: Mapping[str, Any] = field(default_factory=dict)
    scale: str = "diverging"
    minus: float = 0.0
    low: str = "low"
    high: str = "high"
    n: str = "n"
    mark: str = "p"


@cache
def _catalogue() -> dict[str, Any]:
    text = (files("mechrefusal.report.figures") / "catalogue.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def words(kind: str) -> dict[str, str]:
    """Names of one kind (`site`, `family`, `probe_target`, ...) in words, in the order in which they are drawn."""
    return _catalogue()["words"][kind]


@cache
def entry(name: str) -> Entry:
    """What the catalogue says of a figure."""
    known = _catalogue()["figures"]
    if name not in known:
        raise MechrefusalError(f"unknown figure '{name}': expected one of {', '.join(known)}")
    fields = dict(known[name])
    panels = {key: tuple(panel) for key, panel in fields.pop("panels", {}).items()}
    return Entry(name, hover=tuple(fields.pop("hover", ())), panels=panels, **fields)


@cache
def slider_maps() -> tuple[Map, ...]:
    """The maps that a report draws for every checkpoint."""
    return tuple(Map(name, **fields) for name, fields in _catalogue()["maps"].items())


def describe() -> pd.DataFrame:
    """What every figure shows: figure, table, rows, title, unit, definition, docs.

    In a notebook: `mr.report.figures.describe()`.
    """
    shown = ("table", "rows", "title", "unit", "definition", "docs")
    return pd.DataFrame(
        [{"figure": name} | {key: getattr(entry(name), key) for key in shown} for name in _catalogue()["figures"]]
    )


def ordered(present: Iterable[str], kind: str) -> list[str]:
    """Names that are present, in the order of `words(kind)`; unknown ones follow by name."""
    present = set(present)
    return [name for name in words(kind) if name in present] + sorted(present - set(words(kind)))


def word(kind: str, name: Any) -> str:
    """A name of `words(kind)` in words; an unknown one keeps its name."""
    return words(kind).get(str(name), wording.metric_name(str(name)))


def hovers(rows: pd.DataFrame, lines: Iterable[str]) -> list[str]:
    """The hover of every row."""
    lines = tuple(lines)
    return [hover(row, lines) for row in rows.to_dict("records")]


def hover(row: Mapping[str, Any], lines: Iterable[str]) -> str:
    """The hover of one row: its values in the lines of a catalogue entry, safe for plotly."""
    filled = (_FIELD.sub(lambda match: _value(row, match), _OPTIONAL.sub(_kept(row), line)) for line in lines)
    return "<br>".join(line for line in filled if line)


def _kept(row: Mapping[str, Any]) -> Callable[[re.Match], str]:
    def kept(part: re.Match) -> str:
        return "" if any(_is_missing(row, *name) for name in _FIELD.findall(part[1])) else part[1]

    return kept


def _is_missing(row: Mapping[str, Any], name: str, form: str) -> bool:
    if ".." in name or name.startswith("@"):
        return False
    value = row.get(name)
    return wording.is_missing(value) or value == "" or (form == "count" and not value)


def _value(row: Mapping[str, Any], match: re.Match) -> str:
    name, form = match[1], match[2] or ""
    if ".." in name:
        low, high = (row.get(end) for end in name.split(".."))
        missing = wording.is_missing(low) or wording.is_missing(high)
        return "" if missing else f" [{wording.number(low, 3)}, {wording.number(high, 3)}]"
    if name.startswith("@"):
        return _NAMES[name[1:]](row)
    value = row.get(name)
    if form in ("percent", "rate", "grouped", "seconds"):
        return getattr(wording, form)(value)
    if form in ("whole", "count"):
        return wording.whole(value)
    if form == "token":
        return wording.for_plotly("" if wording.is_missing(value) else wording.token(value))
    if form:
        return wording.number(value, int(form.lstrip("+")), signed=form.startswith("+"))
    return wording.for_plotly("" if wording.is_missing(value) else value)


def checkpoint_name(row: Mapping[str, Any], end: str = "", *, limit: int = _LONGEST_ARM) -> str:
    """`sft 50`: arm and step of a row, or of its columns `arm<end>` and `step<end>`; plain text."""
    return f"{wording.shortened(row[f'arm{end}'], limit)} {wording.whole(row[f'step{end}'])}"


def pair_name(row: Mapping[str, Any], *, limit: int = 16) -> str:
    """`sft 18 → base 0`: source and target of a row, or the earlier and the later checkpoint; plain text."""
    ends = ("_source", "_target") if "arm_source" in row else ("_a", "_b")
    return " → ".join(checkpoint_name(row, end, limit=limit) for end in ends)


def component_name(row: Mapping[str, Any]) -> str:
    """`L12.H3`, `MLP 4`, `embed`; plain text."""
    kind = str(row["component"])
    if kind == "head":
        return wording.head_name(row["layer"], row["head"])
    return f"MLP {wording.whole(row['layer'])}" if kind == "mlp" else wording.metric_name(kind)


def _cell(row: Mapping[str, Any]) -> str:
    """`L12.H3`, or `layer 12`, with the position and its token where there is one."""
    if not wording.is_missing(row.get("head")) and row["head"] >= 0:
        return wording.head_name(row["layer"], row["head"])
    layer = f"layer {wording.whole(row['layer'])}"
    if wording.is_missing(row.get("position")):
        return layer
    return wording.for_plotly(f"{layer}, position {position_name(row['position'], row.get('token'))}")


def position_name(position: Any, token: Any = None) -> str:
    """`−3 <|im_end|>`: a position and its token, plain text; `·` is patching's sign for tokens that differ."""
    text = "" if wording.is_missing(token) else wording.token(token, 14)
    text = "" if text == "·" else text
    return f"{wording.whole(position)} {text}".strip() if position != 0 else text or "all"


_NAMES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "head": _cell,
    "component": lambda row: wording.for_plotly(component_name(row)),
    "checkpoint": lambda row: wording.for_plotly(checkpoint_name(row)),
    "pair": lambda row: wording.for_plotly(pair_name(row, limit=_LONGEST_ARM)),
    "source": lambda row: wording.for_plotly(checkpoint_name(row, "_source")),
    "target": lambda row: wording.for_plotly(checkpoint_name(row, "_target")),
}
