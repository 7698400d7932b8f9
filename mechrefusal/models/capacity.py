"""What it takes to load a model, in bytes of memory, and whether that is there."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from mechrefusal.errors import MechrefusalError
from mechrefusal.memory import free_memory
from mechrefusal.models.checkpoint import Checkpoint, files_of
from mechrefusal.models.model_files import LoadedFiles

WHILE_HOOKING, WITH_BIASES = 3.0, 4.0
"""Bytes in memory at most while a hooked transformer is made, for each byte of its float32 weights; those of a model
with biases are copied once more."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file, by what the file's header says."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_weight(self) -> bool:
        """Whether it may be a weight: masks and position ids are no floating-point numbers, constants have no axis."""
        return self.dtype.startswith(("F", "BF")) and bool(self.shape)


def stored_tensors(*files: Path) -> dict[str, StoredTensor]:
    """Every tensor of safetensors files, by name."""
    tensors = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                part = file.get_slice(name)
                tensors[name] = StoredTensor(part.get_dtype(), tuple(part.get_shape()))
    return tensors


def bytes_to_load(source: Checkpoint | Path | str | LoadedFiles, *, dtype: torch.dtype = torch.float32) -> int:
    """Bytes that the weights take in memory in `dtype`, whatever they take on disk."""
    files = files_of(source)
    return dtype.itemsize * sum(math.prod(one.shape) for one in stored_tensors(*files.weights).values())


def bytes_to_hook(source: Checkpoint | Path | str | LoadedFiles) -> int:
    """Bytes that memory holds at most while a hooked transformer (float32) is made of a checkpoint."""
    files = files_of(source)
    has_biases = any(name.endswith("bias") for name in stored_tensors(*files.weights))
    return int((WITH_BIASES if has_biases else WHILE_HOOKING) * bytes_to_load(files))


def require_memory(
    source: Checkpoint | Path | str | LoadedFiles,
    *,
    hooked: bool,
    device: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Raise a MechrefusalError where loading would take more memory than is free now, before anything is loaded.

    Weights are read into the host's memory and moved to the device, where the hooked transformer is made. On a CPU both
    are one.
    """
    files = files_of(source)
    weights = bytes_to_load(files, dtype=dtype)
    whole = bytes_to_hook(files) if hooked else weights
    needs = {"memory": weights}
    free = {"memory": free_memory()}
    if torch.device(device).type == "cuda":
        needs["memory of the GPU"] = whole
        free["memory of the GPU"] = torch.cuda.mem_get_info(device)[0]
    else:
        needs["memory"] = whole
    for where, bytes_needed in needs.items():
        if bytes_needed > free[where]:
            what = "hooked transformer" if hooked else "model"
            raise MechrefusalError(
                f"the {what} of '{files.base}' takes up to {_gib(bytes_needed)} of {where} while it is loaded (its "
                f"weights alone {_gib(weights)} in {str(dtype).removeprefix('torch.')}), and {_gib(free[where])} are "
                "free: end other programs, or use a larger machine or a smaller model"
            )


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"
