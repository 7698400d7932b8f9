"""A model's weights, kept while they are changed in memory, and put back to the last bit."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mechrefusal.errors import MechrefusalError


class KeptWeights:
    """A copy of all weights and buffers of a model, in memory alone.

    Attributes:
        hash: of the weights when they were kept (`hash_weights`).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._copies = {name: tensor.detach().clone() for name, tensor in _tensors(model)}
        self._asked = {name: weight.requires_grad for name, weight in model.named_parameters()}
        self._trains = model.training
        self.hash = hash_weights(model)

    @torch.no_grad()
    def put_back(self) -> str:
        """Every weight as it was, without gradients.

        Returns:
            Their hash, which is `hash`.

        Raises:
            MechrefusalError: the hash is not the one from before, or a weight is gone.
        """
        for name, tensor in _tensors(self._model):
            tensor.copy_(self._copies[name])
        for name, weight in self._model.named_parameters():
            weight.grad = None
            weight.requires_grad_(self._asked[name])
        self._model.train(self._trains)
        if (after := hash_weights(self._model)) != self.hash:
            raise MechrefusalError(
                f"the weights hash to {after} after they were put back, and to {self.hash} before: open the model again"
            )
        return after


@contextmanager
def kept_weights(model: nn.Module) -> Iterator[KeptWeights]:
    """Keep the weights of a model, and put them back at the end, whatever happens meanwhile."""
    kept = KeptWeights(model)
    try:
        yield kept
    finally:
        kept.put_back()


def hash_weights(model: nn.Module) -> str:
    """First 16 hex digits of a sha256 over the names, dtypes, shapes and bytes of all weights and buffers."""
    whole = hashlib.sha256()
    for name, tensor in _tensors(model):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()[:16]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights and buffers by their names; those that are tied once."""
    yield from model.named_parameters()
    yield from model.named_buffers()
