"""Where a model lies, and in which numbers it is computed.

placement:                     # of a recipe; arguments of `load_hooked` and `load_causal_lm`; options of the line
  dtype: bfloat16
  device_map: auto
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypedDict, Unpack

import torch
from torch import nn
from transformers import PreTrainedModel

from mechrefusal import devices as machine
from mechrefusal.errors import MechrefusalError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AUTO = "auto"
SPREADS = (AUTO, "balanced", "sequential")
LEFT_FREE = 0.1
"""Share of a GPU's free memory that weights are not put into: activations need some."""
DeviceMap: TypeAlias = dict[str, torch.device]
"""Where each module lies, by its path; the empty path is the whole model."""


class Placed(TypedDict, total=False):
    """Fields of a `Placement`, as arguments; see there."""

    dtype: str | torch.dtype
    device: str
    device_map: str | Mapping[str, str | int] | None
    attention: str | None
    max_memory: Mapping[str, str | int]


@dataclass(frozen=True)
class Placement:
    """Where a model lies, and in which numbers it is computed.

    Attributes:
        dtype: of weights and activations: float32, bfloat16, or auto, which is bfloat16 where the weights are stored in
            16 bits and lie on a GPU. What is read off them is computed in float32 or float64 in any case.
        device: cpu, cuda, cuda:1 …; auto: a GPU where there is one.
        device_map: one model over several GPUs: auto (over as many as it needs), balanced (over all alike), sequential
            (one after another), or a mapping from modules to devices. None: on one device.
        attention: how attention is computed (sdpa, eager, flash_attention_2, flex_attention, or a kernel of the hub).
            None: what the model's config says if it is one of the first two, else what transformers chooses.
        max_memory: what weights may take of each device of a device map, such as {cuda:0: 70GiB}; by default what is
            free there but for a tenth.
    """

    dtype: str = "float32"
    device: str = AUTO
    device_map: str | dict[str, str] | None = None
    attention: str | None = None
    max_memory: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.dtype, torch.dtype):
            object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        if self.dtype not in (*DTYPES, AUTO):
            raise MechrefusalError(f"dtype is '{self.dtype}': give one of {', '.join([*DTYPES, AUTO])}")
        if isinstance(self.device_map, str) and self.device_map not in SPREADS:
            raise MechrefusalError(
                f"device_map is '{self.device_map}': give one of {', '.join(SPREADS)}, or a mapping from modules to "
                "devices"
            )
        if self.device_map is not None and self.device != AUTO:
            raise MechrefusalError(
                f"device is '{self.device}' and device_map {self.device_map}: give one of the two, a device or several"
            )
        if self.max_memory and not isinstance(self.device_map, str):
            raise MechrefusalError("max_memory says how weights are spread: give device_map auto or balanced with it")
        for each in (*self.max_memory, *(self.device_map.values() if isinstance(self.device_map, dict) else ())):
            machine.named(each)
        for amount in self.max_memory.values():
            machine.bytes_of(amount)
        if self.device != AUTO:
            machine.named(self.device)

    def given(self, **changes: Unpack[Placed]) -> "Placement":
        """The same with other fields.

        Raises:
            MechrefusalError: a field that is none, or a value that cannot be.
        """
        if unknown := sorted(set(changes) - set(vars(self))):
            raise MechrefusalError(
                f"'{unknown[0]}' says nothing about a model's place; there are {', '.join(vars(self))}"
            )
        return replace(self, **changes)  # type: ignore[arg-type]

    def first_device(self) -> torch.device:
        """The device that tokens go to where no mapping says another.

        Raises:
            MechrefusalError: a GPU that this machine does not have.
        """
        if self.device == AUTO:
            return machine.first()
        device = machine.named(self.device)
        machine.require_there(device)
        return device

    def torch_dtype(self, *, stored_in_16_bits: bool) -> torch.dtype:
        """The dtype of weights and activations."""
        if self.dtype != AUTO:
            return DTYPES[self.dtype]
        return torch.bfloat16 if stored_in_16_bits and machine.is_gpu(self.first_device()) else torch.float32

    def devices(self, model: PreTrainedModel, *, bytes_each: float = 1.0, besides: float = 0.0) -> DeviceMap:
        """Where each module of a model goes.

        Args:
            model: with its weights anywhere, or on the meta device.
            bytes_each: bytes that loading takes at most for each byte of weights.
            besides: bytes that it takes of each device whatever lies there.

        Raises:
            MechrefusalError: a device that this machine does not have, a module that the mapping leaves out, or
                weights that the devices do not hold.
        """
        if self.device_map is None:
            return {"": self.first_device()}
        if isinstance(self.device_map, dict):
            mapped = {name: machine.named(device) for name, device in self.device_map.items()}
            for device in set(mapped.values()):
                machine.require_there(device)
            return _complete(model, mapped)
        return _spread(model, self._budgets(bytes_each, besides), evenly=self.device_map)

    def _budgets(self, bytes_each: float, besides: float) -> dict[torch.device, int]:
        """Bytes of weights that each device takes."""
        if self.max_memory:
            budgets = {machine.named(device): machine.bytes_of(amount) for device, amount in self.max_memory.items()}
            for device in budgets:
                machine.require_there(device)
            return budgets
        found = machine.gpus() or [machine.HOST]
        room = {device: (1 - LEFT_FREE) * machine.free_bytes(device) - besides for device in found}
        return {device: int(max(0.0, free) / bytes_each) for device, free in room.items()}


