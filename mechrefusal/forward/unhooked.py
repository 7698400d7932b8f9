"""The plain Hugging Face model behind a hooked transformer: the same weights and residual stream, a third faster.

A `TransformerBridge` wraps every module of the model that it was made from and computes attention itself, so that each
of its hook points fires. Passes that look at the residual stream only don't need that: the twin is the same
architecture around the same tensors (norms folded, weights centred) and runs token trees. It has no memory of its own,
but for joint projections of q, k and v (GPT-2, GPT-NeoX), of which the hooked transformer processes the parts.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from transformers import PreTrainedModel

from mechrefusal.forward.blocks import blocks_with_tuples, skipped
from mechrefusal.models.bridge_internals import written_by, written_scale

Site = Literal["resid_pre", "resid_post", "attn_out", "mlp_out", "z", "mlp_post"]
Edit = tuple[int, Site, Callable[[Tensor], Tensor]]
"""What to do with an activation: layer, site, and the function that returns the new one."""

TOLERANCE, LARGEST = 1e-3, 1e-2
"""Differences of log-probabilities (nats) between a hooked transformer and its twin, edited or not: their root mean
square at any position, and the largest of all. Among a million of them rounding alone takes some beyond the first: on
SmolLM2 one position of 24 is ten times as sensitive as the others, 3e-4 on average and 1.4e-3 at most."""

_HOOKS: dict[str, str] = {"z": "attn.hook_z", "mlp_post": "mlp.hook_post"}
_KEY = "_mechrefusal_twin"
_WRAPPER = "_original_component"


@dataclass(frozen=True)
class Twin:
    """A plain model and, layer by layer, the modules whose input or output are the sites of the hooked transformer."""

    model: PreTrainedModel
    blocks: tuple[nn.Module, ...]
    attention: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    inner: dict[Site, tuple[nn.Module, ...]] = field(default_factory=dict)
    """The modules whose input is z [batch, token, head, d_head] or mlp_post [batch, token, d_mlp] (the neurons), where
    they agree with the hooked transformer."""
    d_head: int = 0
    scale: float = 1.0
    """What a block multiplies the outputs of attention and MLP by before it adds them (Granite); the sites attn_out and
    mlp_out are what it adds."""

    def has(self, site: Site) -> bool:
        """Whether activations at `site` can be edited."""
        return site in ("resid_pre", "resid_post", "attn_out", "mlp_out") or site in self.inner

    @contextmanager
    def edited(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Apply `edits`, in order, to every pass while open."""
        with ExitStack() as stack:
            for layer, site, edit in edits:
                stack.callback(self._hook(layer, site, edit).remove)
            yield

    def _hook(self, layer: int, site: Site, edit: Callable[[Tensor], Tensor]) -> Any:
        if site == "resid_pre":

            def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
                if args:
                    return (edit(args[0]), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

            return self.blocks[layer].register_forward_pre_hook(before, with_kwargs=True)
        if site in ("z", "mlp_post"):
            heads = self.d_head if site == "z" else 0

            def into(_: nn.Module, args: tuple) -> tuple:
                given = args[0].unflatten(-1, (-1, heads)) if heads else args[0]
                return (edit(given).reshape(args[0].shape), *args[1:])

            return self.inner[site][layer].register_forward_pre_hook(into)

        scale = 1.0 if site == "resid_post" else self.scale

        def edited(output: Tensor) -> Tensor:
            return edit(output) if scale == 1 else edit(output * scale) / scale

        def after(_: nn.Module, args: tuple, output: Any) -> Any:
            return (edited(output[0]), *output[1:]) if isinstance(output, tuple) else edited(output)

        modules = {"resid_post": self.blocks, "attn_out": self.attention, "mlp_out": self.mlp}[site]
        return modules[layer].register_forward_hook(after)

    @contextmanager
    def skipping(self, layers: int | Collection[int]) -> Iterator[None]:
        """While open, blocks `layers` return their input; those below it, if it is a number."""
        chosen = range(layers) if isinstance(layers, int) else layers
        device = self.model.get_input_embeddings().weight.device
        run = partial(self.model, use_cache=False)
        with skipped(
            [self.blocks[layer] for layer in chosen], blocks_with_tuples(self.model, self.blocks, run, device=device)
        ):
            yield

    @contextmanager
    def entered(self, layer: int, residual: Tensor, edits: Sequence[Edit]) -> Iterator[None]:
        """While open, passes begin at `layer` with `residual` as its resid_pre; `edits` touch no layer below it."""
        with self.skipping(layer), self.edited([(layer, "resid_pre", lambda _: residual), *edits]):
            yield

    @torch.no_grad()
    def residuals(self, run: Callable[[], Any]) -> list[Tensor]:
        """resid_pre of every layer in the pass that `run` makes."""
        found: list[Tensor] = []

        def keep(activation: Tensor) -> Tensor:
            found.append(activation)
            return activation

        with self.edited([(layer, "resid_pre", keep) for layer in range(len(self.blocks))]):
            run()
        return found


def twin(model) -> Twin | None:
    """The twin of a hooked transformer; None where the model has none that agrees with it, or hooks of the caller.

    Whether it agrees is tried out once: log-probabilities as they are, with the projection on a direction set to a
    constant at every site, and with a direction added at a middle layer. While hooks of the caller stand at the hooked
    transformer there is no twin, as they would not act on it.
    """
    if any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values()):
        return None
    if _KEY not in model.__dict__:
        try:
            found = _build(model)
            model.__dict__[_KEY] = _with_inner_sites(model, found) if _agrees(model, found) else None
        except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            if should_reduce_batch_size(error):
                raise  # that memory has run out says nothing about the model
            model.__dict__[_KEY] = None
    return model.__dict__[_KEY]


