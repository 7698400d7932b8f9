"""What the tables of an evaluation say, as rows and sentences. Plain text: the page escapes it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from mechrefusal.files import checkpoint_id
from mechrefusal.report import wording
from mechrefusal.report.figures import suites
from mechrefusal.report.order import checkpoint_order

DISAGREEING, EACH_LABEL = 12, 4
LEAKS_SHOWN = 5
LONGEST_NAME, LONGEST_LEAK, LONGEST_REASON = 60, 160, 300
LONGEST_TEXT = 2000

COLUMNS = {
    ("refusal", "harmful"): ("any_refusal", "attack_success", "degenerate"),
    ("refusal", "harmless"): ("any_refusal", "full_refusal", "partial_refusal", "answered", "degenerate"),
    ("harm", "harmful"): ("attack_success", "score"),
}
"""Rates of the headline table by kind of judge and side; full and partial refusal on prompts that look unsafe only."""
REFUSALS = ("full_refusal", "partial_refusal")
"""Labels of any refusal."""
_COMPLIED = {"refusal": "full_compliance", "harm": "harmful"}
_LOOKS_UNSAFE = ("xstest", "orbench", "or-bench", "overrefusal")


def looks_unsafe(suite: str) -> bool:
    """Whether a suite's harmless prompts look unsafe, by its name (XSTest and its kin): over-refusal is read there."""
    return any(name in suite.lower() for name in _LOOKS_UNSAFE)


def columns(kind: str, side: str, suite: str) -> tuple[str, ...]:
    """Metrics of the headline table of one suite and side, by one kind of judge."""
    found = COLUMNS.get((kind, side), ("any_refusal", "attack_success", "answered", "score"))
    return found if looks_unsafe(suite) else tuple(name for name in found if name not in REFUSALS)


