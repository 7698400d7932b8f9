"""Anchors: the weights at fixed optimiser steps, as Hugging Face folders of a model or an adapter, written whole."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import scratch_folder, whole_folder
from mechrefusal.models.library_output import quiet
from mechrefusal.models.loading import require_loadable
from mechrefusal.models.model_files import ADAPTER_CONFIG, CONFIG, GENERATION_CONFIG, LoadedFiles
from mechrefusal.models.sources import loaded_files
from mechrefusal.models.weights import merged_into
from mechrefusal.training.adapters import write_adapter
from mechrefusal.training.sharding import loading_whole

MAX_SHARD = "5GB"
"""Largest file of an anchor's weights, unless `TrainingSettings.max_shard_size` says otherwise."""


def anchor_folder(out: Path | str, step: int) -> Path:
    """`<out>/step-00050`."""
    return Path(out) / f"step-{step:05d}"


def is_anchor(folder: Path) -> bool:
    """Whether an anchor stands in `folder`, whatever its form; it is written whole or not at all."""
    return any((folder / name).is_file() for name in (CONFIG, ADAPTER_CONFIG))


def save_anchor(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    base: Path,
    weights: Mapping[str, Tensor] | None = None,
    merged: bool = False,
    max_shard_size: str = MAX_SHARD,
) -> Path:
    """Write model, tokenizer and chat template to `folder`, replacing what stood there.

    Of a model with adapters the adapter alone is written, which names its base (`adapters.name_of_base`) and is merged
    where it is opened. With `merged`, and where the base is an adapter itself, on which no other can be opened, the
    anchor is a plain folder: the base with the adapter merged into it.

    Args:
        base: folder of the model that training started from. Its generation config is copied as it stands: training
            has no part in it.
        weights: what is written, by name, where the model has a part of it alone (`sharding.gathered`).
        max_shard_size: weights of a model that take more are written to several files.
    """
    with whole_folder(folder) as draft:
        _write(model, tokenizer, draft, base, weights, merged, max_shard_size)
    return Path(folder)


def require_anchors(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path | str,
    *,
    n_anchors: int,
    base: Path,
    weights: Mapping[str, Tensor] | None = None,
    merged: bool = False,
    max_shard_size: str = MAX_SHARD,
) -> None:
    """Write an anchor below `out`, open it as a checkpoint is opened, and remove it: what fails is known before a step.

    Raises:
        MechrefusalError: it can't be written or opened again, or `n_anchors` of its size do not fit on the disk.
    """
    with scratch_folder(out) as draft:
        try:
            _write(model, tokenizer, draft, base, weights, merged, max_shard_size)
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
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    base: Path,
    weights: Mapping[str, Tensor] | None,
    merged: bool,  # noqa: FBT001
    max_shard_size: str,
) -> None:
    tokenizer.save_pretrained(folder)
    files = loaded_files(base)
    if not isinstance(model, PeftModel):
        _write_plain(model, folder, files, weights, max_shard_size)
    elif not merged and not files.adapter:
        write_adapter(model, folder, weights=weights, base=base)
    else:
        with scratch_folder(folder) as scratch, quiet(), loading_whole():
            write_adapter(model, scratch, weights=weights, base=base)
            plain = merged_into(base, scratch)
        _write_plain(plain, folder, files, None, max_shard_size)


def _write_plain(
    model: PreTrainedModel, folder: Path, base: LoadedFiles, weights: Mapping[str, Tensor] | None, max_shard_size: str
) -> None:
    model.save_pretrained(folder, state_dict=weights, max_shard_size=max_shard_size)
    for path in base.settings:
        if path.name == GENERATION_CONFIG:
            shutil.copyfile(path, folder / GENERATION_CONFIG)
