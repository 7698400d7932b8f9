"""The unhooked model behind a hooked transformer: the same weights and residual stream, a third faster.

A `TransformerBridge` wraps every module of the model that it was made from and computes attention itself, so that each
of its hook points fires. Passes that look at a few sites only do not need that: the unhooked model is the same
architecture around the same tensors (norms folded, weights centred), and runs token trees. It has no memory of its own,
but for joint projections of q, k and v (GPT-2, GPT-NeoX), of which the hooked transformer processes the parts.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from mechrefusal.forward.sites import Edit, Site, bridge_hooks
from mechrefusal.forward.stream import StreamModules
from mechrefusal.models.bridge_internals import (
    hooks_are_open,
    module_read_at,
    module_written_by,
    scale_of_writes,
    unwrapped_name,
)
from mechrefusal.models.placement import devices_of, put
from mechrefusal.models.rounding import Allowance, allowed, read_in_float32

ALLOWED = Allowance(1e-3, 1e-2)
"""Differences of log-probabilities (nats, float32) between a hooked transformer and its unhooked model, edited or not:
their root mean square at any position, and the largest of all. Among a million of them rounding alone takes some beyond
the first: on SmolLM2 one position of 24 is ten times as sensitive as the others, 3e-4 on average and 1.4e-3 at most."""

FAILURES = (AttributeError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError, IndexError)
"""What an architecture that does not fit raises somewhere inside of transformers or TransformerLens."""
CALLERS_HOOKS = "hooks of the caller are open"
_KEY = "_mechrefusal_unhooked"


def unhooked(model) -> tuple[StreamModules | None, str]:
    """The unhooked model of a hooked transformer, or None and why there is none that can stand for it.

    Whether it can is tried out once: log-probabilities as they are, with the projection on a direction set to a
    constant at every site, and with a direction added at a middle layer. While hooks of the caller stand at the hooked
    transformer there is none, as they would not act on it.
    """
    if hooks_are_open(model):
        return None, CALLERS_HOOKS
    if _KEY not in model.__dict__:
        model.__dict__[_KEY] = _tried(model)
    return model.__dict__[_KEY]


def unhooked_model(model):
    """The Hugging Face model behind a hooked transformer, where it can stand for it; else the model itself.

    Interventions can be opened on it as on any model. It has neither the hooked transformer's tokenizer nor its config.
    """
    modules = unhooked(model)[0] if hasattr(model, "hook_dict") else None
    return model if modules is None else modules.model


def stream_of(model) -> StreamModules | None:
    """The unhooked model of a hooked transformer as a place for edits; None where there is none that can stand for it.

    Its edits are those of `forward.bridge_hooks` at the hooked transformer itself.
    """
    return unhooked(model)[0]


def failure(error: BaseException) -> str:
    """An exception as a reason, in one line; raises it where memory has run out, which says nothing about a model."""
    if should_reduce_batch_size(error):
        raise error
    lines = str(error).splitlines()
    if not lines:
        return type(error).__name__
    return lines[0] if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: {lines[0]}"


def _tried(model) -> tuple[StreamModules | None, str]:
    try:
        modules = _build(model)
        if (why := _why_not(model, modules)) is not None:
            return None, why
        return _with_inner_sites(model, modules), ""
    except FAILURES as error:
        return None, f"the unhooked model cannot be built ({failure(error)})"


def _build(model) -> StreamModules:
    original = model.original_model
    tensors: dict[str, Tensor] = {}
    for named in (original.named_parameters, original.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            tensors.setdefault(unwrapped_name(name), tensor)
    config = copy.deepcopy(original.config)
    config._attn_implementation = "sdpa" if type(original)._supports_sdpa else "eager"
    with torch.device("meta"):
        unwrapped = type(original)(config)
    unwrapped.eval()
    for name, value in vars(original).items():
        if isinstance(value, float):
            setattr(unwrapped, name, value)  # a multiplier of logits, which may have been folded into the weights
    for block in model.blocks:
        if hasattr(block.attn, "split_qkv_matrix"):
            tensors |= _joint(f"{block.name}.{block.attn.name}", block.attn, unwrapped, tensors)
    for prefix, module in unwrapped.named_modules():
        for name in _tensor_names(module):
            key = f"{prefix}.{name}" if prefix else name
            if name in module._buffers:
                module._buffers[name] = tensors[key]
            elif key in tensors:
                module._parameters[name] = nn.Parameter(tensors[key].detach(), requires_grad=False)
            elif module._parameters.get(name) is not None:
                raise KeyError(key)
    head, devices = unwrapped.get_output_embeddings(), devices_of(original)
    if head.weight.dtype != unwrapped.get_input_embeddings().weight.dtype:
        read_in_float32(head)
    if len(set(devices.values())) > 1:
        put(unwrapped, devices)
    blocks, attention, mlp = (
        tuple(map(unwrapped.get_submodule, names))
        for names in (
            [block.name for block in model.blocks],
            [module_written_by(block, "hook_attn_out") for block in model.blocks],
            [module_written_by(block, "hook_mlp_out") for block in model.blocks],
        )
    )
    single: dict[Site, nn.Module] = {
        "embed": unwrapped.get_input_embeddings(),
        "ln_final": unwrapped.get_submodule(model.ln_final.name),
    }
    return StreamModules(unwrapped, blocks, attention, mlp, single=single, scale=scale_of_writes(model))


def _joint(path: str, attention: Any, unwrapped: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight and bias of the joint projection of an attention at `path`, from its processed q, k and v in `tensors`.

    Where their numbers stand in it: what the bridge's own split makes of a projection that holds its places.
    """
    whole = unwrapped.get_submodule(path)
    projection = whole.get_submodule(attention.qkv.name)
    device = tensors[f"{path}.q.weight"].device
    sizes = {name: tensor.shape for name, tensor in projection._parameters.items() if tensor is not None}
    for name, size in sizes.items():
        places = torch.arange(size.numel(), dtype=torch.float64, device=device).view(size)
        projection._parameters[name] = nn.Parameter(places, requires_grad=False)
    parts = attention.split_qkv_matrix(whole)
    joint: dict[str, Tensor] = {}
    for name, size in sizes.items():
        flat = tensors[f"{path}.q.{name}"].new_full((size.numel(),), float("nan"))
        for letter, part in zip("qkv", parts, strict=True):
            flat[getattr(part, name).long()] = tensors[f"{path}.{letter}.{name}"].detach()
        joint[f"{path}.{attention.qkv.name}.{name}"] = flat.view(size)
    return joint


