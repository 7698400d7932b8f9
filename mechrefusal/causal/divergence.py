"""The Kullback-Leibler divergence that interventions are judged by (Arditi et al., 2406.11717, appendix C)."""

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-6
"""Inside each logarithm, as in the reference implementation."""


def probabilities(logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, "prompt vocab"]:
    """Softmax taken in float64, which the small differences within a KL need.

    In float32 the probabilities of a large vocabulary are off by about 1e-6 of themselves, all alike: as much of a KL.
    """
    return logits.double().softmax(-1)


def kl_of_probabilities(p: Float[Tensor, "prompt vocab"], q: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
    """KL(p ‖ q) in nats of probabilities, `EPSILON` inside each logarithm."""
    return (p * (torch.log(p + EPSILON) - torch.log(q + EPSILON))).sum(-1)