def plain_model(model):
    """The plain model behind a hooked transformer, where it has a twin; else the model itself.

    Interventions can be opened on it as on any model. It has neither the hooked transformer's tokenizer nor its config.
    """
    found = twin(model) if hasattr(model, "hook_dict") else None
    return model if found is None else found.model


def agree(seen: Tensor, expected: Tensor) -> bool:
    """Whether log-probabilities over the vocabulary (last axis) agree within `TOLERANCE`; never where some are not
    finite."""
    difference = (seen - expected).abs()
    return bool((difference.square().mean(-1).sqrt() <= TOLERANCE).all() and difference.max() <= LARGEST)


def bridge_hook(edit: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """An edit as a hook function of TransformerLens."""
    return lambda activation, hook: edit(activation)


def bridge_hooks(edits: Sequence[Edit]) -> list[tuple[str, Callable[..., Tensor]]]:
    """The same edits as TransformerLens' `fwd_hooks`."""
    return [(f"blocks.{layer}.{_HOOKS.get(site, f'hook_{site}')}", bridge_hook(edit)) for layer, site, edit in edits]


def _build(model) -> Twin:
    original = model.original_model
    tensors: dict[str, Tensor] = {}
    for named in (original.named_parameters, original.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            tensors.setdefault(_unwrapped(name), tensor)
    config = copy.deepcopy(original.config)
    config._attn_implementation = "sdpa" if type(original)._supports_sdpa else "eager"
    with torch.device("meta"):
        plain = type(original)(config)
    plain.eval()
    for name, value in vars(original).items():
        if isinstance(value, float):
            setattr(plain, name, value)  # a multiplier of logits, which may have been folded into the weights
    for block in model.blocks:
        if hasattr(block.attn, "split_qkv_matrix"):
            tensors |= _joint(f"{block.name}.{block.attn.name}", block.attn, plain, tensors)
    for prefix, module in plain.named_modules():
        for name in _tensor_names(module):
            key = f"{prefix}.{name}" if prefix else name
            if name in module._buffers:
                module._buffers[name] = tensors[key]
            elif key in tensors:
                module._parameters[name] = nn.Parameter(tensors[key].detach(), requires_grad=False)
            elif module._parameters.get(name) is not None:
                raise KeyError(key)
    names = [block.name for block in model.blocks]
    return Twin(
        plain,
        tuple(plain.get_submodule(name) for name in names),
        tuple(plain.get_submodule(_writer(block, "hook_attn_out")) for block in model.blocks),
        tuple(plain.get_submodule(_writer(block, "hook_mlp_out")) for block in model.blocks),
        scale=written_scale(model),
    )


def _joint(path: str, attention: Any, plain: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight and bias of the joint projection of an attention at `path`, from its processed q, k and v in `tensors`.

    Where their numbers stand in it: what the bridge's own split makes of a projection that holds its places.
    """
    whole = plain.get_submodule(path)
    projection = whole.get_submodule(attention.qkv.name)
    device = tensors[f"{path}.q.weight"].device
    sizes = {name: tensor.shape for name, tensor in projection._parameters.items() if tensor is not None}
    for name, size in sizes.items():
        places = torch.arange(size.numel(), dtype=torch.float64, device=device).view(size)
        projection._parameters[name] = nn.Parameter(places, requires_grad=False)
    parts = attention.split_qkv_matrix(whole)
    found: dict[str, Tensor] = {}
    for name, size in sizes.items():
        flat = tensors[f"{path}.q.{name}"].new_full((size.numel(),), float("nan"))
        for letter, part in zip("qkv", parts, strict=True):
            flat[getattr(part, name).long()] = tensors[f"{path}.{letter}.{name}"].detach()
        found[f"{path}.{attention.qkv.name}.{name}"] = flat.view(size)
    return found


def _tensor_names(module: nn.Module) -> list[str]:
    """Names of a module's tensors; a bias where it could have one, as folding norms gives biases to those without."""
    own = [name for name, tensor in (*module._parameters.items(), *module._buffers.items()) if tensor is not None]
    return own + ["bias"] * (isinstance(module, nn.Linear) and module.bias is None)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _WRAPPER)


def _writer(block, hook: str) -> str:
    """Path of the module whose output the hook of a block sees, but for `written_scale`."""
    path, component = block.name, block
    for part in written_by(block, hook):
        component = getattr(component, part)
        path = f"{path}.{component.name}"
    return path


def _with_inner_sites(model, found: Twin) -> Twin:
    """The twin with those of z and mlp_post at which an edit does what it does to the hooked transformer."""
    inner_sites: tuple[Site, ...] = ("z", "mlp_post")
    for site in inner_sites:
        part, hook = _HOOKS[site].split(".")
        try:
            writers = [_reader(block, part, hook) for block in model.blocks]
            modules: dict[Site, tuple[nn.Module, ...]] = {
                site: tuple(found.model.get_submodule(name) for name in writers)
            }
            tried = replace(found, inner=modules, d_head=model.cfg.d_head)
            edits: list[Edit] = [(layer, site, _halved) for layer in range(model.cfg.n_layers)]
            if _same(model, tried, edits, _token_ids(model)):
                found = replace(tried, inner={**found.inner, **modules})
        except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            if should_reduce_batch_size(error):
                raise
    return found


def _halved(activation: Tensor) -> Tensor:
    """Half of every other entry: of heads where there are heads, else of neurons."""
    scale = torch.ones(activation.shape[2:], device=activation.device, dtype=activation.dtype)
    scale[::2] = 0.5
    return activation * scale


def _reader(block, part: str, hook: str) -> str:
    """Path of the module whose input a hook of a block's part sees."""
    component = getattr(block, part)
    name, _, point = component.hook_aliases[hook].partition(".")
    if point != "hook_in":
        raise KeyError(f"{hook} is {component.hook_aliases[hook]}")
    return f"{block.name}.{component.name}.{getattr(component, name).name}"


def _token_ids(model) -> Tensor:
    drawn = torch.randint(model.cfg.d_vocab, (2, 12), generator=torch.Generator().manual_seed(0))
    return drawn.to(model.cfg.device)


@torch.no_grad()
def _same(model, found: Twin, edits: Sequence[Edit], token_ids: Tensor) -> bool:
    """Whether log-probabilities under `edits` agree."""
    with model.hooks(fwd_hooks=bridge_hooks(edits)):
        expected = model(token_ids, return_type="logits").log_softmax(-1)
    with found.edited(edits):
        seen = found.model(token_ids, use_cache=False).logits.log_softmax(-1)
    return agree(seen, expected)


@torch.no_grad()
def _agrees(model, found: Twin) -> bool:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(model.cfg.d_model, generator=generator).to(model.cfg.device)
    unit = direction / direction.norm()
    everywhere: list[Edit] = [
        (layer, site, lambda x: x - (x @ unit - 0.5)[..., None] * unit)  # not linear: it must be the very same site
        for layer in range(model.cfg.n_layers)
        for site in ("resid_pre", "attn_out", "mlp_out")
    ]
    once: list[Edit] = [(model.cfg.n_layers // 2, "resid_pre", lambda x: x + direction)]
    return all(_same(model, found, edits, _token_ids(model)) for edits in ([], everywhere, once))