def judges(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(judge, kind), judges of refusal first."""
    found = dict.fromkeys(zip(suites.texts(table["judge"]), suites.texts(table["kind"]), strict=True))
    return sorted(found, key=lambda key: (key[1] != "refusal", key[1], key[0]))


def sides(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(suite, side) in the order of the table, both sides of a suite together."""
    found = list(dict.fromkeys(zip(suites.texts(table["suite"]), suites.texts(table["side"]), strict=True)))
    order = list(dict.fromkeys(suite for suite, _ in found))
    return sorted(found, key=lambda key: (order.index(key[0]), key[1]))


def headline(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One entry a judge, in it one table a suite and side (table `rates`, all categories together).

    A row is a checkpoint, attack and intervention; a cell has value, interval, n and nulls, or is None. `n` and `nulls`
    of a row are those of its cells, `250`, or `250/248` in their order where the cells differ.
    """
    whole = suites.of(table, by="all")
    whole = whole.assign(**{name: suites.floats(whole[name]) for name in (*suites.NUMBERS, "step")})
    whole = whole.assign(**{name: suites.texts(whole[name]) for name in ("arm", "attack", "intervention", "metric")})
    made = []
    for judge, kind in judges(whole):
        own = suites.of(whole, judge=judge, kind=kind)
        parts = [_suite(suites.of(own, suite=suite, side=side), kind, suite, side) for suite, side in sides(own)]
        name = wording.shortened(judge, LONGEST_NAME)
        by = [wording.shortened(source, LONGEST_NAME) for source in wording.correction_sources(own)]
        made.append({"judge": name, "kind": wording.shortened(kind, LONGEST_NAME), "suites": parts, "corrected_by": by})
    return made


def _suite(own: pd.DataFrame, kind: str, suite: str, side: str) -> dict[str, Any]:
    there = set(own["metric"])
    metrics = [name for name in columns(kind, side, suite) if name in there]
    rows: dict[tuple[str, float, str, str], dict[str, Any]] = {}
    for row in own.to_dict("records"):
        key = (row["arm"], float(row["step"]), row["attack"], row["intervention"])
        rows.setdefault(key, {})[row["metric"]] = _cell(row)
    return {
        "suite": wording.shortened(suite, LONGEST_NAME),
        "side": wording.shortened(side, LONGEST_NAME),
        "metrics": [wording.metric_name(name) for name in metrics],
        "attacked": any(attack != "none" for _, _, attack, _ in rows),
        "intervened": any(intervention != "none" for *_, intervention in rows),
        "rows": _named(
            [(key, [cells.get(name) for name in metrics]) for key, cells in sorted(rows.items(), key=_order)]
        ),
    }


def _order(item: tuple[tuple[str, float, str, str], Any]) -> tuple:
    arm, step, attack, intervention = item[0]
    place = checkpoint_order((arm, float("inf") if np.isnan(step) else step))
    return (*place, attack != "none", attack, intervention != "none", intervention)


def _named(rows: list[tuple[tuple[str, float, str, str], list]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for (arm, step, attack, intervention), cells in rows:
        made.append(
            {
                "id": "" if np.isnan(step) else checkpoint_id(arm, int(step)),
                "arm": wording.shortened(arm, LONGEST_NAME),
                "step": wording.whole(step),
                "first": not made or made[-1]["arm"] != wording.shortened(arm, LONGEST_NAME),
                "attack": "" if attack == "none" else wording.shortened(attack, LONGEST_NAME),
                "intervention": "" if intervention == "none" else wording.shortened(intervention, LONGEST_NAME),
                "cells": cells,
                "n": "/".join(dict.fromkeys(cell["n"] for cell in cells if cell)) or wording.MISSING,
                "nulls": "/".join(dict.fromkeys(cell["nulls"] or "0" for cell in cells if cell)) or wording.MISSING,
            }
        )
    return made


def _cell(row: dict[str, Any]) -> dict[str, Any]:
    known = not wording.is_missing(row["low"]) and not wording.is_missing(row["high"])
    return {
        "value": wording.rate(row["value"]),
        "interval": f"{wording.rate(row['low'])}–{wording.rate(row['high'])}" if known else "no interval",
        "n": wording.whole(row["n"]),
        "nulls": "" if wording.is_missing(row["nulls"]) or row["nulls"] == 0 else wording.whole(row["nulls"]),
        "corrected": wording.corrected(row),
    }


def agreement(table: pd.DataFrame) -> list[dict[str, str]]:
    """Rows of table `judge_agreement`, in words."""
    return [
        {
            **{name: wording.shortened(row[name], LONGEST_NAME) for name in ("suite", "judge_a", "judge_b")},
            "question": wording.metric_name(wording.shortened(row["question"], LONGEST_NAME)),
            "share": wording.rate(row["share"]),
            "kappa": wording.number(row["kappa"]),
            **{name: wording.whole(row[name]) for name in ("n", "nulls_a", "nulls_b")},
        }
        for row in table.to_dict("records")
    ]


def leaks(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Leaked prompts by pair of sets and kind: how many, and the first few, shortened."""
    names = ("set_a", "set_b", "kind")
    keys = list(zip(*(suites.texts(table[name]) for name in names), strict=True))
    groups = []
    for key in dict.fromkeys(keys):
        rows = table[[each == key for each in keys]]
        first = [
            {
                **{name: wording.shortened(row[name], LONGEST_NAME) for name in ("id_a", "id_b")},
                **{name: wording.shortened(row[name], LONGEST_LEAK) for name in ("text", "text_b")},
                "similarity": wording.number(row["similarity"]),
            }
            for row in rows.head(LEAKS_SHOWN).to_dict("records")
        ]
        words = {name: wording.shortened(value, LONGEST_NAME) for name, value in zip(names, key, strict=True)}
        groups.append({**words, "n": len(rows), "rows": first})
    return groups


def samples(table: pd.DataFrame, *, show_completions: bool) -> list[dict[str, Any]]:
    """For each suite a few judged answers: those on which judges disagree, or where none do, some of each label.

    Answers to harmful prompts, and under any attack, are shortened unless `show_completions`, and so is what a judge
    quotes of them.
    """
    answer = ["arm", "step", "side", "prompt_id", "attack", "intervention"]
    groups = []
    for suite in dict.fromkeys(suites.texts(table["suite"])):
        own = suites.of(table, suite=suite)
        number = own.groupby(answer, sort=False, dropna=False).ngroup().to_numpy()
        labels = [str(label) if not wording.is_missing(label) else None for label in own["label"]]
        verdicts: dict[int, list[tuple[str, str | None]]] = {}
        for place, kind, label in zip(number, suites.texts(own["kind"]), labels, strict=True):
            verdicts.setdefault(int(place), []).append((kind, label))
        disputed = [place for place, given in verdicts.items() if disagree(given)]
        chosen = _spread(disputed, DISAGREEING) if disputed else list(_each_label(own, number, labels))
        rows = own.groupby(number, sort=False)
        groups.append(
            {
                "suite": wording.shortened(suite, LONGEST_NAME),
                "n": len(verdicts),
                "disputed": len(disputed),
                "several": suites.texts(own["judge"]).nunique() > 1,
                "harmful": any(
                    wording.is_harmful(*each) for each in own[["side", "attack"]].drop_duplicates().to_numpy()
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


def _each_label(own: pd.DataFrame, number: np.ndarray, labels: list[str | None]) -> Iterator[int]:
    """Answers of the first judge, a few of each label, spread over the checkpoints."""
    first = judges(own)[0][0]
    by_label: dict[str, list[int]] = {}
    for place, judge, label in zip(number, suites.texts(own["judge"]), labels, strict=True):
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