def put(model: PreTrainedModel, devices: DeviceMap) -> PreTrainedModel:
    """The model on these devices. Over several of them accelerate's hooks hand activations from one to the next.

    Indices of the logits to keep stay where they are: the last device takes them from the host.
    """
    used = set(devices.values())
    if len(used) == 1:
        return model.to(used.pop())
    from accelerate import dispatch_model

    skipped = getattr(model, "_skip_keys_device_placement", None) or []
    stay = [*([skipped] if isinstance(skipped, str) else skipped), "logits_to_keep"]
    main = device_of(model, model.get_input_embeddings(), devices)
    return dispatch_model(model, dict(devices), main_device=main, skip_keys=stay)


def devices_of(model: Any) -> DeviceMap:
    """Where the modules of a Hugging Face model, or of a hooked transformer's, lie: as `put` was told."""
    inner = getattr(model, "original_model", model)
    mapped = getattr(inner, "hf_device_map", None)
    return {name: machine.named(device) for name, device in mapped.items()} if mapped else {"": input_device(inner)}


def shares_of(model: nn.Module, devices: DeviceMap) -> dict[torch.device, float]:
    """What part of a model's weights each device holds."""
    held: dict[torch.device, int] = dict.fromkeys(devices.values(), 0)
    for name, weight in model.named_parameters():
        above = [path for path in devices if not path or name.startswith(f"{path}.")]
        held[devices[max(above, key=len)]] += weight.numel()
    whole = sum(held.values())
    return {device: n / whole for device, n in held.items()}


def input_device(model: nn.Module) -> torch.device:
    """Where tokens go."""
    return model.get_input_embeddings().weight.device  # type: ignore[operator]


def device_of(model: nn.Module, module: nn.Module, devices: DeviceMap) -> torch.device:
    """Where a module of a model goes."""
    (path,) = (name for name, each in model.named_modules() if each is module)
    above = [name for name in devices if not name or path == name or path.startswith(f"{name}.")]
    return devices[max(above, key=len)]


def _complete(model: nn.Module, mapped: DeviceMap) -> DeviceMap:
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        if not any(not prefix or name == prefix or name.startswith(f"{prefix}.") for prefix in mapped):
            raise MechrefusalError(
                f"the device_map names no place for '{name}': give each module one, or '' for all that are not named"
            )
    return mapped


def _spread(model: PreTrainedModel, budgets: dict[torch.device, int], *, evenly: str) -> DeviceMap:
    from accelerate.utils import compute_module_sizes, get_balanced_memory, infer_auto_device_map

    whole, unsplit = compute_module_sizes(model)[""], getattr(model, "_no_split_modules", None) or []
    first, room = next(iter(budgets.items()))
    if len(budgets) == 1 or (evenly == AUTO and whole <= room):
        if whole > room:
            raise _too_large(model, whole, budgets)
        return {"": first}
    # accelerate counts GPUs; what the devices are here is its caller's business.
    limits: dict[Any, Any] = dict(enumerate(budgets.values()))
    if evenly == "balanced":
        limits = get_balanced_memory(model, limits, no_split_module_classes=[*unsplit])
    limits[machine.HOST.type] = 0
    mapped = infer_auto_device_map(model, limits, no_split_module_classes=[*unsplit])
    if any(not isinstance(number, int) for number in mapped.values()):
        raise _too_large(model, whole, budgets)
    numbered = list(budgets)
    return {name: numbered[number] for name, number in mapped.items()}


def _too_large(model: nn.Module, whole: int, budgets: dict[torch.device, int]) -> MechrefusalError:
    room = ", ".join(f"{amount / 2**30:.1f} GiB on {device}" for device, amount in budgets.items())
    return MechrefusalError(
        f"the weights of this {type(model).__name__} take {whole / 2**30:.1f} GiB, and there is room for {room}: use "
        "more or larger GPUs, dtype bfloat16, or a smaller model"
    )
