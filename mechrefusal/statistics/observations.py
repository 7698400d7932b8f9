"""What a measure saw, unit by unit and cell by cell: kept, so that any statistic can be taken of it afterwards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechrefusal.errors import MechrefusalError
from mechrefusal.statistics import intervals
from mechrefusal.statistics.maps import sign_flip_p


@dataclass(frozen=True)
class Observations:
    """One value of every unit (a prompt, or a pair of prompts) at every cell (a head, a layer and position, a path).

    Fields:
        values: NaN where a unit has no such cell, as a short prompt lacks a position.
        cells: one row a column of `values`; its columns are the named axes (layer, head, position, …).
        units: ids of the prompts or pairs.
        unit: what they are, "prompt" or "pair".
    """

    values: Float[np.ndarray, "unit cell"]
    cells: pd.DataFrame
    units: tuple[str, ...]
    unit: str = "prompt"

    def __post_init__(self) -> None:
        assert self.values.shape == (len(self.units), len(self.cells))

    @classmethod
    def of_rows(cls, rows: pd.DataFrame, axes: list[str], *, unit: str, value: str) -> "Observations":
        """From tidy rows, one a unit and cell; units and cells in the order in which they first stand."""
        keys, names = keys_of(rows[axes]), list(dict.fromkeys(rows[unit]))
        columns = {key: column for column, key in enumerate(dict.fromkeys(keys))}
        values = np.full((len(names), len(columns)), np.nan)
        values[[names.index(name) for name in rows[unit]], [columns[key] for key in keys]] = rows[value]
        cells = pd.DataFrame(list(columns), columns=axes)
        return cls(values, cells.convert_dtypes(), tuple(map(str, names)), unit)

    @classmethod
    def joined(cls, parts: "Sequence[Observations]", axis: str, names: Sequence[Any]) -> "Observations":
        """Cells of several observations side by side, with a new first axis that names these.

        Units are matched by their names.
        """
        units = tuple(dict.fromkeys(name for part in parts for name in part.units))
        values = np.full((len(units), sum(len(part.cells) for part in parts)), np.nan)
        column = 0
        for part in parts:
            rows = [units.index(name) for name in part.units]
            values[rows, column : column + len(part.cells)] = part.values
            column += len(part.cells)
        cells = [part.cells.assign(**{axis: name}) for part, name in zip(parts, names, strict=True)]
        table = pd.concat(cells, ignore_index=True)
        return cls(values, table[[axis, *parts[0].axes]], units, parts[0].unit)

    @classmethod
    def of_sides(
        cls, sizes: Mapping[str, int], values: Mapping[tuple, tuple[str, np.ndarray]], axes: Sequence[str]
    ) -> "Observations":
        """Of prompts of several sides, such as harmful and harmless ones, each cell measured on one side.

        Args:
            sizes: prompts of each side. Units are named by side and place, as "harmful 0".
            values: by cell the side, and one value a prompt of it.
        """
        units = [(side, place) for side, n in sizes.items() for place in range(n)]
        table = np.full((len(units), len(values)), np.nan)
        for column, (side, measured) in enumerate(values.values()):
            table[[row for row, unit in enumerate(units) if unit[0] == side], column] = measured
        names = tuple(f"{side} {place}" for side, place in units)
        return cls(table, pd.DataFrame(list(values), columns=list(axes)), names)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of the cells."""
        return tuple(self.cells.columns)

    @property
    def table(self) -> pd.DataFrame:
        """Tidy: the axes, the unit and `value`, without the cells that a unit lacks."""
        cells = self.cells.loc[self.cells.index.repeat(len(self.units))].reset_index(drop=True)
        names = list(self.units) * len(self.cells)
        return cells.assign(**{self.unit: names, "value": self.values.T.ravel()}).dropna(subset=["value"])

    def where(self, **axes: Any) -> "Observations":
        """The cells with these values on these axes, such as `layer=3`; None is where an axis has no value.

        Raises:
            MechrefusalError: an axis that is none, or no such cell.
        """
        if unknown := [name for name in axes if name not in self.axes]:
            raise MechrefusalError(f"no axis '{unknown[0]}'; these observations have {', '.join(self.axes)}")
        chosen = np.ones(len(self.cells), dtype=bool)
        for name, value in axes.items():
            column = self.cells[name]
            chosen &= (column.isna() if value is None else (column == value).fillna(False)).to_numpy(bool)
        if not chosen.any():
            named = ", ".join(f"{name} {value}" for name, value in axes.items())
            raise MechrefusalError(f"no cell with {named} was measured")
        return Observations(self.values[:, chosen], self.cells[chosen].reset_index(drop=True), self.units, self.unit)

    def of(self, **axes: Any) -> Float[np.ndarray, " unit"]:
        """The values of one cell, for the units that have it.

        Raises:
            MechrefusalError: as `where`; or several cells fit.
        """
        fitting = self.where(**axes)
        if len(fitting.cells) > 1:
            raise MechrefusalError(f"{len(fitting.cells)} cells fit {axes}; give all of {', '.join(self.axes)}")
        return fitting.values[~np.isnan(fitting.values[:, 0]), 0]

    def interval(self, *, confidence: float = 0.95, **axes: Any) -> intervals.Estimate:
        """Mean of one cell over the units, with Student's t interval."""
        return intervals.mean(self.of(**axes), confidence=confidence)

    def bootstrap(
        self,
        statistic: Callable[[Float[np.ndarray, "unit cell"]], float],
        *,
        draws: int = 2000,
        seed: int = 0,
        confidence: float = 0.95,
    ) -> intervals.Estimate:
        """Any statistic of all values, with its percentile interval over bootstraps of whole units (Efron, 1979)."""
        random, n = np.random.default_rng(seed), len(self.units)
        statistics = [statistic(self.values[random.integers(n, size=n)]) for _ in range(draws)]
        low, high = np.nanquantile(statistics, [(1 - confidence) / 2, (1 + confidence) / 2])
        return intervals.Estimate(float(statistic(self.values)), float(low), float(high), n)

    def p(self) -> Float[np.ndarray, " cell"]:
        """Of every cell that its mean is zero, by flipping signs of whole units; adjusted for all cells that every unit
        has, NaN for others (`maps.sign_flip_p`)."""
        return np.asarray(sign_flip_p(self.values), float)

    def top(self, k: int) -> pd.DataFrame:
        """The `k` cells with the largest absolute mean, largest first: the axes and `value`."""
        means = self.cells.assign(value=np.nanmean(self.values, axis=0) if len(self.units) else np.nan)
        order = means["value"].abs().sort_values(ascending=False, kind="stable").index[:k]
        return means.loc[order].reset_index(drop=True)


class Observed:
    """A result that keeps every value in `observations`, and what is read off them by the names of their axes."""

    observations: Observations

    def interval(self, *, confidence: float = 0.95, **axes: Any) -> intervals.Estimate:
        """The estimate of one cell over the units, the same as in the table: by default their mean.

        Raises:
            MechrefusalError: an axis that is none, no such cell, or several.
        """
        values, cell = self.observations.of(**axes), self.observations.where(**axes).cells.iloc[0]
        return self._estimate(cell, values, confidence)

    def _estimate(self, cell: pd.Series, values: Float[np.ndarray, " unit"], confidence: float) -> intervals.Estimate:
        return intervals.mean(values, confidence=confidence)

    def top(self, k: int) -> Any:
        """The `k` cells with the largest absolute mean, largest first: the axes and `value`."""
        return self.observations.top(k)


def numbered(n: int) -> tuple[str, ...]:
    """Names of units that have none of their own: their places in the list."""
    return tuple(map(str, range(n)))


def keys_of(cells: pd.DataFrame) -> list[tuple]:
    """The rows of a table of axes as tuples, None where an axis has no value."""
    return [tuple(None if pd.isna(each) else each for each in row) for row in cells.itertuples(index=False, name=None)]
