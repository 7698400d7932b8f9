"""Several devices on a machine without GPUs: "cpu:1" and "cpu:2", whose tensors refuse to meet those of another device.

Numbers are computed on the CPU, with gradients. What CUDA refuses is refused: an operation on tensors of two devices,
but for indices and scalars of the host. So a test sees where a tensor was not moved; to torch alone every CPU is one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
TAKES_INDICES_OF_THE_HOST = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)


class OnDevice(Tensor):
    """A tensor that says that it lies on a device; its numbers lie in `held`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device | None = None, requires_grad: bool = False) -> "OnDevice":  # noqa: FBT001, FBT002
        if device is None:  # as parameters are made anew
            return held.detach().requires_grad_(requires_grad)  # type: ignore[return-value]
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.held}, {self.device})"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(function, args, kwargs or {})


class _Devices(TorchDispatchMode):
    """Catches what makes tensors, and moves those of the host to a device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(function, args, kwargs or {})


def _device(value: Any) -> torch.device | None:
    device = torch.device(value)
    return device if device.type == "cpu" and device.index else None


def _run(function: Any, args: tuple, kwargs: dict) -> Any:
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    found = {each.device for each in tensors if isinstance(each, OnDevice)}
    on_host = [each for each in tensors if not isinstance(each, OnDevice) and each.ndim]
    asked = "device" in kwargs and kwargs["device"] is not None
    if function not in MOVES:
        if len(found) > 1:
            raise RuntimeError(f"tensors of {sorted(map(str, found))} meet in {function}")
        allowed = function in TAKES_INDICES_OF_THE_HOST and isinstance(args[0], OnDevice)
        if found and on_host and not allowed and not asked:
            raise RuntimeError(f"tensors of {found} and of the host meet in {function}")
    where = next(iter(found), None)
    if asked:
        where = _device(kwargs["device"])
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif function is aten.copy_.default:
        where = _device(args[0].device)
    args, kwargs = tree_map(lambda each: each.held if isinstance(each, OnDevice) else each, (args, kwargs))
    result = function(*args, **kwargs)
    if where is None:
        return result
    return tree_map(lambda each: OnDevice(each, where) if isinstance(each, Tensor) else each, result)


@contextmanager
def devices() -> Iterator[None]:
    """While open, there are devices "cpu:1", "cpu:2" and so on beside the host."""
    makers = {name: getattr(torch, name) for name in ("tensor", "as_tensor")}

    def made(name: str) -> Callable[..., Tensor]:
        """What torch makes without asking the mode where."""
        return lambda *args, device=None, **kwargs: (
            makers[name](*args, **kwargs) if device is None else makers[name](*args, **kwargs).to(device)
        )

    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        for name in makers:
            setattr(torch, name, made(name))
        with _Devices():
            yield
    finally:
        for name, maker in makers.items():
            setattr(torch, name, maker)
        torch.__future__.set_overwrite_module_params_on_conversion(before)
