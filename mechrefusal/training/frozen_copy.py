"""The model as it was before an arm's first step, to read activations of."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from peft import PeftModel
from torch import nn

from mechrefusal.models.frozen import frozen

M = TypeVar("M", bound=nn.Module)


def frozen_copy(model: M) -> M:
    """A copy whose weights ask for no gradient. It is made before TRL has the model, whose `forward` TRL replaces."""
    return copy.deepcopy(model).requires_grad_(requires_grad=False)


class FrozenCopy:
    """A model that training does not change: a `frozen_copy`, or with adapters the same model without them."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def is_trained(self) -> bool:
        """Whether it is the model under training, without its adapters."""
        return isinstance(self._model, PeftModel)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """The model as it was, while open."""
        if self.is_trained:
            with self._model.disable_adapter(), frozen(self._model):
                yield self._model
        else:
            with frozen(self._model):
                yield self._model
