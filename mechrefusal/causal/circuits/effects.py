"""Effects of nodes and edges over pairs: those that chose a circuit, and those that did not."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechrefusal.causal.attribution_patching.pairs import PreparedPairs, largest
from mechrefusal.statistics import intervals, maps

FEWEST = 6
"""With fewer held-out pairs no pattern of signs is rarer than one in twenty, so that nothing could be significant."""
HELD_OUT = ("held_out", "held_out_low", "held_out_high", "n_held_out", "p")
"""What pairs that did not choose it say of a node or an edge; see `Circuit`."""


def effect_of(raw: Float[np.ndarray, " pair"], runs: PreparedPairs) -> dict[str, float | int]:
    """Mean change over pairs, and its share of the gap, positive where it carries refusal."""
    sign = 1 if runs.mode == "denoising" else -1
    gaps = sign * (runs.clean - runs.corrupted).double().numpy()
    effect = intervals.ratio(raw, gaps) if not runs.reason else intervals.mean([])
    known = not np.isnan(raw).any()
    return {
        "raw": float(raw.mean()),
        **effect.columns("effect", ""),
        "n": len(raw) if known else 0,
    }


def by_effect(table: pd.DataFrame) -> list[int]:
    """Labels in order of absolute effect; where there is none, in order of the estimate."""
    known = list(largest(table["effect"], len(table)))
    others = table[table["effect"].isna()]
    by_estimate = list(largest(others["estimate"], len(others))) if "estimate" in table else []
    return [*known, *by_estimate, *others.index.difference(by_estimate, sort=False)]


def with_held_out(
    table: pd.DataFrame, rows: Sequence[int], raw: Float[np.ndarray, "pair row"] | None, runs: PreparedPairs
) -> pd.DataFrame:
    """The table with columns `HELD_OUT`, filled in for `rows` (labels): effects on pairs that did not choose them.

    An effect that is large enough to be chosen is too large on the pairs that chose it (the winner's curse); on others
    it is unbiased, and p, adjusted for all of `rows` (`statistics.maps.sign_flip_p`), holds whatever was chosen. p is 1
    where the effect has the other sign on them, and NaN with fewer than `FEWEST` pairs or without a gap.

    Args:
        raw: changes of the metric, nats; None where no pair was held out.
        runs: the held-out pairs.
    """
    table = table.assign(**{**dict.fromkeys(HELD_OUT, np.nan), "n_held_out": 0})
    if raw is None or not len(rows):
        return table
    columns, effects = list(rows), [effect_of(column, runs) for column in raw.T]
    for name, key in zip(HELD_OUT, ("effect", "low", "high", "n"), strict=False):
        table.loc[columns, name] = [effect[key] for effect in effects]
    if len(raw) >= FEWEST and not runs.reason:
        same = np.sign(table.loc[columns, "held_out"]) == np.sign(table.loc[columns, "effect"])
        table.loc[columns, "p"] = np.where(same, maps.sign_flip_p(raw), 1.0)
    return table
