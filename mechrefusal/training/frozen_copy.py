"""The model as it was before an arm's first step, to read activations of."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel

from mechrefusal.models.frozen import frozen


class FrozenCopy:
    """A copy of a model that training does not change; with adapters, the same model without them.

    Made before the first step, and before a training goes on from a checkpoint.
    """

    def __init__(self, model: Any) -> None:
        self._model = model if isinstance(model, PeftModel) else copy.deepcopy(model)
        if self._model is not model:
            self._model.requires_grad_(requires_grad=False)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """The model as it was, while open."""
        if isinstance(self._model, PeftModel):
            with self._model.disable_adapter(), frozen(self._model):
                yield self._model
        else:
            with frozen(self._model):
                yield self._model
