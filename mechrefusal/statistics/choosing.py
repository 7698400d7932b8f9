"""The choice of a carrier among candidates: which are admissible, and which one is taken, on any weighting of prompts.

The carrier is the admissible candidate with the lowest bypass. Where none is admissible the best candidate stands in
for it: the lowest bypass among those with an admissible KL, or among all where none has one. Candidates stand in the
order in which ties are decided: the first of the lowest is taken.
"""

from dataclasses import dataclass
from math import inf, isnan

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mechrefusal.errors import MechrefusalError

CARRIER, BEST = "carrier", "best candidate"
BEST_IS = "the lowest bypass among those with an admissible KL, or among all where none has one"

Scores = Float[np.ndarray, "draw candidate"]
FLAGS = ("admissible_layer", "admissible_kl", "admissible_induce")


@dataclass(frozen=True)
class Admissible:
    """What a carrier must keep (Arditi et al., 2406.11717, appendix C).

    kl: largest mean KL of the harmless prompts' next token, nats. induce: smallest mean refusal score of the harmless
    prompts with the direction put in, nats. prune: share of the last layers that hold no carrier.
    """

    kl: float = 0.1
    induce: float = 0.0
    prune: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.prune <= 1:
            raise MechrefusalError(f"the pruned share of layers is {self.prune:g}: give a share between 0 and 1")
        for name in ("kl", "induce"):
            if isnan(getattr(self, name)):
                raise MechrefusalError(f"the threshold of an admissible {name} is NaN: give a number of nats")

    def layers(self, n_layers: int) -> range:
        """Layers that may hold a carrier: the first int((1 − prune) · n_layers)."""
        # Rounded first: (1 − 0.2) · 5 is 4.0 in decimals but may fall short of it in binary.
        return range(int(round((1 - self.prune) * n_layers, 9)))

    def of(self, table: pd.DataFrame, n_layers: int) -> pd.DataFrame:
        """`FLAGS` of every candidate, and `admissible`: all three, with a place and with all scores.

        Args:
            table: position, layer, bypass, induce and kl as numbers; what is NaN is not admissible.
        """
        flags = pd.DataFrame(
            {
                "admissible_layer": table["layer"] < len(self.layers(n_layers)),
                "admissible_kl": table["kl"] <= self.kl,
                "admissible_induce": table["induce"] >= self.induce,
            },
            index=table.index,
        ).astype(bool)
        return flags.assign(admissible=flags.all(axis=1) & table[["position", "bypass"]].notna().all(axis=1))


PUBLISHED = Admissible()
"""With the thresholds of Arditi et al."""


def ranked(bypass: Scores, induce: Scores, kl: Scores, rule: Admissible, *, or_best: bool = False) -> Scores:
    """bypass of the candidates that may be taken, infinite for all others; layers are the caller's.

    Args:
        bypass, induce, kl: means of each candidate; one row a weighting of the prompts.
        or_best: a row without an admissible candidate ranks those that may be the best candidate.
    """
    low_kl = kl <= rule.kl
    allowed = low_kl & (induce >= rule.induce)
    if or_best:
        for others in (low_kl, np.ones_like(low_kl)):
            allowed = np.where(allowed.any(axis=1, keepdims=True), allowed, others)
    return np.where(allowed & np.isfinite(bypass), bypass, inf)


def lowest(bypass: Scores) -> Int[np.ndarray, " draw"]:
    """Place of the first of the lowest in each row of `ranked`; −1 where nothing may be taken."""
    if not bypass.shape[1]:
        return np.full(len(bypass), -1)
    return np.where(np.isfinite(bypass).any(axis=1), bypass.argmin(axis=1), -1)


@dataclass(frozen=True)
class Candidates:
    """Candidates with their scores prompt by prompt, in the order in which ties are decided."""

    bypass: Float[np.ndarray, "candidate harmful"]
    induce: Float[np.ndarray, "candidate harmless"]
    kl: Float[np.ndarray, "candidate harmless"]
    rule: Admissible

    def ranked(
        self,
        harmful: Float[np.ndarray, "draw harmful"],
        harmless: Float[np.ndarray, "draw harmless"],
        *,
        shifts: Float[np.ndarray, "draw 3 candidate"] | None = None,
        or_best: bool = False,
    ) -> Scores:
        """`ranked` where prompts count as often as the draws say; all infinite where a side has no prompt.

        Args:
            shifts: what is added to the means of bypass, induce and kl.
        """
        with np.errstate(invalid="ignore"):
            first, second = (times / times.sum(axis=1, keepdims=True) for times in (harmful, harmless))
            means = np.stack([first @ self.bypass.T, second @ self.induce.T, second @ self.kl.T])
            if shifts is not None:
                means = means + shifts.swapaxes(0, 1)
            some = harmful.any(axis=1, keepdims=True) & harmless.any(axis=1, keepdims=True)
            return np.where(some, ranked(means[0], means[1], means[2], self.rule, or_best=or_best), inf)