def _tensor_names(module: nn.Module) -> list[str]:
    """Names of a module's tensors; a bias where it could have one, as folding norms gives biases to those without."""
    names = [name for name, tensor in (*module._parameters.items(), *module._buffers.items()) if tensor is not None]
    return names + ["bias"] * (isinstance(module, nn.Linear) and module.bias is None)


def _with_inner_sites(model, stream_modules: StreamModules) -> StreamModules:
    """The same with those of z and mlp_post at which an edit does what it does to the hooked transformer."""
    places: tuple[tuple[Site, str, str], ...] = (("z", "attn", "hook_z"), ("mlp_post", "mlp", "hook_post"))
    for site, part, hook in places:
        try:
            names = [module_read_at(block, part, hook) for block in model.blocks]
            modules: dict[Site, tuple[nn.Module, ...]] = {site: tuple(map(stream_modules.model.get_submodule, names))}
            tried = replace(stream_modules, inner=modules, d_head=model.cfg.d_head)
            edits: list[Edit] = [(layer, site, _halved) for layer in range(model.cfg.n_layers)]
            if _same(model, tried, edits):
                stream_modules = replace(tried, inner={**stream_modules.inner, **modules})
        except FAILURES as error:
            failure(error)  # without this site, then
    return stream_modules


def _halved(activation: Tensor) -> Tensor:
    """Half of every other entry: of heads where there are heads, else of neurons."""
    scale = torch.ones(activation.shape[2:], device=activation.device, dtype=activation.dtype)
    scale[::2] = 0.5
    return activation * scale


@torch.no_grad()
def _same(model, modules: StreamModules, edits: Sequence[Edit]) -> bool:
    """Whether log-probabilities under `edits` agree."""
    token_ids = torch.randint(model.cfg.d_vocab, (2, 12), generator=torch.Generator().manual_seed(0))
    token_ids = token_ids.to(model.cfg.device)
    with model.hooks(fwd_hooks=bridge_hooks(edits)):
        expected = model(token_ids, return_type="logits").float().log_softmax(-1)

    def log_probabilities() -> Tensor:
        return modules.model(token_ids, use_cache=False).logits.float().log_softmax(-1)

    with modules.edited(edits):
        return allowed(modules.model, log_probabilities, ALLOWED).found(log_probabilities(), expected).holds


def _why_not(model, modules: StreamModules) -> str | None:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(model.cfg.d_model, generator=generator).to(model.cfg.device)
    unit = direction / direction.norm()
    sites: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out")

    def set_to_half(x: Tensor) -> Tensor:
        r = unit.to(x)
        return x - (x @ r - 0.5)[..., None] * r

    everywhere: list[Edit] = [
        (layer, site, set_to_half)  # not linear: it must be the very same site
        for layer in range(model.cfg.n_layers)
        for site in sites
    ]
    once: list[Edit] = [(model.cfg.n_layers // 2, "resid_pre", lambda x: x + direction.to(x))]
    trials: dict[str, list[Edit]] = {"as it is": [], "edited at every site": everywhere, "edited at one layer": once}
    for what, edits in trials.items():
        if not _same(model, modules, edits):
            return f"the unhooked model gives other probabilities, {what}"
    return None
