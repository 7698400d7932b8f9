"""Scores of candidate directions, prompt by prompt: what carriers are chosen by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechrefusal.forward.direction import ReferenceName
from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.directions import Directions

SCORES = ("bypass", "induce", "kl")


@dataclass(frozen=True)
class Rounding:
    """What a lower precision shifts means by, root mean square over `n` candidates that were scored both ways.

    score: mean refusal scores, nats; kl: the logarithm of a mean KL.
    """

    score: float
    kl: float
    n: int


@dataclass(frozen=True)
class CarrierScores:
    """Scores of candidate directions on validation prompts.

    `table`: position, layer, bypass, induce, kl (means over prompts) and `exact`, False where a screen put the
    candidate out of the running: its scores are then those of the screen. The arrays hold the scores of every prompt,
    NaN in rows that are not exact or could not be scored; row i belongs to row i of the table.

    `directions`: whose candidates they are, and `reference`: what these were ablated to; None where the scores were
    read back from a table. `rounding`: what a screen allowed for that ran in a lower precision; None for any other.
    """

    table: pd.DataFrame
    bypass: Float[np.ndarray, "candidate harmful"]
    induce: Float[np.ndarray, "candidate harmless"]
    kl: Float[np.ndarray, "candidate harmless"]
    directions: Directions | None = None
    reference: ReferenceName | None = None
    rounding: Rounding | None = None

    def __post_init__(self) -> None:
        assert len(self.table) == len(self.bypass) == len(self.induce) == len(self.kl)

    def long(self, harmful: Sequence[str], harmless: Sequence[str]) -> pd.DataFrame:
        """One row a candidate, measure and prompt (`position, layer, measure, prompt_id, value`), exact ones only."""
        parts = []
        for measure, values, ids in (
            ("bypass", self.bypass, harmful),
            ("induce", self.induce, harmless),
            ("kl", self.kl, harmless),
        ):
            exact = np.flatnonzero(np.isfinite(values).all(axis=1))
            parts.append(
                pd.DataFrame(
                    {
                        "position": self.table["position"].to_numpy()[exact].repeat(len(ids)),
                        "layer": self.table["layer"].to_numpy()[exact].repeat(len(ids)),
                        "measure": measure,
                        "prompt_id": np.tile(np.array(ids, dtype=object), len(exact)),
                        "value": values[exact].ravel(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    @classmethod
    def of_long(cls, rows: pd.DataFrame, harmful: Sequence[str], harmless: Sequence[str]) -> "CarrierScores":
        """Scores from the rows of `long`, for these prompts in this order; NaN for prompts that have no row."""
        scores = {
            measure: rows[rows["measure"] == measure]
            .pivot(index=["position", "layer"], columns="prompt_id", values="value")
            .reindex(columns=list(ids))
            for measure, ids in (("bypass", harmful), ("induce", harmless), ("kl", harmless))
        }
        places = scores["bypass"].index
        arrays = [each.reindex(places).to_numpy(float) for each in scores.values()]
        means = {name: each.mean(axis=1) for name, each in zip(scores, arrays, strict=True)}
        table = places.to_frame(index=False).astype("int64").assign(**means, exact=True)
        return cls(table, arrays[0], arrays[1], arrays[2])

    @classmethod
    def gathered(
        cls, places: Sequence[Place], scores: Sequence[tuple], exact: Sequence[bool] | None = None
    ) -> "CarrierScores":
        """Scores from bypass, induce and kl of every prompt, by place; arrays keep the exact rows (by default all)."""
        exact = [True] * len(places) if exact is None else exact
        means = {
            name: pd.Series([values[measure].mean() for values in scores], dtype="float64")
            for measure, name in enumerate(SCORES)
        }
        table = pd.DataFrame(places, columns=["position", "layer"], dtype="int64")
        table = table.assign(**means, exact=pd.Series(list(exact), dtype=bool))
        arrays = []
        for measure in range(len(SCORES)):
            width = max((len(values[measure]) for values in scores), default=0)
            array = np.full((len(places), width), np.nan)
            for row, values in enumerate(scores):
                if exact[row] and np.isfinite(values[measure]).all():
                    array[row] = values[measure]
            arrays.append(array)
        return cls(table, arrays[0], arrays[1], arrays[2])
