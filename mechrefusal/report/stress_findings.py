"""What the control of stress tests says, as rows for a page and a terminal. Plain text: whoever shows it escapes it."""

from typing import Any

import numpy as np
import pandas as pd

from mechrefusal.files import checkpoint_id
from mechrefusal.report import wording
from mechrefusal.report.figures import suites

LONGEST_NAME = 60
TWIN_RATES = {
    ("none", "answered"): "twin answered",
    ("attacked", "answered"): "twin answered, with suffix",
    ("none", "refused"): "twin refused",
    ("attacked", "refused"): "twin refused, with suffix",
}
SHARES = {"attack_success": "attack succeeds", "robust": "robust", "refuses_suffix": "refuses the suffix"}
"""Metrics of tables `stress_control` and `stress_differences` in words."""
LOSS = {"attack_loss": "loss of the attack, nats"}
"""The outcome of table `stress_differences` that is no share."""
KINDS = {
    "last": "last of two arms",
    "start": "since the warm-up",
    "base": "since the base",
    "same step": "same step of two arms",
    "consecutive": "since the anchor before",
    "other": "other pairs",
}
"""Kinds of pairs of table `stress_differences` in words, in the order in which they are shown."""


def control(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One entry an attack and judge of success (table `stress_control`), one row in it a checkpoint.

    Each row has a cell for every one of `TWIN_RATES` (by the judge of the twins) and `SHARES`, None where there is
    none, and `n` and `nulls`, `24`, or `24/23` in the order of the cells where these differ.
    """
    rows = suites.readable(table, *suites.NUMBERS)
    named = ("method", "judge", "twin_judge", "suffix", "metric")
    rows = rows.assign(**{name: suites.texts(rows[name]) for name in named})
    shares = rows[rows["metric"].isin(list(SHARES))]
    keys = ["method", "judge", "twin_judge"]
    groups = dict.fromkeys((shares if len(shares) else rows)[keys].itertuples(index=False, name=None))
    made = []
    for method, judge, twin_judge in groups:
        own = suites.of(rows, method=method)
        twins = suites.of(own, judge=twin_judge, twin_judge=twin_judge)
        cases = suites.of(own, judge=judge, twin_judge=twin_judge)
        points = sorted(set(zip(own["arm"], own["step"], strict=True)), key=suites.checkpoint_order)
        made.append(
            {
                "method": wording.shortened(method, LONGEST_NAME),
                "judge": wording.shortened(judge, LONGEST_NAME),
                "twin_judge": wording.shortened(twin_judge, LONGEST_NAME),
                "rows": [_row(twins, cases, point) for point in points],
            }
        )
    return made


def differences(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One entry an attack and judge of success (table `stress_differences`), in it the pairs in the order of `KINDS`.

    Each row says kind, from, to, metric, the two means, the difference with its interval, p, how many cases have the
    outcome at one alone, n and nulls; `is_clear` where the interval excludes 0.
    """
    numbers = ("difference", "low", "high", "mcnemar_p", "mean_a", "mean_b", "only_a", "only_b", "n", "nulls")
    rows = suites.readable(table, *numbers, arm="arm_a", step="step_a")
    rows = suites.readable(rows, arm="arm_b", step="step_b")
    named = ("pair", "method", "judge", "metric")
    rows = rows.assign(**{name: suites.texts(rows[name]) for name in named})
    kinds = list(KINDS)
    order = [kinds.index(kind) if kind in KINDS else len(kinds) for kind in rows["pair"]]
    rows = rows.iloc[np.argsort(order, kind="stable")]
    groups = dict.fromkeys(zip(rows["method"], rows["judge"], strict=True))
    return [
        {
            "method": wording.shortened(method, LONGEST_NAME),
            "judge": wording.shortened(judge, LONGEST_NAME),
            "rows": [_difference(row) for row in suites.of(rows, method=method, judge=judge).to_dict("records")],
        }
        for method, judge in groups
    ]


def _row(twins: pd.DataFrame, cases: pd.DataFrame, point: tuple[str, int]) -> dict[str, Any]:
    arm, step = point
    at = [own[(own["arm"] == arm) & (own["step"] == step)] for own in (twins, cases)]
    found = [suites.of(at[0], suffix=suffix, metric=metric) for suffix, metric in TWIN_RATES]
    found += [suites.of(at[1], metric=metric) for metric in SHARES]
    rates = [rows.iloc[0] for rows in found if len(rows)]
    return {
        "id": checkpoint_id(arm, step),
        "arm": wording.shortened(arm, LONGEST_NAME),
        "step": wording.whole(step),
        "cells": [_cell(rows.iloc[0]) if len(rows) else None for rows in found],
        **{name: "/".join(dict.fromkeys(wording.whole(rate[name]) for rate in rates)) for name in ("n", "nulls")},
    }


def _cell(row: pd.Series) -> dict[str, str]:
    known = not wording.is_missing(row["low"]) and not wording.is_missing(row["high"])
    interval = f"{wording.rate(row['low'])}–{wording.rate(row['high'])}" if known else "no interval"
    return {"value": wording.rate(row["value"]), "interval": interval}


def _difference(row: dict[str, Any]) -> dict[str, Any]:
    known = not wording.is_missing(row["low"]) and not wording.is_missing(row["high"])
    words = SHARES | LOSS
    return {
        "kind": KINDS.get(row["pair"], wording.shortened(row["pair"], LONGEST_NAME)),
        **{
            end: f"{wording.shortened(row[f'arm_{side}'], LONGEST_NAME)} {wording.whole(row[f'step_{side}'])}"
            for end, side in (("from", "a"), ("to", "b"))
        },
        "metric": words.get(row["metric"], wording.metric_name(wording.shortened(row["metric"], LONGEST_NAME))),
        "means": f"{wording.rate(row['mean_a'])} → {wording.rate(row['mean_b'])}",
        "difference": wording.number(row["difference"], signed=True),
        "interval": f"[{wording.number(row['low'])}, {wording.number(row['high'])}]" if known else "no interval",
        "is_clear": bool(known and (row["low"] > 0 or row["high"] < 0)),
        "p": wording.number(row["mcnemar_p"], 4),
        "only": f"{wording.whole(row['only_a'])} / {wording.whole(row['only_b'])}",
        "n": wording.whole(row["n"]),
        "nulls": wording.whole(row["nulls"]),
    }
