"""Refusal carriers: the choice among candidate directions by their scores (Arditi et al., 2406.11717, appendix C)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry.directions import Directions

if TYPE_CHECKING:
    from mechrefusal.geometry.scoring import CarrierScores

COLUMNS = ("position", "layer", "bypass", "induce", "kl")


@dataclass(frozen=True)
class Selection:
    """`table`: every candidate with `admissible`, `rejected_because` and `winner`; `winner`: its row, or None."""

    table: pd.DataFrame
    winner: pd.Series | None


def candidates(directions: Directions, *, layers: Sequence[int], positions: Sequence[int] | None = None) -> list[dict]:
    """The (position, layer) pairs to score: `positions` (all by default) × `layers`."""
    wanted = directions.positions if positions is None else [p for p in positions if p in directions.positions]
    return [{"position": position, "layer": layer} for position in wanted for layer in layers]


def select(
    scores: "pd.DataFrame | CarrierScores",
    n_layers: int,
    kl_threshold: float = 0.1,
    induce_threshold: float = 0.0,
    prune_layer_fraction: float = 0.2,
) -> Selection:
    """Choose the carrier among scored candidates: the admissible one with the lowest bypass score.

    Admissible: no score is NaN, layer < int((1 − prune_layer_fraction) · n_layers), kl ≤ kl_threshold and
    induce ≥ induce_threshold. Ties go to the earlier layer, then to the earlier position. Rows with `exact` False (a
    screen put them out of the running) are judged by the scores that they have but never win.

    Args:
        scores: from `score` or `screened`, or any table with columns position, layer, bypass, induce, kl.
        n_layers: layers of the model.
        kl_threshold: nats.

    Raises:
        MechrefusalError: a missing column, one that holds no numbers, or a fraction outside 0 to 1.
    """
    given = scores if isinstance(scores, pd.DataFrame) else scores.table
    if missing := [name for name in COLUMNS if name not in given]:
        raise MechrefusalError(f"table of carrier scores lacks columns {missing}; it needs {list(COLUMNS)}")
    if not 0 <= prune_layer_fraction <= 1:
        raise MechrefusalError(f"prune_layer_fraction is {prune_layer_fraction:g}: give a share between 0 and 1")
    table = given.reset_index(drop=True).copy()
    numbers = _numbers(table)
    limit = last_layer(n_layers, prune_layer_fraction)
    reasons = []
    for row in numbers.itertuples():
        why = []
        if pd.isna([row.bypass, row.induce, row.kl]).any():
            why.append("a score is NaN")
        if pd.isna(row.layer) or pd.isna(row.position):
            why.append("its place is NaN")
        elif row.layer >= limit:
            why.append(f"layer {int(row.layer)} is not below {limit}")
        if row.kl > kl_threshold:
            why.append(f"kl {row.kl:.3g} > {kl_threshold:g}")
        if row.induce < induce_threshold:
            why.append(f"induce {row.induce:.3g} < {induce_threshold:g}")
        reasons.append("; ".join(why))
    table["admissible"] = pd.Series([not why for why in reasons], dtype=bool)
    table["rejected_because"] = pd.Series(reasons, dtype=object)
    may_win = table["admissible"] & (table["exact"].astype(bool) if "exact" in table else True)
    admitted = numbers[may_win].sort_values(["bypass", "layer", "position"], kind="stable")
    table["winner"] = table.index.isin(admitted.index[:1])
    return Selection(table, None if admitted.empty else table.loc[admitted.index[0]])


def best_candidate(table: pd.DataFrame) -> pd.Series | None:
    """The carrier; where there is none the lowest bypass of those whose KL is admissible, or if none is of all.

    Args:
        table: of a `Selection`.

    Returns:
        Its row; None where no candidate has scores. Column `winner` tells whether it is the carrier.
    """
    rows = table[table["winner"]]
    if rows.empty:
        rows = table.dropna(subset=["bypass", "induce", "kl"])
        harmless = rows[~rows["rejected_because"].str.contains("kl ")]
        rows = rows if harmless.empty else harmless
    return None if rows.empty else rows.sort_values(["bypass", "layer", "position"], kind="stable").iloc[0]


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    found = {}
    for name in COLUMNS:
        try:
            found[name] = pd.to_numeric(table[name]).astype(float)
        except (ValueError, TypeError) as error:
            raise MechrefusalError(f"column '{name}' of the carrier scores holds no numbers ({error})") from error
    return pd.DataFrame(found, index=table.index)


def last_layer(n_layers: int, prune_layer_fraction: float = 0.2) -> int:
    """First layer that is too late for a carrier: int((1 − prune_layer_fraction) · n_layers)."""
    # Rounded first: (1 − 0.2) · 5 is 4.0 in decimals but may fall short of it in binary.
    return int(round((1 - prune_layer_fraction) * n_layers, 9))
