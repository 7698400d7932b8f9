"""Anchors: the weights at fixed optimiser steps, as plain Hugging Face folders written whole."""

from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_folder


def anchor_folder(out: Path | str, step: int) -> Path:
    """`<out>/step-00050`."""
    return Path(out) / f"step-{step:05d}"


def save_anchor(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path | str) -> Path:
    """Write model, tokenizer and chat template to `folder`, replacing what stood there.

    A model with adapters is written with them merged in, so that every anchor is a plain folder; it stays as it is.
    """
    with whole_folder(folder) as draft:
        if isinstance(model, PeftModel):
            model.get_base_model().save_pretrained(draft, state_dict=merged_weights(model))
        else:
            model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    return Path(folder)


def require_mergeable(model: PeftModel) -> None:
    """Raise a MechrefusalError for adapters that anchors cannot be written with: only those of linear layers can."""
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, BaseTunerLayer) and not (isinstance(layer, LoraLayer) and len(layer.lora_A)):
            raise MechrefusalError(
                f"lora target_modules hold '{name}', a {type(layer.get_base_layer()).__name__}: name linear layers only"
            )


def merged_weights(model: PeftModel) -> dict[str, Tensor]:
    """The weights of the base model plus its active adapters, under the base model's own names."""
    base = model.get_base_model()
    require_mergeable(model)
    with torch.no_grad():
        merged = {
            f"{name}.weight": layer.get_base_layer().weight
            + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters if adapter in layer.lora_A)
            for name, layer in base.named_modules()
            if isinstance(layer, LoraLayer)
        }
    own = {
        name.replace(".base_layer.", "."): weight for name, weight in base.state_dict().items() if ".lora_" not in name
    }
    return own | {name: weight.to(own[name].dtype) for name, weight in merged.items()}
