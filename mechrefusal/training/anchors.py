"""Anchors: the weights at fixed optimiser steps, as plain Hugging Face folders written whole."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import transpose
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import scratch_folder, whole_folder
from mechrefusal.models.loading import require_loadable
from mechrefusal.models.model_files import GENERATION_CONFIG

MAX_SHARD = "5GB"
"""Largest file of an anchor's weights, unless `TrainingSettings.max_shard_size` says otherwise."""
PREFIX = "base_model.model."
"""What PEFT puts before the names of the weights of a model."""


def anchor_folder(out: Path | str, step: int) -> Path:
    """`<out>/step-00050`."""
    return Path(out) / f"step-{step:05d}"


def save_anchor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    weights: Mapping[str, Tensor] | None = None,
    generation_config: Path | None = None,
    max_shard_size: str = MAX_SHARD,
) -> Path:
    """Write model, tokenizer and chat template to `folder`, replacing what stood there.

    A model with adapters is written with them merged in, so that every anchor is a plain folder; it stays as it is.

    Args:
        weights: of the model by name, where it has a part of them alone (`sharding.gathered`).
        max_shard_size: weights that take more are written to several files.
        generation_config: the base model's file, which is copied as it stands: training has no part in it.
    """
    with whole_folder(folder) as draft:
        _write(model, tokenizer, draft, weights, generation_config, max_shard_size)
    return Path(folder)


def require_anchors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path | str,
    *,
    n_anchors: int,
    weights: Mapping[str, Tensor] | None = None,
    generation_config: Path | None = None,
    max_shard_size: str = MAX_SHARD,
) -> None:
    """Write an anchor below `out`, open it as a checkpoint is opened, and remove it: what fails is known before a step.

    Raises:
        MechrefusalError: it can't be written or opened again, or `n_anchors` of its size do not fit on the disk.
    """
    with scratch_folder(out) as draft:
        try:
            _write(model, tokenizer, draft, weights, generation_config, max_shard_size)
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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Tensor] | None,
    generation_config: Path | None,
    max_shard_size: str,
) -> None:
    plain = model
    if isinstance(model, PeftModel):
        plain, weights = model.get_base_model(), merged_weights(model, weights)
    plain.save_pretrained(folder, state_dict=weights, max_shard_size=max_shard_size)
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


def merged_weights(model: PeftModel, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights of the base model plus its active adapters, under the base model's own names.

    Args:
        weights: of `model` by name, where it has a part of them alone.
    """
    base = model.get_base_model()
    require_mergeable(model)
    of_base = base.state_dict() if weights is None else {n.removeprefix(PREFIX): w for n, w in weights.items()}
    merged = {}
    for name, layer in base.named_modules():
        if isinstance(layer, LoraLayer):
            weight = of_base[f"{name}.base_layer.weight"]
            deltas = [
                _delta(layer, adapter, *(of_base[f"{name}.lora_{half}.{adapter}.weight"] for half in "AB"))
                for adapter in layer.active_adapters
                if adapter in layer.lora_A
            ]
            merged[f"{name}.weight"] = (weight + sum(deltas)).to(weight.dtype)
    plain = {name.replace(".base_layer.", "."): w for name, w in of_base.items() if ".lora_" not in name}
    return plain | merged


def _delta(layer: LoraLayer, adapter: str, down: Tensor, up: Tensor) -> Tensor:
    """What an adapter adds to the weight of a layer; PEFT's own function reads it off weights that may be sharded."""
    return transpose(up @ down, layer.fan_in_fan_out) * layer.scaling[adapter]
