"""A model with its weights in bfloat16 beside it, where the machine multiplies them faster: for screens."""

from typing import Any

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from mechrefusal.devices import multiplies_bfloat16
from mechrefusal.forward.tree_forward import TreeForward


def bfloat16_forward(model: PreTrainedModel) -> TreeForward | None:
    """Trees with the weights of this moment in bfloat16: half of a float32 model's memory once more.

    None where it would save nothing: another precision, or a device that does not multiply bfloat16.
    """
    weight = model.get_input_embeddings().weight
    if weight.dtype != torch.float32 or not multiplies_bfloat16(weight.device):
        return None
    weights = {name: weight.detach().bfloat16() for name, weight in model.named_parameters()}

    def call(**inputs: Any) -> Any:
        return functional_call(model, weights, kwargs=inputs)

    return TreeForward(model, call=call)
