"""How strongly a direction is ablated at which layer: weights by a kernel over the layers, and a search over kernels.

The kernel is that of p-e-w/heretic. The search is our own and small: half of the trials lie on a Latin hypercube, the
others are steps from the trials that no other trial beats.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import qmc

LARGEST = 1.5
"""Largest weight of a kernel, as in heretic."""
OFF = -0.25
"""A drawn peak below 0 is 0: about one drawn kernel in seven leaves its component alone (heretic, of MLPs)."""
STEP, SHARE = 0.15, 0.5
"""A step from a trial: standard deviation of each number that changes, as a share of its range, and how many do."""

Point = Float[np.ndarray, " number"]
"""Numbers of both kernels, each between 0 and 1 of its range."""


@dataclass(frozen=True)
class Kernel:
    """Weight by layer: `peak` at `position`, falling in a straight line to `least` at `distance` from it, 0 beyond.

    w_l = peak + |l − position| / distance · (least − peak) where |l − position| ≤ distance, else 0 (p-e-w/heretic:
    max_weight, max_weight_position, min_weight, min_weight_distance). Layers are counted from 0, and `position` need
    not be one of them.
    """

    peak: float
    position: float
    least: float
    distance: float

    def weights(self, n_layers: int) -> tuple[float, ...]:
        """The weight of every layer."""
        away = np.abs(np.arange(n_layers) - self.position)
        within = away <= self.distance
        falling = self.peak + away / self.distance * (self.least - self.peak)
        return tuple(np.where(within, falling, 0.0).tolist())


@dataclass(frozen=True)
class Weights:
    """The kernels of what attention and what MLPs write."""

    attention: Kernel
    mlp: Kernel

    @classmethod
    def everywhere(cls, n_layers: int) -> "Weights":
        """Weight 1 at every layer: the ablation as it is published, less that of the embedding."""
        kernel = Kernel(1.0, (n_layers - 1) / 2, 1.0, float(max(n_layers, 1)))
        return cls(kernel, kernel)

    @classmethod
    def at(cls, point: Point, n_layers: int) -> "Weights":
        """Both kernels at a point: peak up to 1.5, position any, least a share of the peak, distance 1 or more.

        heretic draws peaks from 0.8 and positions from 0.6 of the depth on, where its models refuse; here they are
        free, as small weights are what a small KL buys and checkpoints differ in where they refuse.
        """
        last = max(n_layers - 1, 1)
        kernels = []
        for peak, position, least, distance in np.asarray(point).reshape(2, 4).tolist():
            height = max(0.0, OFF + peak * (LARGEST - OFF))
            kernels.append(Kernel(height, position * last, least * height, 1 + distance * max(last - 1, 0)))
        return cls(*kernels)

    @property
    def columns(self) -> dict[str, float]:
        """The eight numbers by their names in tables."""
        names = ("peak", "position", "least", "distance")
        return {
            f"{component}_{name}": value
            for component, kernel in (("attention", self.attention), ("mlp", self.mlp))
            for name, value in zip(names, astuple(kernel), strict=True)
        }


class Search:
    """Points to try, one after another; the same seed gives the same points for the same outcomes."""

    def __init__(self, n_trials: int, *, seed: int) -> None:
        self._random = np.random.default_rng([seed, 1])
        n_first = (n_trials + 1) // 2
        self._first = qmc.LatinHypercube(8, rng=np.random.default_rng([seed, 0])).random(n_first)
        self._n_steps = 0

    def first(self) -> list[Point]:
        """The points that hang on no outcome."""
        return list(self._first)

    def step_from(self, front: Sequence[Point]) -> Point:
        """A point near one of `front`, each of which is taken in turn: about half of its numbers changed a little.

        What would leave the range is reflected at its end.
        """
        start = front[self._n_steps % len(front)]
        self._n_steps += 1
        changed = self._random.random(len(start)) < SHARE
        changed[self._random.integers(len(start))] = True
        moved = np.abs(start + np.where(changed, self._random.normal(0, STEP, len(start)), 0.0))
        return 1 - np.abs(1 - moved % 2)


def unbeaten(refusals: Float[np.ndarray, " trial"], kl: Float[np.ndarray, " trial"]) -> Bool[np.ndarray, " trial"]:
    """Pareto front: trials with no other that has as few refusals and as little KL, and less of one of them.

    Of trials that are the same in both the first counts. A value that is NaN is beaten.
    """
    refusals, kl = np.asarray(refusals, float), np.asarray(kl, float)
    front = np.zeros(len(kl), bool)
    fewest = np.inf
    for trial in np.lexsort((np.arange(len(kl)), refusals, kl)):
        if np.isfinite(kl[trial]) and refusals[trial] < fewest:
            front[trial], fewest = True, refusals[trial]
    return front
