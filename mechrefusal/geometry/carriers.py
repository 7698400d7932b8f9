"""Refusal carriers: the choice among candidate directions by their scores (Arditi et al., 2406.11717, appendix C).

The rule itself is `statistics.choosing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.direction import Carrier, Direction, ReferenceName
from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.carrier_scores import SCORES, CarrierScores
from mechrefusal.geometry.directions import Directions
from mechrefusal.statistics import Estimate, intervals
from mechrefusal.statistics.choosing import FLAGS, PUBLISHED, Admissible, Candidates, lowest, ranked

COLUMNS = ("position", "layer", *SCORES)


@dataclass(frozen=True)
class Selection:
    """What was chosen among scored candidates.

    `table`: every candidate with `admissible_layer`, `admissible_kl`, `admissible_induce`, `admissible`,
    `rejected_because` and `winner`. `winner`: the carrier, or None. `best`: the carrier, or where there is none the
    best candidate (see `statistics.choosing`); None where no candidate has scores.
    """

    table: pd.DataFrame
    winner: Carrier | None
    best: Carrier | None


def candidates(directions: Directions, *, layers: Sequence[int], positions: Sequence[int] | None = None) -> list[Place]:
    """The places to score: `positions` (all by default) × `layers`."""
    chosen = directions.positions if positions is None else [p for p in positions if p in directions.positions]
    return [(position, layer) for position in chosen for layer in layers]


def select(
    scores: pd.DataFrame | CarrierScores,
    n_layers: int | None = None,
    admissible: Admissible = PUBLISHED,
) -> Selection:
    """Choose the carrier among scored candidates: the admissible one with the lowest bypass score.

    Ties go to the earlier layer, then to the earlier position. Rows with `exact` False (a screen put them out of the
    running) are judged by the scores that they have but are never chosen.

    Args:
        scores: from `score` or `screened`, or any table with columns position, layer, bypass, induce, kl.
        n_layers: layers of the model; by default those of the directions that were scored.

    Raises:
        MechrefusalError: a missing column, one that holds no numbers, or nothing that says how many layers there are.
    """
    scored, whole = (scores, None) if isinstance(scores, pd.DataFrame) else (scores.table, scores)
    if missing := [name for name in COLUMNS if name not in scored]:
        raise MechrefusalError(f"table of carrier scores lacks columns {missing}; it needs {list(COLUMNS)}")
    if n_layers is None:
        if whole is None or whole.directions is None:
            raise MechrefusalError("these scores do not say how many layers the model has: give n_layers")
        n_layers = whole.directions.values.shape[1]
    table = scored.reset_index(drop=True).copy()
    numbers = _numbers(table)
    flags = admissible.of(numbers, n_layers)
    table[[*FLAGS, "admissible"]] = flags[[*FLAGS, "admissible"]]
    table["rejected_because"] = pd.Series(_reasons(numbers, flags, n_layers, admissible), dtype=object)
    order = _in_running(table, numbers)
    bypass, induce, kl = (numbers.loc[order, name].to_numpy()[None] for name in SCORES)
    places = [int(lowest(ranked(bypass, induce, kl, admissible, or_best=best))[0]) for best in (False, True)]
    rows = [None if place < 0 else int(order[place]) for place in places]
    table["winner"] = table.index == (-1 if rows[0] is None else rows[0])
    chosen = {row: _carrier(table, row, whole) for row in dict.fromkeys(rows) if row is not None}
    return Selection(table, *(None if row is None else chosen[row] for row in rows))


def exact_candidates(scores: CarrierScores, n_layers: int, admissible: Admissible) -> tuple[np.ndarray, Candidates]:
    """Rows of the exact candidates with scores and early enough layers, in the order of ties; and what they scored."""
    bypass, induce, kl = scores.bypass, scores.induce, scores.kl
    layers, positions = (scores.table[name].to_numpy(float) for name in ("layer", "position"))
    scored = np.all([np.isfinite(each).all(axis=1) for each in (bypass, induce, kl)], axis=0)
    rows = np.flatnonzero(scored & (layers < len(admissible.layers(n_layers))))
    rows = rows[np.lexsort((positions[rows], layers[rows]))]
    return rows, Candidates(bypass[rows], induce[rows], kl[rows], admissible)


def _in_running(table: pd.DataFrame, numbers: pd.DataFrame) -> pd.Index:
    """The same rows of a table."""
    running = table["admissible_layer"] & numbers.notna().all(axis=1)
    if "exact" in table:
        running &= table["exact"].astype(bool)
    return numbers[running].sort_values(["layer", "position"], kind="stable").index


def _reasons(numbers: pd.DataFrame, flags: pd.DataFrame, n_layers: int, admissible: Admissible) -> list[str]:
    """In words why candidates are rejected; `flags` decide."""
    limit, reasons = len(admissible.layers(n_layers)), []
    for row, flag in zip(numbers.itertuples(), flags.itertuples(), strict=True):
        why = []
        if pd.isna([row.bypass, row.induce, row.kl]).any():
            why.append("a score is NaN")
        if pd.isna([row.layer, row.position]).any():
            why.append("its place is NaN")
        elif not flag.admissible_layer:
            why.append(f"layer {int(row.layer)} is not below {limit}")
        if not flag.admissible_kl and not pd.isna(row.kl):
            why.append(f"kl {row.kl:.3g} > {admissible.kl:g}")
        if not flag.admissible_induce and not pd.isna(row.induce):
            why.append(f"induce {row.induce:.3g} < {admissible.induce:g}")
        reasons.append("; ".join(why))
    return reasons


def _carrier(table: pd.DataFrame, row: int, scores: CarrierScores | None) -> Carrier:
    row_of_table, nan = table.loc[row], float("nan")
    position, layer = int(row_of_table["position"]), int(row_of_table["layer"])
    estimates = {name: Estimate(float(row_of_table[name]), nan, nan, 0) for name in SCORES}
    reference: ReferenceName | None = None
    direction: Direction | None = None
    if scores is not None:
        reference = scores.reference
        of = {"bypass": intervals.mean, "induce": intervals.mean, "kl": intervals.skewed_mean}
        for name, values in zip(SCORES, (scores.bypass[row], scores.induce[row], scores.kl[row]), strict=True):
            if len(values) and np.isfinite(values).all():
                estimates[name] = of[name](values)
    if scores is not None and scores.directions is not None:
        direction = scores.directions.at(position, layer, reference=reference or "zero")
    return Carrier(
        position,
        layer,
        estimates["bypass"],
        estimates["induce"],
        estimates["kl"],
        admissible=bool(row_of_table["admissible"]),
        rejected_because=str(row_of_table["rejected_because"]),
        row=row,
        reference=reference,
        direction=direction,
    )


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    columns = {}
    for name in COLUMNS:
        try:
            columns[name] = pd.to_numeric(table[name]).astype(float)
        except (ValueError, TypeError) as error:
            raise MechrefusalError(f"column '{name}' of the carrier scores holds no numbers ({error})") from error
    return pd.DataFrame(columns, index=table.index)
