"""Suites: benchmarks to evaluate on, with what is known of each prompt: whether it is harmful, and of which kind."""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PromptSet
from mechrefusal.prompts.readers import BENCHMARKS
from mechrefusal.prompts.values import is_blank, whole_characters

Side = Literal["harmful", "harmless"]
SIDES: tuple[Side, ...] = get_args(Side)
COPYRIGHT = "copyright"
"""HarmBench's functional category that a refusal judge and a classifier say nothing about; always counted apart."""

_HARMLESS = ("alpaca",)
BUILTIN = ("builtin", "builtin-xstest", "builtin-utility")


@dataclass(frozen=True)
class Suite:
    """Prompts to evaluate on.

    `table`, one row a prompt: prompt_id, prompt, side (harmful or harmless), group (HarmBench's functional category,
    else ""), category (HarmBench's semantic category, XSTest's type, and so on; "" where the source has none), target
    (the opening of a complying answer, None where the source has none), behaviour (the request without its context),
    context (None where there is none) and twin (what a harmful prompt and its harmless counterpart share, None where
    the source pairs nothing).
    """

    name: str
    table: pd.DataFrame

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise MechrefusalError(f"suite name '{self.name}' is not made of letters, digits, dots, dashes: rename it")
        if self.table.empty:
            raise MechrefusalError(f"suite '{self.name}' has no prompt: give a file that holds some")
        object.__setattr__(self, "table", whole_characters(self.table, f"suite '{self.name}'"))
        if unknown := sorted({str(side) for side in self.table["side"]} - set(SIDES)):
            raise MechrefusalError(f"suite '{self.name}' has sides {unknown}: use {' or '.join(SIDES)}")

    def __len__(self) -> int:
        return len(self.table)

    @classmethod
    def of(cls, name: str, chosen: PromptSet, side: Side | None = None) -> "Suite":
        """A suite of a set of prompts. Their side: `side`, else their column `label` (safe, unsafe), else harmful."""
        source = chosen.table

        def column(name: str, otherwise: Any = None) -> pd.Series:
            """A column of the source; `otherwise`, a value or one a row, where it or a value of it is missing."""
            instead = otherwise if isinstance(otherwise, pd.Series) else [otherwise] * len(source)
            values = source[name] if name in source else [None] * len(source)
            pairs = zip(values, instead, strict=True)
            return pd.Series(
                [other if is_blank(value) else value for value, other in pairs], source.index, dtype=object
            )

        sides = pd.Series(side or "harmful", index=source.index)
        if side is None and "label" in source:
            known = {"safe": "harmless", "unsafe": "harmful", "harmless": "harmless", "harmful": "harmful"}
            sides = source["label"].map(known)
        table = pd.DataFrame(
            {
                "prompt_id": source["id"],
                "prompt": source["text"],
                "side": sides,
                "group": column("functional_category", ""),
                "category": source["category"],
                "target": column("target"),
                "behaviour": column("behavior", source["text"]),
                "context": column("context"),
                "twin": column("twin"),
            }
        )
        return cls(name, table)

    def take(self, n: int) -> "Suite":
        """At most `n` prompts of each side, evenly spaced, so that every part of a sorted file has its share."""
        if n < 0:
            raise MechrefusalError(f"cannot take {n} prompts of suite '{self.name}': give 0 for all, or more")
        if n == 0:
            return self
        places = [
            rows[np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int))]
            for rows in (np.flatnonzero(self.table["side"] == side) for side in SIDES)
            if len(rows)
        ]
        return Suite(self.name, self.table.iloc[np.sort(np.concatenate(places))].reset_index(drop=True))

    def questions(self) -> pd.DataFrame:
        """One row a prompt, as `evaluation.answered` takes them: without an attack, what verdicts are told apart by."""
        known = ["side", "group", "category", "prompt_id", "prompt", "behaviour", "context"]
        return self.table[known].assign(suite=self.name, attack="none")

    def prompt_set(self, side: Side | None = None) -> PromptSet:
        """Its prompts, or those of one side, as a set with `target` and `behavior`, which attacks take."""
        rows = self.table if side is None else self.table[self.table["side"] == side]
        names = {"prompt_id": "id", "prompt": "text", "behaviour": "behavior"}
        return PromptSet(self.name, rows.rename(columns=names))


def read_suite(spec: str, *, n: int = 0) -> Suite:
    """A suite from `NAME=SOURCE`, or a built-in one by its name.

    `xstest=prompts.csv`, `harmbench=owner/dataset`: a benchmark of `mechrefusal.prompts.read` from a file (CSV, JSON or
    parquet, compressed or not) or the hub.
    `NAME:harmless=SOURCE` says that its prompts are harmless (JailbreakBench publishes such a file too). Built-in:
    `builtin` (harmful and harmless requests of the split `evaluation`), `builtin-xstest` (safe prompts that look
    unsafe, and unsafe contrasts), `builtin-utility` (plain instructions).

    Args:
        n: prompts of each side at most, evenly spaced; 0 for all.

    Raises:
        MechrefusalError: an unknown name, a source that is missing, cannot be read or is of another benchmark.
    """
    name, separator, source = spec.partition("=")
    benchmark, _, side = name.strip().partition(":")
    if benchmark in BUILTIN:
        if separator or side:
            raise MechrefusalError(f"suite '{spec}': '{benchmark}' is built in and takes neither side nor file")
        return _builtin(benchmark).take(n)
    key = re.sub(r"[^a-z0-9]", "", benchmark.lower())
    if key not in BENCHMARKS:
        known = ", ".join([*BUILTIN, *BENCHMARKS])
        raise MechrefusalError(f"unknown suite '{benchmark}': expected one of {known}")
    if not source.strip():
        raise MechrefusalError(f"suite '{spec}' has no source: give {key}=PATH or {key}=HUB/NAME")
    if side and side not in SIDES:
        raise MechrefusalError(f"suite '{spec}': '{side}' is no side; use {key}:harmless=... or {key}:harmful=...")
    chosen = prompts.read(key, source.strip())
    known_side = next((known for known in SIDES if known == side), "harmless" if key in _HARMLESS else None)
    return Suite.of(f"{key}-{side}" if side else key, chosen, known_side).take(n)


def _builtin(name: str) -> Suite:
    sets = prompts.builtin()
    parts: dict[str, list[tuple[PromptSet, Side]]] = {
        "builtin": [(sets.evaluation.harmful, "harmful"), (sets.evaluation.harmless, "harmless")],
        "builtin-xstest": [(sets.overrefusal, "harmless"), (sets.contrast, "harmful")],
        "builtin-utility": [(sets.utility_evaluation, "harmless")],
    }
    tables = [Suite.of(name, chosen, side).table for chosen, side in parts[name]]
    return Suite(name, pd.concat(tables, ignore_index=True))


def require_distinct(suites: "list[Suite] | tuple[Suite, ...]") -> None:
    """Raise MechrefusalError where two suites have one name, or there is none."""
    if not suites:
        raise MechrefusalError("no suite to evaluate on: give one such as builtin or xstest=PATH")
    names = [suite.name for suite in suites]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise MechrefusalError(
            f"suite '{again[0]}' is given twice: give one of them, or evaluate each into a folder of its own"
        )


__all__ = ["BUILTIN", "COPYRIGHT", "SIDES", "Side", "Suite", "read_suite", "require_distinct"]
