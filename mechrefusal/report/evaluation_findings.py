"""What the tables of an evaluation say: rates, leaks and judged answers. Plain text: whoever shows it escapes it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechrefusal.report import grids, language, wording
from mechrefusal.report.figures import suites

DISAGREEING, EACH_LABEL = 12, 4
LEAKS_SHOWN = 5
LONGEST_NAME, LONGEST_REASON = 60, 300
LONGEST_TEXT = 2000


@dataclass(frozen=True)
class Metric:
    """A rate that is shown where it was measured.

    Fields:
        sides: prompts that it is shown of.
        is_drawn: over steps and between checkpoints too, and not in the table alone.
        of_unsafe_looks: only on suites whose harmless prompts look unsafe.
    """

    name: str
    sides: tuple[str, ...] = ("harmful", "harmless")
    is_drawn: bool = True
    of_unsafe_looks: bool = False


MAIN = (
    Metric("any_refusal"),
    Metric("full_refusal", ("harmless",), is_drawn=False, of_unsafe_looks=True),
    Metric("partial_refusal", ("harmless",), is_drawn=False, of_unsafe_looks=True),
    Metric("attack_success", ("harmful",)),
    Metric("score", ("harmful",)),
    Metric("answered", ("harmless",)),
    Metric("degenerate", is_drawn=False),
)
"""The rates that pages and terminal show, in this order."""
REFUSALS = ("full_refusal", "partial_refusal")
"""Labels of any refusal."""
MADE_OF = ("direction_harmful", "direction_harmless")
"""Suites that are asked to make directions, and not to see what a checkpoint does."""
_COMPLIED = {"refusal": "full_compliance", "harm": "harmful"}
_LOOKS_UNSAFE = ("xstest", "orbench", "or-bench", "overrefusal")


@dataclass(frozen=True)
class SuiteRates:
    """Rates of one suite and side by one judge.

    Fields:
        table: one row a checkpoint, attack and intervention; each metric with its interval.
        columns: of that table, as `grids.grid` takes them.
        corrected_by: what the judge's error was measured on, where rates are corrected for it.
    """

    judge: str
    kind: str
    suite: str
    side: str
    table: pd.DataFrame
    columns: dict[str, str]
    corrected_by: list[str]

    @property
    def title(self) -> str:
        """`xstest, harmless prompts`."""
        return f"{self.suite}, {self.side} prompts"

    @property
    def caption(self) -> str:
        """The judge, and what it was corrected for."""
        by = f"; corrected for the judge's error on {' and '.join(self.corrected_by)}" if self.corrected_by else ""
        return f"judge of {self.kind}: {language.described(self.judge)}{by}"

    @property
    def grid(self) -> grids.Grid:
        """The table as it is shown."""
        return grids.grid(self.table, self.columns)


def looks_unsafe(suite: str) -> bool:
    """Whether a suite's harmless prompts look unsafe, by its name (XSTest and its kin): over-refusal is read there."""
    return any(name in suite.lower() for name in _LOOKS_UNSAFE)


def metrics(side: str, suite: str = "", *, drawn: bool = False) -> list[str]:
    """The rates of `MAIN` that are shown of one side of a suite, or drawn; an unknown side counts as harmful."""
    side = side if side in ("harmful", "harmless") else "harmful"
    shown = [metric for metric in MAIN if side in metric.sides and (metric.is_drawn or not drawn)]
    return [metric.name for metric in shown if looks_unsafe(suite) or not metric.of_unsafe_looks]


