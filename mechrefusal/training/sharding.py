"""Weights that processes share out among themselves (FSDP2, DeepSpeed ZeRO-3): whole where they are looked at.

Between the steps a model is attacked, measured and probed, by each process for itself and with as many passes as its
share of the cases needs. Sharded weights would make every one of these passes a collective operation of all processes.
So they are gathered once and put away again: `whole_weights`. While a step is made they stay sharded.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.integrations import deepspeed as transformers_deepspeed

from mechrefusal.devices import HOST
from mechrefusal.errors import MechrefusalError
from mechrefusal.models import Placed
from mechrefusal.models.placement import AUTO
from mechrefusal.training.adapters import adapter_weights

_WHOLE: "WeakSet[nn.Module]" = WeakSet()
"""Models whose weights are gathered now."""

FSDP, ZERO = "pytorch_model_fsdp", "zero_to_fp32.py"
"""What stands in a training checkpoint of FSDP (the name begins so), and in one of DeepSpeed."""


def shard_on_cpu() -> None:
    """Have accelerate shard over CPU processes, where FSDP was asked for; call it before an `Accelerator` is made.

    accelerate (1.15) takes FSDP for every device but a CPU, on which it trains data parallel without a word
    (`AcceleratorState.__init__`). All that it asks after is whether the processes are of a kind with devices.
    """
    state = PartialState()
    if _fsdp_asked() and state.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU


def _fsdp_asked() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def loaded_for_training() -> Placed:
    """Where a model is loaded to that is trained, and in which numbers: in float32, whatever it is measured in.

    To where it is trained, in a single process; to the host, where several train it, from which each takes what it
    holds. They have no device of their own yet.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return {"dtype": "float32", "device": str(HOST) if several else AUTO, "device_map": None, "max_memory": {}}


def is_sharded(trainer: Any) -> bool:
    """Whether no process has all weights while a step is made."""
    return bool(trainer.is_fsdp_enabled) or zero_stage(trainer.accelerator) == 3


