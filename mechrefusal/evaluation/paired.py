"""Two checkpoints on the same prompts: differences of rates with what their pairing tells.

Two rates with overlapping intervals can differ beyond doubt where the same prompts were asked, as most of the noise is
the prompts' and goes out in the difference.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import combinations, pairwise
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from mechrefusal.errors import MechrefusalError
from mechrefusal.statistics.paired import mean_difference, rate_difference

BASE = "base"
"""Name of the arm of the model that all arms start from."""
PAIR_COLUMNS = ("pair", "arm_a", "step_a", "arm_b", "step_b")

Checkpoint = tuple[str, int]
"""Arm and step."""


@dataclass(frozen=True)
class PairedDifference:
    """Mean of b minus mean of a over the prompts that have an outcome at both.

    low, high: 95% interval over prompts. n: prompts compared; nulls: prompts left out for want of an outcome on either
    side. only_a, only_b: discordant prompts, 1 at that one alone (McNemar's b and c). mcnemar_p: exact, two-sided, for
    outcomes of 0 and 1. NaN (only_a, only_b: None) where there is no such thing.
    """

    difference: float
    low: float
    high: float
    mcnemar_p: float
    mean_a: float
    mean_b: float
    only_a: int | None
    only_b: int | None
    n: int
    nulls: int


def paired_difference(
    a: Sequence[Any] | np.ndarray | pd.Series,
    b: Sequence[Any] | np.ndarray | pd.Series,
    ids: Sequence[Hashable] | np.ndarray | pd.Series,
    groups: Sequence[Hashable] | np.ndarray | pd.Series | None = None,
) -> PairedDifference:
    """How far the mean outcome moved from checkpoint a to checkpoint b, prompt by prompt.

    The interval: of outcomes of 0 and 1 `statistics.paired.rate_difference` (Newcombe, 1998), of others
    `statistics.paired.mean_difference`; NaN for fewer than two prompts or groups. McNemar's test (1947), exact: the
    discordant prompts are a fair coin where nothing changed. It takes prompts for independent, whatever `groups` says.

    Args:
        a, b: outcomes, 0/1, booleans or real numbers, in the order of `ids`; None and NaN where there is none (a judge
            that gave no verdict).
        ids: the prompts, each once.
        groups: what stands or falls together (the two sides of a twin, cases of one behaviour), in the same order; a
            prompt without a group stands alone.

    Raises:
        MechrefusalError: lengths differ, an id occurs twice, or an outcome is no finite number.
    """
    ids = list(ids)
    if not len(a) == len(b) == len(ids) == (len(ids) if groups is None else len(groups)):
        of_groups = "" if groups is None else f" and {len(groups)} groups"
        raise MechrefusalError(
            f"{len(a)} outcomes of a, {len(b)} of b{of_groups} do not fit {len(ids)} ids: give one a prompt"
        )
    seen: set[Hashable] = set()
    for identity in ids:
        if identity in seen:
            raise MechrefusalError(f"prompt '{identity}' stands twice: a pair needs one outcome a prompt")
        seen.add(identity)
    first, second = _numbers(a, ids, "a"), _numbers(b, ids, "b")
    both = ~np.isnan(first) & ~np.isnan(second)
    first, second = first[both], second[both]
    labels = None if groups is None else pd.Series(list(groups), dtype=object)[both]
    rates = np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()
    interval = rate_difference(first, second, labels) if rates else mean_difference(second - first, labels)
    only_a, only_b, p = _mcnemar(first, second)
    n, nan = len(first), float("nan")
    return PairedDifference(
        difference=float((second - first).mean()) if n else nan,
        low=interval.low,
        high=interval.high,
        mcnemar_p=p,
        mean_a=float(first.mean()) if n else nan,
        mean_b=float(second.mean()) if n else nan,
        only_a=only_a,
        only_b=only_b,
        n=n,
        nulls=len(ids) - n,
    )


def compare(
    table: pd.DataFrame,
    *,
    value: str | Sequence[str],
    by: Sequence[str] = ("set", "attack", "intervention"),
    key: str = "prompt_id",
    groups: str | None = None,
) -> pd.DataFrame:
    """`paired_difference` of every pair of checkpoints in a table of judged completions.

    The pairs: the base against every other checkpoint (`pair` base), consecutive anchors of an arm (consecutive), and
    the last anchors of the arms, in the order of the table, with each other (last). One row a pair, cell of `by` that
    either side has, and metric. Each p is of its row alone: many rows need a correction (`statistics.maps.holm`).

    Args:
        table: one row a completion, with columns `arm` ("base" for the model before training), `step`, those of `by`,
            `key` and `value`, and `groups` where given. Where several judges share a table, put `judge` into `by`.
        value: the outcomes to compare, one metric a column (`refused`, `degenerate`, a score).
        by: what is compared only with its like.
        key: what makes a prompt the same at two checkpoints.
        groups: column of what stands or falls together (`twin`).

    Returns:
        Columns pair, arm_a, step_a, arm_b, step_b, those of `by`, metric, those of `PairedDifference` (b minus a), and
        missing_a, missing_b: prompts without a row at a, or at b, that the other one has; they are not compared.

    Raises:
        MechrefusalError: a column is missing, a prompt stands twice at a checkpoint, arm, step or prompt is empty, the
            base has several steps, or a prompt is in other groups at other checkpoints.
    """
    metrics, by = [value] if isinstance(value, str) else list(value), list(by)
    _check(table, [*by, *metrics, *([groups] if groups else [])], key)
    table = table.reset_index(drop=True)
    # Cells by number: a missing value in a column of `by` is a cell like any other.
    cell = table.groupby(by, sort=False, dropna=False, observed=True).ngroup() if by else pd.Series(0, table.index)
    first = ~cell.duplicated()
    named = dict(zip(cell[first], table.loc[first, by].to_dict("records"), strict=True))
    _check_unique(table, cell, by, key)
    outcomes = table.set_index(key)[[*metrics, *([groups] if groups else [])]]
    # Of every checkpoint, by cell, the rows of `outcomes`.
    sides: dict[Checkpoint, dict[int, pd.DataFrame]] = {}
    for (arm, step, number), places in table.groupby(["arm", "step", cell], sort=False, observed=True).indices.items():
        sides.setdefault((arm, step), {})[number] = outcomes.iloc[np.sort(places)]
    rows = []
    for kind, a, b in _pairs(sides):
        place = {"pair": kind, "arm_a": a[0], "step_a": a[1], "arm_b": b[0], "step_b": b[1]}
        for number in sorted(sides[a].keys() | sides[b].keys()):
            side_a, side_b = (sides[side].get(number, outcomes[:0]) for side in (a, b))
            differences = _compared(side_a, side_b, metrics, groups)
            rows += [place | named[number] | {"metric": metric} | row for metric, row in differences]
    columns = [
        *PAIR_COLUMNS,
        *by,
        "metric",
        *(field.name for field in fields(PairedDifference)),
        "missing_a",
        "missing_b",
    ]
    return pd.DataFrame(rows, columns=columns).astype({"only_a": "Int64", "only_b": "Int64"})


def _pairs(checkpoints: Iterable[Checkpoint]) -> Iterator[tuple[str, Checkpoint, Checkpoint]]:
    arms: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        arms.setdefault(checkpoint[0], []).append(checkpoint)
    base = arms.pop(BASE, [])
    if len(base) > 1:
        raise MechrefusalError(f"the arm '{BASE}' has the steps {sorted(step for _, step in base)}: keep one of them")
    lines = [sorted(line, key=lambda checkpoint: checkpoint[1]) for line in arms.values()]
    for line in lines:
        yield from (("base", start, checkpoint) for start in base for checkpoint in line)
    for line in lines:
        yield from (("consecutive", a, b) for a, b in pairwise(line))
    yield from (("last", a[-1], b[-1]) for a, b in combinations(lines, 2))


def _compared(
    a: pd.DataFrame, b: pd.DataFrame, metrics: Sequence[str], groups: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    shared = a.index[a.index.isin(b.index)]
    of_a, of_b = a.loc[shared], b.loc[shared]
    if groups is not None:
        labels = [side[groups].astype(object).where(side[groups].notna(), None).tolist() for side in (of_a, of_b)]
        if moved := [i for i, label_a, label_b in zip(shared, *labels, strict=True) if label_a != label_b]:
            raise MechrefusalError(
                f"prompt '{moved[0]}' is in another '{groups}' at another checkpoint: give it the same one everywhere"
            )
    alone = {"missing_a": len(b) - len(shared), "missing_b": len(a) - len(shared)}
    for metric in metrics:
        difference = paired_difference(
            of_a[metric],
            of_b[metric],
            shared,
            None if groups is None else of_a[groups],
        )
        yield metric, {**vars(difference), **alone}


def _check(table: pd.DataFrame, columns: Sequence[str], key: str) -> None:
    keys = ["arm", "step", key]
    if missing := [column for column in dict.fromkeys([*keys, *columns]) if column not in table]:
        raise MechrefusalError(f"the table of completions has no columns {missing}: it has {list(table.columns)}")
    for column in keys:
        if (empty := int(table[column].isna().sum())) > 0:
            raise MechrefusalError(f"column '{column}' is empty in {empty} of {len(table)} rows: fill it or drop them")


def _check_unique(table: pd.DataFrame, cell: pd.Series, by: Sequence[str], key: str) -> None:
    twice = pd.DataFrame({name: table[name] for name in ("arm", "step", key)} | {"": cell}).duplicated()
    if twice.any():
        row = table[twice].iloc[0]
        where = ", ".join(f"{name} {row[name]}" for name in ("arm", "step", *by))
        raise MechrefusalError(
            f"prompt '{row[key]}' stands twice at {where} ({int(twice.sum())} such rows in all): "
            "put the column that tells them apart into by=, or drop one"
        )


def _numbers(values: Iterable[Any], ids: Sequence[Hashable], side: str) -> Float[np.ndarray, " prompt"]:
    numbers = np.full(len(ids), np.nan)
    for place, (value, identity) in enumerate(zip(values, ids, strict=True)):
        if value is None or value is pd.NA or value is pd.NaT:
            continue
        if not isinstance(value, (bool, np.bool_, Real)) or np.isinf(float(value)):
            raise MechrefusalError(
                f"the outcome of prompt '{identity}' at {side} is {value!r}: give 0, 1, a finite number, or None"
            )
        numbers[place] = float(value)
    return numbers


def _mcnemar(a: np.ndarray, b: np.ndarray) -> tuple[int | None, int | None, float]:
    if not len(a) or not np.isin(a, (0, 1)).all() or not np.isin(b, (0, 1)).all():
        return None, None, float("nan")
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    return only_a, only_b, float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
