"""The model as it was before an arm's first step, to read activations of."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from peft import PeftModel

from mechrefusal.models.frozen import frozen


class FrozenCopy:
    """A model that training does not change: a copy, or with adapters the same model without them.

    Args:
        model: the copy, made before TRL has the model, whose `forward` it replaces by one of that very model; or the
            model with adapters.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def of(cls, model: Any) -> Self:
        """A copy of a model that has no adapters."""
        return cls(copy.deepcopy(model).requires_grad_(requires_grad=False))

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """The model as it was, while open."""
        if isinstance(self._model, PeftModel):
            with self._model.disable_adapter(), frozen(self._model):
                yield self._model
        else:
            with frozen(self._model):
                yield self._model
