"""Stages that are taken of pairs of checkpoints: each pair is kept by itself; its tables stand one below the other."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import pandas as pd

from mechrefusal import tables
from mechrefusal.progress import say
from mechrefusal.study.caching import Inputs, Made
from mechrefusal.study.run import Run


class Pair(Protocol):
    """Two checkpoints under a stage."""

    @property
    def name(self) -> str:
        """In the manifest, and of the folder."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What the numbers hang on, of this pair."""


P = TypeVar("P", bound=Pair)
Rows = Mapping[str, pd.DataFrame | list[dict[str, Any]]]
"""Rows of each table, by the table's name."""


def by_pair(
    run: Run,
    stage: str,
    names: Sequence[str],
    pairs: Iterable[P],
    rows: Callable[[P], Rows],
    *,
    doing: str,
    shared: Inputs,
) -> dict[str, pd.DataFrame]:
    """The tables `names` of all pairs; without rows where there is no pair. Finished pairs are read from disk.

    Args:
        rows: the work on a pair.
        doing: what is said, and timed, before the pair's name.
        shared: what the numbers of every pair hang on.
    """
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in names}
    for pair in pairs:
        make = partial(_made, run, pair.name, f"{doing} {pair.name}", partial(rows, pair))
        kept = run.cached(stage, pair.name, {**shared, **pair.inputs}, make)
        for name, found in parts.items():
            found.append(kept.table(name))
    return {
        name: pd.concat(found, ignore_index=True) if found else tables.frame(name, []) for name, found in parts.items()
    }


def _made(run: Run, name: str, doing: str, rows: Callable[[], Rows]) -> Made:
    say(doing)
    with run.timed(doing):
        found = {table: tables.frame(table, each) for table, each in rows().items()}
    folder = run.measurements() / "pairs" / name
    return Made({folder / f"{table}.parquet": each for table, each in found.items()})
