"""The losses of representation rerouting (2406.04313, section 3), as pure functions of activations."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mechrefusal.training.losses import Hidden


def rerouted(hidden: Hidden) -> Float[Tensor, " token"]:
    """ReLU(cos(h, h₀)) of each token, the mean over layers."""
    by_layer = [functional.cosine_similarity(h.float(), hidden.frozen[layer].float(), dim=-1).relu()
                for layer, h in hidden.trained.items()]  # fmt: skip
    return torch.stack(by_layer).mean(0)


def kept(hidden: Hidden) -> Float[Tensor, " token"]:
    """‖h − h₀‖₂ of each token, the mean over layers; its gradient is 0 where nothing has changed."""
    by_layer = [_norm(h.float() - hidden.frozen[layer].float()) for layer, h in hidden.trained.items()]
    return torch.stack(by_layer).mean(0)


def _norm(difference: Float[Tensor, "token d_model"]) -> Float[Tensor, " token"]:
    squares = difference.square().sum(-1)
    # The root has no gradient at 0, where every training begins.
    return torch.where(squares > 0, squares.where(squares > 0, 1.0).sqrt(), 0.0)
