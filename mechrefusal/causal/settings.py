"""How far cause by layer and head is taken at a checkpoint."""

from dataclasses import dataclass
from typing import get_args

from mechrefusal.causal.attribution_patching.gradients import Method
from mechrefusal.causal.knockout.replacements import How
from mechrefusal.causal.patching.pair_runs import Mode
from mechrefusal.errors import MechrefusalError


@dataclass(frozen=True)
class CausalSettings:
    """What is intervened on beside the residual stream and the heads. 0 leaves a measure out.

    Attributes:
        modes: of patching: denoising, noising.
        sites: also patch attention and MLP outputs, by layer and position.
        n_finalists: sites that attribution patching hands to exact patching, of each kind.
        screening: what attribution patching takes: "eap" (the gradient in the patched run) or "eap-ig" (its mean over
            runs between the two prompts).
        n_knocked_out: harmful, and as many harmless validation prompts for knock-outs; also for the smallest set.
        layer_step: knock out, and patch across checkpoints, at every n-th layer.
        how: what stands in for what is knocked out: mean, zero or resample.
        n_candidates: heads, those with the largest falls on their own, that the smallest set is searched among.
        largest_set: heads at which the search for the smallest set gives up.
        n_nodes: heads and MLPs of the circuit at most; 0 for no circuit.
        n_edges: paths of the circuit at most.
        n_random: random sets beside the smallest set and beside every size of the circuit.
        n_crossed: harmful, and as many harmless validation prompts whose activations are put into other checkpoints.
        n_rotations: random rotations of each of these activations, as their control; a head is marked with three at
            least.
    """

    modes: tuple[Mode, ...] = ("denoising", "noising")
    sites: bool = True
    n_finalists: int = 20
    screening: Method = "eap"
    n_knocked_out: int = 16
    layer_step: int = 1
    how: How = "mean"
    n_candidates: int = 24
    largest_set: int = 12
    n_nodes: int = 16
    n_edges: int = 40
    n_random: int = 5
    n_crossed: int = 8
    n_rotations: int = 3

    def __post_init__(self) -> None:
        if not self.modes or not set(self.modes) <= set(get_args(Mode)):
            raise MechrefusalError(f"causal modes are {list(self.modes)}: give some of {', '.join(get_args(Mode))}")
        if self.screening not in get_args(Method):
            raise MechrefusalError(f"causal screening is '{self.screening}': give one of {', '.join(get_args(Method))}")
        if self.how not in get_args(How):
            raise MechrefusalError(f"causal how is '{self.how}': give one of {', '.join(get_args(How))}")
        for name in ("n_finalists", "n_knocked_out", "n_nodes", "n_random", "n_crossed", "n_rotations"):
            if getattr(self, name) < 0:
                raise MechrefusalError(f"causal {name} is {getattr(self, name)}: give 0 or more")
        for name in ("layer_step", "n_candidates", "largest_set", "n_edges"):
            if getattr(self, name) < 1:
                raise MechrefusalError(f"causal {name} is {getattr(self, name)}: give at least 1")
