"""Rates of judged answers under several conditions, each beside its difference from one of them on the same prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechrefusal.durability.asking import Judged
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import paired_difference
from mechrefusal.prompts import PromptSet
from mechrefusal.statistics import Observations, Observed, intervals
from mechrefusal.statistics.observations import keys_of

MEASURES = ("refused", "degenerate")
"""What of an answer is counted (`asking.Judged`)."""
SIDES = ("harmful", "harmless")

Cell = tuple[Any, ...]
"""A condition: one value of every axis."""
Outcomes = Float[np.ndarray, " prompt"]
"""0 or 1 of every prompt, NaN where there is none."""


@dataclass(frozen=True)
class Rates(Observed):
    """`table`: one row a condition. `observations`: the outcome of every prompt at every condition (0, 1).

    Columns of the table: the axes; value, low, high (95%, Wilson) and n; difference, difference_low, difference_high
    (95%, Newcombe) and mcnemar_p from the condition that it is compared with, on the `n_compared` prompts that have an
    outcome at both (none where it is that condition itself); and reason, why there is no rate.
    """

    table: pd.DataFrame
    observations: Observations

    def _estimate(self, cell: pd.Series, values: Outcomes, confidence: float) -> intervals.Estimate:
        return intervals.rate(int(values.sum()), len(values), confidence=confidence)


class Outcome:
    """What becomes of the prompts of both sides, condition by condition.

    Args:
        sides: the prompts of each side. Ids that both sides have are told apart by the side.
        axes: names of what makes a condition; `side` is one of them.
    """

    def __init__(self, sides: Mapping[str, PromptSet], axes: Sequence[str]) -> None:
        self.axes, self._side = tuple(axes), tuple(axes).index("side")
        named = [(side, name) for side, prompts in sides.items() for name in prompts.ids]
        names = [name for _, name in named]
        self.units = tuple(name if names.count(name) == 1 else f"{side} {name}" for side, name in named)
        self._rows = {side: [row for row, (of, _) in enumerate(named) if of == side] for side in sides}
        self._cells: dict[Cell, Outcomes] = {}
        self._reasons: dict[Cell, str] = {}

    def judged(self, condition: Cell, judged: Judged) -> None:
        """Both of `MEASURES` at a condition that lacks the last axis, the measure."""
        for measure in MEASURES:
            self.add((*condition, measure), getattr(judged, measure))

    def add(self, cell: Cell, values: Sequence[float] | np.ndarray, *, reason: str = "") -> None:
        """The outcomes of the prompts of the cell's side at a condition; `reason`: why none of them has one."""
        rows, column = self._rows[cell[self._side]], np.full(len(self.units), np.nan)
        if len(values) != len(rows):
            raise MechrefusalError(f"{len(values)} outcomes do not fit the {len(rows)} prompts of {cell}")
        column[rows] = np.asarray(values, float)
        self._cells[cell], self._reasons[cell] = column, reason

    def missing(self, cell: Cell, reason: str) -> None:
        """A condition that none of the prompts was measured at, and why."""
        self.add(cell, [float("nan")] * len(self._rows[cell[self._side]]), reason=reason)

    def rates(self, compared_with: Callable[[dict[str, Any]], dict[str, Any]]) -> Rates:
        """All conditions as rates.

        Args:
            compared_with: of a condition (by its axes), the axes in which the one that it is compared with differs.
        """
        cells = pd.DataFrame(list(self._cells), columns=list(self.axes))
        values = np.stack(list(self._cells.values()), axis=1)
        observations = Observations(values, cells, self.units)
        rows = []
        for cell in keys_of(cells):
            known = dict(zip(self.axes, cell, strict=True))
            other = tuple({**known, **compared_with(known)}.values())
            own = self._cells[cell]
            there = own[~np.isnan(own)]
            row = {**known, **vars(intervals.rate(int(there.sum()), len(there)))}
            rows.append({**row, **self._difference(other, cell), "reason": self._reasons[cell]})
        return Rates(pd.DataFrame(rows), observations)

    def _difference(self, first: Cell, second: Cell) -> dict[str, Any]:
        rows = self._rows[second[self._side]] if first != second else []
        found = paired_difference(self._cells[first][rows], self._cells[second][rows], rows)
        return {
            "difference": found.difference,
            "difference_low": found.low,
            "difference_high": found.high,
            "mcnemar_p": found.mcnemar_p,
            "n_compared": found.n,
        }


def require_sides(measure: str, harmful: PromptSet, harmless: PromptSet) -> dict[str, PromptSet]:
    """Both sides by their names.

    Raises:
        MechrefusalError: one of them is empty.
    """
    if not len(harmful) or not len(harmless):
        raise MechrefusalError(
            f"{measure} asks harmful and harmless prompts, got {len(harmful)} and {len(harmless)}: give one at least"
        )
    return dict(zip(SIDES, (harmful, harmless), strict=True))
