"""What is read of TransformerLens' bridge beside its public interface, in one place.

An update of TransformerLens that moves any of it would cost speed, or accuracy, in silence: the tests go through all
of it and fail with its name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

_WRAPPER = "_original_component"


def scale_of_writes(model) -> float:
    """What the blocks of a hooked transformer multiply what attention and MLP return by before they add it."""
    (scale,) = {float(getattr(block, "residual_contribution_scale", 1.0)) for block in model.blocks}
    return scale


def written_by(block, hook: str) -> tuple[str, ...]:
    """The part of a block whose output the hook sees: ("attn",), ("mlp",), the norm after one, or ("attn", "o")."""
    if hook not in block.hook_aliases and hasattr(block, "residual_contribution_scale"):
        return ({"hook_attn_out": block.scaled_attn_submodule, "hook_mlp_out": block.scaled_mlp_submodule}[hook],)
    *parts, point = block.hook_aliases[hook].split(".")
    if point != "hook_out":
        raise KeyError(f"{hook} is {block.hook_aliases[hook]}")
    return tuple(parts)


def module_written_by(block, hook: str) -> str:
    """Path of the Hugging Face module whose output the hook of a block sees, but for `scale_of_writes`."""
    path, component = block.name, block
    for part in written_by(block, hook):
        component = getattr(component, part)
        path = f"{path}.{component.name}"
    return path


def module_read_at(block, part: str, hook: str) -> str:
    """Path of the Hugging Face module whose input a hook of a block's part sees."""
    component = getattr(block, part)
    name, _, point = component.hook_aliases[hook].partition(".")
    if point != "hook_in":
        raise KeyError(f"{hook} is {component.hook_aliases[hook]}")
    return f"{block.name}.{component.name}.{getattr(component, name).name}"


def hooks_are_open(model) -> bool:
    """Whether hooks stand at a hooked transformer, forward or backward."""
    return any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())


def backbone_name(model) -> str:
    """Path of the module that hands tokens from block to block, which gets the cache and the attention mask."""
    return model.blocks[0].name.rsplit(".", 2)[0]


def unwrapped_name(name: str) -> str:
    """Name of a tensor in the Hugging Face model, from its name in the bridge around it."""
    return ".".join(part for part in name.split(".") if part != _WRAPPER)


@contextmanager
def text_only() -> Iterator[None]:
    """TransformerLens without processors of images and sound, for which it would install packages by itself (pip)."""
    from transformer_lens.model_bridge.sources.transformers import source

    before = source.load_modality_processor
    source.load_modality_processor = lambda *args, **kwargs: None
    try:
        yield
    finally:
        source.load_modality_processor = before


@contextmanager
def processing(process: Callable[..., dict]) -> Iterator[None]:
    """While open, a bridge's weights are processed by `process(whole, weights, cfg, **how)`.

    `whole` is TransformerLens' own function, which takes the same without itself. What comes back is distributed.
    """
    from transformer_lens.weight_processing import ProcessWeights

    whole = ProcessWeights.process_weights
    ProcessWeights.process_weights = staticmethod(partial(process, whole))
    try:
        yield
    finally:
        ProcessWeights.process_weights = staticmethod(whole)
