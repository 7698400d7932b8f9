"""How far the geometry of a checkpoint is taken."""

from dataclasses import dataclass
from math import inf, isfinite

from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry.cones import ConeSettings
from mechrefusal.geometry.span_scores import SAMPLES
from mechrefusal.geometry.stability import CONTENDERS


@dataclass(frozen=True)
class GeometrySettings:
    """What is measured around the carrier. Counts are prompts of each side; 0 leaves a measure out.

    Attributes:
        screen: score candidates on a sample first (in bfloat16 where that is faster), exactly where they could win.
        score_zero: score every candidate ablated to zero too (as Arditi et al. publish), beside the recipe's reference;
            false: only the carrier, or the best candidate where there is none.
        layer_step: score candidates at every n-th layer.
        n_contenders: candidates that halves of the direction prompts choose among.
        n_bootstrap: resamples of the validation prompts for the carrier's stability.
        largest_subspace: subspaces of 1 to this many directions; 0 for none.
        cone_steps: optimiser steps of the learned cone; 0 for none.
        cone_addition: weight of making harmless prompts refused when the cone is learned (ablation has weight 1).
        cone_retain: weight of leaving the harmless prompts' next token as it is.
        cone_samples: directions drawn from a cone of a size, which are scored one at a time.
        n_coupled: validation prompts for the coupling of harmfulness and refusal, which is taken with linear probes; 0
            for neither.
        n_dosed: prompts for the dose-response of ablation and addition; 0 for none.
        doses: coefficients of the dose-response.
        n_transferred: validation prompts for carriers at other checkpoints; 0 for none.
    """

    screen: bool = True
    score_zero: bool = True
    layer_step: int = 1
    n_contenders: int = CONTENDERS
    n_bootstrap: int = 1000
    largest_subspace: int = 5
    cone_steps: int = 16
    cone_addition: float = ConeSettings.addition
    cone_retain: float = ConeSettings.retain
    cone_samples: int = SAMPLES
    n_coupled: int = 32
    n_dosed: int = 12
    doses: tuple[float, ...] = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
    n_transferred: int = 32

    def __post_init__(self) -> None:
        for name in ("n_bootstrap", "n_contenders", "layer_step", "cone_samples"):
            if getattr(self, name) < 1:
                raise MechrefusalError(f"geometry {name} is {getattr(self, name)}: give at least 1")
        for name in ("largest_subspace", "cone_steps", "n_coupled", "n_dosed", "n_transferred"):
            if getattr(self, name) < 0:
                raise MechrefusalError(f"geometry {name} is {getattr(self, name)}: give 0 or more")
        for name in ("cone_addition", "cone_retain"):
            if not 0 <= getattr(self, name) < inf:
                raise MechrefusalError(f"geometry {name} is {getattr(self, name):g}: give 0 or more")
        if not self.doses or not all(isfinite(dose) for dose in self.doses):
            raise MechrefusalError(f"geometry doses are {list(self.doses)}: give at least one finite coefficient")
