"""Stages that are taken of pairs of checkpoints: each pair is kept by itself; its tables stand one below the other."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from mechrefusal import tables
from mechrefusal.progress import say
from mechrefusal.study.caching import Inputs, Made
from mechrefusal.study.run import Run


@dataclass(frozen=True)
class PairUnit:
    """What is measured of one pair.

    Fields:
        name: of the pair, in the manifest and of its folder.
        doing: what is said, and timed, while it is taken.
        inputs: all that the numbers hang on.
        rows: the work; rows of each table, by the table's name.
    """

    name: str
    doing: str
    inputs: Inputs
    rows: Callable[[], Mapping[str, pd.DataFrame | list[dict]]]

    def made(self, run: Run) -> Made:
        """Do the work."""
        say(self.doing)
        with run.timed(self.doing):
            found = {name: tables.frame(name, rows) for name, rows in self.rows().items()}
        folder = run.measurements() / "pairs" / self.name
        return Made({folder / f"{name}.parquet": rows for name, rows in found.items()})


def by_pair(run: Run, stage: str, names: Sequence[str], units: Iterable[PairUnit]) -> dict[str, pd.DataFrame]:
    """The tables `names` of all pairs; without rows where there is no pair. Finished pairs are read from disk."""
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in names}
    for unit in units:
        kept = run.cached(stage, unit.name, unit.inputs, partial(unit.made, run))
        for name, found in parts.items():
            found.append(kept.table(name))
    return {
        name: pd.concat(found, ignore_index=True) if found else tables.frame(name, []) for name, found in parts.items()
    }
