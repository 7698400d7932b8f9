"""What it takes to load a model, in bytes of memory, and whether that is there."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from mechrefusal.devices import HOST, described, free_bytes
from mechrefusal.errors import MechrefusalError
from mechrefusal.models.checkpoint import Checkpoint, files_of
from mechrefusal.models.model_files import LoadedFiles
from mechrefusal.models.placement import Placement

COPIES = 3
"""Float32 copies at most of the part of a model that is folded at a time (`models.folding`): the part itself, and two
that the passes over it make. In float32 one less, as the part itself is the model's."""
JOINT = re.compile(r"qkv|query_key_value|c_attn|w_pack|gate_up", re.IGNORECASE)
"""Matrices that hold several projections, in the names that models give them."""
IN_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class HookedSize:
    """What counts of a model's weights while a hooked transformer is made of it, as numbers of them.

    Attributes:
        weights: all of them.
        joint: those of matrices that hold several projections, which stay beside what they are split into.
        table: the largest tensor outside of blocks, embedding or head: the head is kept apart, in float32.
        part: the most that is folded at a time, in float32: a block, or all embeddings.
    """

    weights: int
    joint: int
    table: int
    part: int

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> "HookedSize":
        """Of a model whose weights have these names and shapes."""
        blocks: Counter[str] = Counter()
        joint, besides = 0, []
        for name, shape in shapes.items():
            if (number := IN_BLOCK.search(name)) is None:
                besides.append(math.prod(shape))
                continue
            blocks[number[1]] += math.prod(shape)
            joint += math.prod(shape) * (JOINT.search(name) is not None)
        table = max(besides, default=0)
        embeddings = sum(besides) - table * (besides.count(table) > 1)  # a head of its own is a part of its own
        return cls(sum(blocks.values()) + sum(besides), joint, table, max([embeddings, *blocks.values()]))

    def lasting(self, dtype: torch.dtype) -> int:
        """Bytes that stay, of which each device holds its share, but for the head."""
        return dtype.itemsize * (self.weights + self.joint)

    def passing(self) -> int:
        """Bytes that any one device may have to hold besides: a head of its own, and copies while it is folded."""
        return torch.float32.itemsize * (self.table + COPIES * self.part)


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
    size = hooked_size(files)
    return size.lasting(dtype or _dtype_of(source, files)) + size.passing()


def hooked_size(files: LoadedFiles) -> HookedSize:
    """That of stored weights."""
    return HookedSize.of({name: one.shape for name, one in stored_tensors(*files.weights).items()})


def _dtype_of(source: Checkpoint | Path | str | LoadedFiles, files: LoadedFiles) -> torch.dtype:
    return dtype_of(source.placement if isinstance(source, Checkpoint) else Placement(), files)


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
    lasting, passing = (weights, 0)
    if hooked:
        size = hooked_size(files)
        lasting, passing = size.lasting(dtype), size.passing()
    needs = {HOST: weights} | {device: int(share * lasting) + passing for device, share in shares.items()}
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
