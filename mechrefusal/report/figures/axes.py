"""The two sides of a matrix: what each row of a table is along it, in which order, and how that is called."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mechrefusal.report.figures.catalogue import checkpoint_name, position_name
from mechrefusal.report.order import checkpoint_order


@dataclass(frozen=True)
class Axis:
    """One side of a matrix.

    Fields:
        keys: of every row of the table.
        order: the different keys in order; they stand at 0, 1, ... where they are named, else at their own numbers.
        names: of the keys in order, plain text; None for numbers.
    """

    keys: Sequence[Any]
    order: Sequence[Any]
    names: Sequence[str] | None = None

    @cached_property
    def places(self) -> dict[Any, float]:
        """Where each key stands."""
        return {key: (place if self.names else key) for place, key in enumerate(self.order)}

    @property
    def ends(self) -> list[float]:
        """From the outer edge of the first cell to that of the last."""
        at = [float(place) for place in self.places.values()]
        first, last = np.diff(at)[[0, -1]] / 2 if len(at) > 1 else (0.5, 0.5)
        return [at[0] - float(first), at[-1] + float(last)]

    def where(self, flags: Iterable[bool]) -> list[float]:
        """Where the rows with a flag stand."""
        return [self.places[key] for key, flag in zip(self.keys, flags, strict=True) if flag]


def numbers(values: pd.Series) -> Axis:
    """Layers, or heads, at their own numbers."""
    keys = [int(value) for value in values]
    return Axis(keys, sorted(set(keys)))


def named(keys: Iterable[Any], name: Callable = str, *, order: Callable | None = None) -> Axis:
    """Keys in the order in which they appear, or sorted by `order`, and called what `name` makes of them."""
    keys = list(keys)
    different = list(dict.fromkeys(keys))
    different = sorted(different, key=order) if order else different
    return Axis(keys, different, [name(key) for key in different])


def positions(values: pd.Series, tokens: Mapping[int, str] | None = None) -> Axis:
    """Positions from the end of the prompt, with their tokens."""
    return named(map(int, values), lambda key: position_name(key, (tokens or {}).get(key)), order=int)


def checkpoints(rows: pd.DataFrame, end: str = "", *, limit: int = 16) -> Axis:
    """Checkpoints (arm, step) of the columns `arm<end>` and `step<end>`: no attack, base, warm-up, arm by arm."""
    keys = zip(rows[f"arm{end}"].astype(str), rows[f"step{end}"].astype(int), strict=True)
    return named(
        keys, lambda key: checkpoint_label(key, limit), order=lambda key: (key[1] >= 0, *checkpoint_order(key))
    )


def checkpoint_label(key: tuple[str, int], limit: int = 16) -> str:
    """`sft 50`, plain text; a negative step is no checkpoint but no attack (as in table `stress_transfer`)."""
    return "no attack" if key[1] < 0 else checkpoint_name({"arm": key[0], "step": key[1]}, limit=limit)


def largest(cells: Sequence[np.ndarray], centre: float = 0.0) -> float:
    """The largest distance from `centre` in matrices; 1 where all is missing, or at the centre."""
    far = [float(np.nanmax(np.abs(matrix - centre))) for matrix in cells if np.isfinite(matrix).any()]
    return max(far, default=0.0) or 1.0


def map_height(n_layers: int) -> int:
    """Height of a map with so many layers, pixels."""
    return int(min(600, max(190, 13 * n_layers + 30)))
