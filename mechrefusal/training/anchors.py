"""Anchors: the weights at fixed optimiser steps, as plain Hugging Face folders written whole."""

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import scratch_folder, whole_folder
from mechrefusal.models.loading import require_loadable
from mechrefusal.models.model_files import GENERATION_CONFIG


def anchor_folder(out: Path | str, step: int) -> Path:
    """`<out>/step-00050`."""
    return Path(out) / f"step-{step:05d}"


def save_anchor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    generation_config: Path | None = None,
) -> Path:
    """Write model, tokenizer and chat template to `folder`, replacing what stood there.

    A model with adapters is written with them merged in, so that every anchor is a plain folder; it stays as it is.

    Args:
        generation_config: the base model's file, which is copied as it stands: training has no part in it.
    """
    with whole_folder(folder) as draft:
        _write(model, tokenizer, draft, generation_config)
    return Path(folder)


def require_anchors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path | str,
    *,
    n_anchors: int,
    generation_config: Path | None = None,
) -> None:
    """Write an anchor below `out`, open it as a checkpoint is opened, and remove it: what fails is known before a step.

    Raises:
        MechrefusalError: it can't be written or opened again, or `n_anchors` of its size do not fit on the disk.
    """
    with scratch_folder(out) as draft:
        try:
            _write(model, tokenizer, draft, generation_config)
            require_loadable(draft)
        except OSError:
            raise  # a disk's or a path's trouble is told as such
        except Exception as error:
            raise MechrefusalError(
                f"the anchors in '{out}' could not be kept, so no step is made: writing and opening one fails "
                f"({type(error).__name__}: {' '.join(str(error).split())[:500]})"
            ) from error
        size = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
    if n_anchors * size > (free := shutil.disk_usage(out).free):
        raise MechrefusalError(
            f"{n_anchors} anchors of {size / 2**30:.1f} GiB each do not fit in '{out}', where {free / 2**30:.1f} GiB "
            "are free: free the disk, give another --out, or fewer anchors"
        )


def _write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, generation_config: Path | None
) -> None:
    if isinstance(model, PeftModel):
        model.get_base_model().save_pretrained(folder, state_dict=merged_weights(model))
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if generation_config is not None:
        shutil.copyfile(generation_config, folder / GENERATION_CONFIG)


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
    weights = {
        name.replace(".base_layer.", "."): weight for name, weight in base.state_dict().items() if ".lora_" not in name
    }
    return weights | {name: weight.to(weights[name].dtype) for name, weight in merged.items()}