def zero_stage(accelerator: Any) -> int:
    """The ZeRO stage of DeepSpeed; 0 without DeepSpeed."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return 0 if plugin is None else int(plugin.zero_stage)


def require_usable(trainer: Any) -> None:
    """Raise a MechrefusalError for a launch that no arm can be trained under, before anything is sharded."""
    precision = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "no"
    # DeepSpeed is told by the trainer, and accelerate then says "no".
    if (launched := trainer.accelerator.mixed_precision) != precision and not trainer.is_deepspeed_enabled:
        raise MechrefusalError(
            f"accelerate was launched with mixed_precision {launched}, and training bf16 is {trainer.args.bf16}: leave "
            "mixed_precision out of the accelerate config, the recipe says it"
        )
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        if plugin.fsdp_version != 2:
            raise MechrefusalError(
                "the weights are to be sharded by FSDP 1, in which attacks cannot reach a layer's weights: set "
                "fsdp_version: 2 in the accelerate config, as `mechrefusal accelerate fsdp2` has it"
            )
        if plugin.cpu_ram_efficient_loading:
            raise MechrefusalError(
                "fsdp_cpu_ram_efficient_loading leaves all processes but one without the weights that an arm starts "
                "from: set it to false in the accelerate config"
            )
        if plugin.activation_checkpointing:
            raise MechrefusalError(
                "fsdp_activation_checkpointing wraps the layers that attacks and terms reach into: set it to false in "
                "the accelerate config, and training gradient_checkpointing to true in the recipe"
            )
        if not hasattr(_fsdp_module(), "reset_iter_state"):
            raise MechrefusalError(
                f"training on sharded weights needs torch 2.13, in which FSDP forgets passes between the steps; this "
                f"is torch {torch.__version__}: update it, or train data parallel"
            )


def _fsdp_module() -> type:
    from torch.distributed.fsdp import FSDPModule

    return FSDPModule


@contextmanager
def whole_weights(trainer: Any) -> Iterator[None]:
    """The weights of the model that `trainer` trains are whole in every process while open; all processes open it.

    Inside, the model is an ordinary one that each process runs for itself: its modules may be called by themselves, its
    weights read, and gradients taken with respect to anything but the weights. It is to be no part of a step.
    """
    model = trainer.model
    if model in _WHOLE or not is_sharded(trainer):
        yield
        return
    _WHOLE.add(model)
    try:
        with _whole_zero3(trainer) if zero_stage(trainer.accelerator) else _whole_fsdp2(model):
            yield
    finally:
        _WHOLE.discard(model)


@contextmanager
def _whole_fsdp2(model: Any) -> Iterator[None]:
    units: list[Any] = [unit for unit in model.modules() if isinstance(unit, _fsdp_module())]
    if not units:  # not sharded yet
        yield
        return
    # The first unit that runs becomes the root, and inside a module may be called by itself.
    model._get_fsdp_state()._lazy_init()
    frees = {unit: _frees_after_forward(unit) for unit in units}
    try:
        model.set_reshard_after_forward(False)
        model.set_reshard_after_backward(False)
        for unit in units:
            unit.unshard()
        yield
    finally:
        # Passes in here are no part of the order in which the next step gathers layers ahead: they are forgotten.
        model.reset_iter_state()
        model.set_reshard_after_backward(True)
        for unit, wanted in frees.items():
            unit.set_reshard_after_forward(wanted, recurse=False)


def _frees_after_forward(unit: Any) -> bool:
    return any(group.post_forward_mesh_info is not None for group in unit._get_fsdp_state()._fsdp_param_groups)


@contextmanager
def _whole_zero3(trainer: Any) -> Iterator[None]:
    """What gathers and frees the weights of each layer is taken off meanwhile."""
    sharded = [weight for weight in trainer.model.parameters() if hasattr(weight, "ds_id")]
    if not sharded:  # not sharded yet
        yield
        return
    import deepspeed
    from trl.models.utils import add_hooks, remove_hooks

    with deepspeed.zero.GatheredParameters(sharded):
        remove_hooks(trainer.model_wrapped)
        try:
            yield
        finally:
            add_hooks(trainer.model_wrapped)


def gathered(trainer: Any) -> Mapping[str, Tensor] | None:
    """What an anchor holds, by name, on the CPU of the first process: all weights, or those of adapters alone.

    Empty in the other processes, and None where weights are not sharded. They are gathered one after another, so that
    no process needs more memory than it has; all processes call it.
    """
    if not is_sharded(trainer):
        return None
    if isinstance(trainer.model, PeftModel):
        return _gathered_adapter(trainer)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    # What is tied is gathered twice, and would be written twice.
    first: dict[int, str] = {}
    for name, weight in trainer.model.named_parameters(remove_duplicate=False):
        if name in weights:
            weights[name] = weights[first.setdefault(id(weight), name)]
    return weights


def _gathered_adapter(trainer: Any) -> dict[str, Tensor]:
    found = {}
    for name, weight in adapter_weights(trainer.model).items():
        with _whole(weight, trainer.accelerator.device) as whole:
            if trainer.is_world_process_zero():
                found[name] = whole.detach().to(HOST, copy=True)
    return found


@contextmanager
def _whole(weight: Tensor, device: torch.device) -> Iterator[Tensor]:
    """A single tensor, whole in every process while open."""
    if isinstance(weight, DTensor):
        yield cast("DTensor", weight.detach().to(device)).full_tensor()
    elif hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            yield weight
    else:
        yield weight


@contextmanager
def loading_whole() -> Iterator[None]:
    """Models are loaded whole while open: transformers would share them out as DeepSpeed does the one that trains."""
    told = transformers_deepspeed._hf_deepspeed_config_weak_ref
    try:
        transformers_deepspeed.unset_hf_deepspeed_config()
        yield
    finally:
        transformers_deepspeed._hf_deepspeed_config_weak_ref = told


def require_same_setting(trainer: Any, checkpoint: Path) -> None:
    """Raise a MechrefusalError for a training checkpoint whose weights another launch has shared out otherwise."""
    names = [path.name for path in checkpoint.iterdir()]
    was = "fsdp" if any(n.startswith(FSDP) for n in names) else "deepspeed" if ZERO in names else "none"
    now = "fsdp" if trainer.is_fsdp_enabled else "deepspeed" if trainer.is_deepspeed_enabled else "none"
    if was != now:
        said = {"fsdp": "under FSDP", "deepspeed": "under DeepSpeed", "none": "with whole weights in each process"}
        raise MechrefusalError(
            f"'{checkpoint}' is of a training {said[was]}, and this launch trains {said[now]}: go on as it was begun, "
            "or delete the folder"
        )


def own_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
