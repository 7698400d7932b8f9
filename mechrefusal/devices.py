"""What this machine computes on: the one place that names devices. All else asks a tensor, a model or this."""

from collections.abc import Mapping

import torch

from mechrefusal.errors import MechrefusalError
from mechrefusal.memory import free_memory

HOST, GPU = torch.device("cpu"), torch.device("cuda")
"""Where weights are read into, and where numbers of all prompts are kept; and the kind of the others, there or not."""
TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 1 << 16}
"""Tokens in one pass, by the kind of device: more at once gains nothing."""
PATCHED_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 1 << 16}
"""Tokens in one pass over patched rows."""


def named(name: str | int | torch.device) -> torch.device:
    """The device of a name, or of a GPU's number.

    Raises:
        MechrefusalError: it is none.
    """
    try:
        return torch.device("cuda", name) if isinstance(name, int) else torch.device(name)
    except RuntimeError:
        raise MechrefusalError(f"'{name}' is no device: give cpu, cuda, or cuda:1 and its like") from None


def require_there(device: torch.device) -> None:
    """Raise MechrefusalError for a GPU that this machine does not have."""
    if is_gpu(device) and (device.index or 0) >= (n := len(gpus())):
        raise MechrefusalError(
            f"this machine has no device '{device}' ({n} GPUs that torch can use): give another, or auto"
        )


def has_gpu() -> bool:
    """Whether this machine has a GPU that torch can use."""
    return torch.cuda.is_available()


def gpus() -> list[torch.device]:
    """The GPUs that torch can use."""
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] if has_gpu() else []


def first() -> torch.device:
    """A GPU where there is one, else the host."""
    return GPU if has_gpu() else HOST


def gpu_name() -> str | None:
    """What the first GPU is called; None without one."""
    return torch.cuda.get_device_name() if has_gpu() else None


def is_gpu(device: torch.device) -> bool:
    """Whether a device is a GPU."""
    return device.type == "cuda"


def is_host(device: torch.device) -> bool:
    """Whether a device is the host's processor."""
    return device.type == HOST.type


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if is_gpu(device) else free_memory()


def most_allocated(device: torch.device) -> int | None:
    """Bytes that tensors on a GPU have taken at most; None for the host, of which torch does not know."""
    return torch.cuda.max_memory_allocated(device) if is_gpu(device) else None


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def give_back() -> None:
    """Give memory that is free, but kept for tensors to come, back to the GPUs."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def of_random_numbers(device: torch.device) -> list[torch.device]:
    """The devices beside the host whose random numbers a model there draws."""
    return [device] if is_gpu(device) else []


def at_once(device: torch.device, limits: Mapping[str, int]) -> int:
    """The limit of a kind of device; one that is not among them is taken for a GPU."""
    return limits.get(device.type, limits["cuda"])


def described(device: torch.device) -> str:
    """What a device's memory is called in messages."""
    if not is_gpu(device):
        return "memory"
    return "memory of the GPU" if device.index is None else f"memory of GPU {device.index}"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products; without them a screen costs more than it saves."""
    if is_gpu(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return is_host(device) and any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def bytes_of(amount: str | int) -> int:
    """Bytes of "80GiB", "500MB", or a number of them.

    Raises:
        MechrefusalError: neither.
    """
    from accelerate.utils import convert_file_size_to_int

    try:
        return int(amount) if str(amount).isdigit() else convert_file_size_to_int(amount)
    except ValueError:
        raise MechrefusalError(f"'{amount}' is no amount of memory: give one such as 80GiB") from None