def judges(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(judge, kind), judges of refusal first."""
    pairs = dict.fromkeys(zip(suites.texts(table["judge"]), suites.texts(table["kind"]), strict=True))
    return sorted(pairs, key=lambda key: (key[1] != "refusal", key[1], key[0]))


def sides(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(suite, side) in the order of the table, both sides of a suite together."""
    pairs = list(dict.fromkeys(zip(suites.texts(table["suite"]), suites.texts(table["side"]), strict=True)))
    order = list(dict.fromkeys(suite for suite, _ in pairs))
    return sorted(pairs, key=lambda key: (order.index(key[0]), key[1]))


def suite_rates(table: pd.DataFrame, *, interventions: bool = True) -> list[SuiteRates]:
    """Main rates of table `rates`, all categories together: one entry a judge, suite and side."""
    whole = suites.of(table, by="all", intervention=None if interventions else "none")
    entries = []
    for judge, kind in judges(whole):
        for suite, side in sides(of_judge := suites.of(whole, judge=judge, kind=kind)):
            rows = suites.of(of_judge, suite=suite, side=side)
            wanted = [name for name in metrics(side, suite) if (suites.texts(rows["metric"]) == name).any()]
            names = {"judge": judge, "kind": kind, "suite": suite, "side": side}
            named = {name: wording.shortened(text, LONGEST_NAME) for name, text in names.items()}
            by = [wording.shortened(source, LONGEST_NAME) for source in wording.correction_sources(rows)]
            keys = ["arm", "step", "attack", "intervention"]
            made = grids.pivot(rows, keys, {("metric", name): wording.metric_name(name) for name in wanted})
            under = {name: name for name in ("attack", "intervention") if (rows[name] != "none").any()}
            columns = {"arm+step:page": "checkpoint", **under, **made.columns}
            entries.append(SuiteRates(**named, table=made.table, columns=columns, corrected_by=by))
    return entries


def of_checkpoint(table: pd.DataFrame) -> grids.Grid:
    """Rates of one checkpoint on the study's own suites, but those that directions are made of (table `rates`)."""
    rows = table[(table["by"] == "all") & ~table["suite"].isin(MADE_OF)]
    wanted = {
        ("metric", metric.name): wording.metric_name(metric.name) for metric in MAIN if not metric.of_unsafe_looks
    }
    keys = {
        "suite:suite": "prompts",
        "attack:words": "attack",
        "intervention:words": "intervention",
        "judge:text": "judge",
    }
    made = grids.pivot(rows, [name.split(":")[0] for name in keys], wanted)
    shown = {spec: words for spec, words in made.columns.items() if made.table[spec.split("[")[0]].notna().any()}
    return grids.grid(made.table, keys | shown, name="rates")


def leak_counts(table: pd.DataFrame) -> pd.DataFrame:
    """How many prompts of one set stand in another, by kind."""
    keys = ["set_a", "set_b", "kind"]
    return table.groupby(keys, sort=False, dropna=False).size().rename("n").reset_index()


def leak_samples(table: pd.DataFrame) -> pd.DataFrame:
    """The first few leaked prompts of each."""
    return table.groupby(["set_a", "set_b", "kind"], sort=False, dropna=False).head(LEAKS_SHOWN)


def samples(table: pd.DataFrame, *, show_completions: bool) -> list[dict[str, Any]]:
    """For each suite a few judged answers: those on which judges disagree, or where none do, some of each label.

    Answers to harmful prompts, and under any attack, are shortened unless `show_completions`, and so is what a judge
    quotes of them.
    """
    answer = ["arm", "step", "side", "prompt_id", "attack", "intervention"]
    groups = []
    for suite in dict.fromkeys(suites.texts(table["suite"])):
        of_suite = suites.of(table, suite=suite)
        number = of_suite.groupby(answer, sort=False, dropna=False).ngroup().to_numpy()
        labels = [str(label) if not wording.is_missing(label) else None for label in of_suite["label"]]
        verdicts: dict[int, list[tuple[str, str | None]]] = {}
        for place, kind, label in zip(number, suites.texts(of_suite["kind"]), labels, strict=True):
            verdicts.setdefault(int(place), []).append((kind, label))
        disputed = [place for place, given in verdicts.items() if disagree(given)]
        chosen = _spread(disputed, DISAGREEING) if disputed else list(_each_label(of_suite, number, labels))
        rows = of_suite.groupby(number, sort=False)
        groups.append(
            {
                "suite": wording.shortened(suite, LONGEST_NAME),
                "n": len(verdicts),
                "disputed": len(disputed),
                "several": suites.texts(of_suite["judge"]).nunique() > 1,
                "harmful": any(
                    wording.is_harmful(*each) for each in of_suite[["side", "attack"]].drop_duplicates().to_numpy()
                ),
                "rows": [_answer(rows.get_group(place), show_completions=show_completions) for place in chosen],
            }
        )
    return groups


def disagree(given: list[tuple[str, str | None]]) -> bool:
    """Whether verdicts (kind, label) on one answer differ: labels of one kind, or, across kinds, whether it complied.

    A missing label says nothing. A judge of kind `refusal` says that an answer complied by full_compliance, one of kind
    `harm` by harmful.
    """
    known = [(kind, label) for kind, label in given if label is not None]
    by_kind = {kind: {label for k, label in known if k == kind} for kind, _ in known}
    complied = {label == _COMPLIED.get(kind) for kind, label in known if kind in _COMPLIED}
    return any(len(labels) > 1 for labels in by_kind.values()) or len(complied) > 1


def _each_label(verdicts: pd.DataFrame, number: np.ndarray, labels: list[str | None]) -> Iterator[int]:
    """Answers of the first judge, a few of each label, spread over the checkpoints."""
    first = judges(verdicts)[0][0]
    by_label: dict[str, list[int]] = {}
    for place, judge, label in zip(number, suites.texts(verdicts["judge"]), labels, strict=True):
        if judge == first:
            by_label.setdefault(label or "", []).append(int(place))
    seen: set[int] = set()
    for label in sorted(by_label):
        for place in _spread(by_label[label], EACH_LABEL):
            if place not in seen:
                seen.add(place)
                yield place


def _spread(values: list[int], n: int) -> list[int]:
    """At most `n` of `values`, evenly spaced."""
    places = np.unique(np.linspace(0, len(values) - 1, min(n, len(values))).round().astype(int))
    return [values[place] for place in places]


def _answer(rows: pd.DataFrame, *, show_completions: bool) -> dict[str, Any]:
    row = rows.iloc[0].to_dict()
    short = wording.is_harmful(row["side"], row["attack"]) and not show_completions
    name = {key: wording.shortened(row[key], LONGEST_NAME) for key in ("arm", "attack", "intervention", "side")}
    return {
        **{key: "" if text == "none" else text for key, text in name.items()},
        "step": wording.whole(row["step"]),
        **{key: wording.shortened(row[key], LONGEST_NAME) for key in ("prompt_id", "category")},
        "prompt": wording.shortened(row["prompt"], LONGEST_TEXT),
        "completion": wording.shortened(row["completion"], wording.SHORT_COMPLETION if short else LONGEST_TEXT),
        "verdicts": [
            {
                "judge": wording.shortened(each["judge"], LONGEST_NAME),
                "label": ""
                if wording.is_missing(each["label"])
                else wording.metric_name(wording.shortened(each["label"], LONGEST_NAME)),
                "score": "" if wording.is_missing(each["score"]) else wording.number(each["score"]),
                "because": wording.shortened(each["because"], wording.SHORT_COMPLETION if short else LONGEST_REASON),
            }
            for each in rows.to_dict("records")
        ],
    }
