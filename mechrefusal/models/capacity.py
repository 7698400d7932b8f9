"""What it takes to load a model, in bytes of memory, and whether that is there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from mechrefusal.devices import HOST, described, free_bytes
from mechrefusal.errors import MechrefusalError
from mechrefusal.models.checkpoint import Checkpoint, files_of
from mechrefusal.models.model_files import LoadedFiles
from mechrefusal.models.placement import Placement

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


def dtype_of(placement: Placement, files: LoadedFiles) -> torch.dtype:
    """The dtype in which a model of these files is opened."""
    floating = [one for one in stored_tensors(*files.weights).values() if one.is_weight]
    return placement.torch_dtype(stored_in_16_bits=all(one.dtype in ("BF16", "F16") for one in floating))


def bytes_to_load(source: Checkpoint | Path | str | LoadedFiles, *, dtype: torch.dtype | None = None) -> int:
    """Bytes that the weights take in memory, whatever they take on disk; by default in the checkpoint's own dtype."""
    files = files_of(source)
    dtype = dtype or _dtype_of(source, files)
    return dtype.itemsize * sum(math.prod(one.shape) for one in stored_tensors(*files.weights).values())


def bytes_to_hook(source: Checkpoint | Path | str | LoadedFiles, *, dtype: torch.dtype | None = None) -> int:
    """Bytes that memory holds at most while a hooked transformer is made of a checkpoint."""
    files = files_of(source)
    dtype = dtype or _dtype_of(source, files)
    return int(while_hooking(files, dtype=dtype) * bytes_to_load(files, dtype=dtype))


def _dtype_of(source: Checkpoint | Path | str | LoadedFiles, files: LoadedFiles) -> torch.dtype:
    return dtype_of(source.placement if isinstance(source, Checkpoint) else Placement(), files)


def while_hooking(files: LoadedFiles, *, dtype: torch.dtype = torch.float32) -> float:
    """Bytes at most while a hooked transformer is made, for each byte of its weights in `dtype`.

    Norms are folded and weights centred in float32, whatever the dtype: copies of them are in memory beside the model.
    """
    has_biases = any(name.endswith("bias") for name in stored_tensors(*files.weights))
    copies = (WITH_BIASES if has_biases else WHILE_HOOKING) - 1
    return 1 + copies * torch.float32.itemsize / dtype.itemsize


def require_memory(
    source: Checkpoint | Path | str | LoadedFiles,
    *,
    hooked: bool,
    shares: Mapping[torch.device, float],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Raise a MechrefusalError where loading would take more memory than is free now, before anything is loaded.

    Weights are read into the host's memory and moved to their devices, where the hooked transformer is made. On a CPU
    both are one.

    Args:
        shares: what part of the weights each device holds.
    """
    files = files_of(source)
    weights = bytes_to_load(files, dtype=dtype)
    whole = bytes_to_hook(files, dtype=dtype) if hooked else weights
    needs = {HOST: weights} | {device: int(share * whole) for device, share in shares.items()}
    for device, bytes_needed in needs.items():
        if bytes_needed > (free := free_bytes(device)):
            what = "hooked transformer" if hooked else "model"
            raise MechrefusalError(
                f"the {what} of '{files.base}' takes up to {_gib(bytes_needed)} of {described(device)} while it is "
                f"loaded (its weights alone {_gib(weights)} in {str(dtype).removeprefix('torch.')}), and "
                f"{_gib(free)} are free: end other programs, spread it over GPUs (device_map auto), or use a larger "
                "machine or a smaller model"
            )


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"
