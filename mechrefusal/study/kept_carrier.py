"""The carrier of a checkpoint as its tables and directions keep it, to be put in and taken out again."""

from collections.abc import Mapping
from math import nan
from typing import Any

import pandas as pd

from mechrefusal.causal.reference import require_reference
from mechrefusal.forward.direction import Carrier
from mechrefusal.geometry import Directions
from mechrefusal.geometry.carrier_scores import SCORES
from mechrefusal.statistics import Estimate
from mechrefusal.study.places import best_place


def best_kept(row: Mapping[str, Any] | pd.Series, candidates: pd.DataFrame, directions: Directions) -> Carrier | None:
    """The carrier, or the best candidate in its place, as it was chosen; None without either.

    Args:
        row: of table `carrier`.
        candidates: table `carriers`, which holds the means of the scores and not their intervals.
        directions: that the candidates are of.
    """
    if (place := best_place(row)) is None:
        return None
    position, layer = place
    number = candidates.index[(candidates["position"] == position) & (candidates["layer"] == layer)][0]
    own, reference = candidates.loc[number], require_reference(row["ablated_to"])
    bypass, induce, kl = (Estimate(float(own[name]), nan, nan, 0) for name in SCORES)
    return Carrier(
        position,
        layer,
        bypass,
        induce,
        kl,
        admissible=bool(own["admissible"]),
        rejected_because=own["rejected_because"],
        row=int(number),
        reference=reference,
        direction=directions.at(position, layer, reference=reference),
    )
