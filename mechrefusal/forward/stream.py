"""The modules of a Hugging Face model at whose inputs and outputs the sites of its residual stream lie.

Which modules these are is found elsewhere: `unhooked` knows them from the hooked transformer, `hugging_face` finds them
by what they do. Blocks can be left out, so that a pass runs through some layers only.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mechrefusal.forward.sites import Edit, Site

STREAM_SITES: tuple[Site, ...] = ("resid_pre", "resid_post", "attn_out", "mlp_out")
_KEY = "_mechrefusal_blocks_with_tuples"


@dataclass(frozen=True)
class StreamModules:
    """A model and, layer by layer, the modules whose input or output are sites.

    Fields:
        blocks, attention, mlp: resid_pre and resid_post, attn_out, mlp_out.
        inner: modules whose input is z [row, token, head, d_head] or mlp_post [row, token, d_mlp], where they are known
            to be those of the hooked transformer.
        single: the modules whose output is embed or ln_final.
        d_head: width of a head, where z is among `inner`.
        scale: what a block multiplies the outputs of attention and MLP by before it adds them (Granite); attn_out and
            mlp_out are what it adds.
    """

    model: nn.Module
    blocks: tuple[nn.Module, ...]
    attention: tuple[nn.Module, ...] = ()
    mlp: tuple[nn.Module, ...] = ()
    inner: dict[Site, tuple[nn.Module, ...]] = field(default_factory=dict)
    single: dict[Site, nn.Module] = field(default_factory=dict)
    d_head: int = 0
    scale: float = 1.0

    def has(self, site: Site) -> bool:
        """Whether activations at `site` can be edited."""
        return site in STREAM_SITES or site in self.inner or site in self.single

    @contextmanager
    def edited(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Apply `edits`, in order, to every pass while open."""
        with ExitStack() as stack:
            for layer, site, edit in edits:
                stack.callback(self._hook(layer, site, edit).remove)
            yield

    def _hook(self, layer: int, site: Site, edit: Callable[[Tensor], Tensor]) -> Any:
        if site == "resid_pre":
            return self.blocks[layer].register_forward_pre_hook(_on_input(edit), with_kwargs=True)
        if site in self.inner:
            heads = self.d_head if site == "z" else 0
            return self.inner[site][layer].register_forward_pre_hook(_by_head(edit, heads))
        if site in self.single:
            return self.single[site].register_forward_hook(_on_output(edit, 1.0))
        modules = {"resid_post": self.blocks, "attn_out": self.attention, "mlp_out": self.mlp}[site]
        scale = 1.0 if site == "resid_post" else self.scale
        return modules[layer].register_forward_hook(_on_output(edit, scale))

    @contextmanager
    def skipping(self, layers: Collection[int]) -> Iterator[None]:
        """While open, the blocks of `layers` return their input, and nothing inside of them runs."""
        device = self.model.get_input_embeddings().weight.device  # type: ignore[operator]
        with_tuples = blocks_with_tuples(
            self.model, self.blocks, lambda tokens: self.model(tokens, use_cache=False), device=device
        )
        with skipped([self.blocks[layer] for layer in layers], with_tuples):
            yield


def _on_input(edit: Callable[[Tensor], Tensor]) -> Callable[..., tuple[tuple, dict]]:
    def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    return before


def _by_head(edit: Callable[[Tensor], Tensor], d_head: int) -> Callable[..., tuple]:
    def before(_: nn.Module, args: tuple) -> tuple:
        activation = args[0].unflatten(-1, (-1, d_head)) if d_head else args[0]
        return (edit(activation).reshape(args[0].shape), *args[1:])

    return before


def _on_output(edit: Callable[[Tensor], Tensor], scale: float) -> Callable[..., Any]:
    def edited(output: Tensor) -> Tensor:
        return edit(output) if scale == 1 else edit(output * scale) / scale

    def after(_: nn.Module, args: tuple, output: Any) -> Any:
        return (edited(output[0]), *output[1:]) if isinstance(output, tuple) else edited(output)

    return after


@contextmanager
def skipped(blocks: Sequence[nn.Module], with_tuples: Collection[nn.Module]) -> Iterator[None]:
    """While open, `blocks` return their input, unchanged and unhooked; those `with_tuples` in a tuple."""
    own = [block.__dict__.get("forward") for block in blocks]  # accelerate's, where a model lies on several devices
    for block in blocks:
        block.__dict__["forward"] = _hand_through_tuple if block in with_tuples else _hand_through
    try:
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            del block.__dict__["forward"]
            if before is not None:
                block.__dict__["forward"] = before


def blocks_with_tuples(
    model: nn.Module, blocks: Sequence[nn.Module], run: Callable[[Tensor], Any], *, device: torch.device | str
) -> set[nn.Module]:
    """Those of `blocks` that return a tuple, which differs between architectures of transformers.

    Found out by one pass of two tokens through `run` and remembered in `model`.
    """
    known = model.__dict__.get(_KEY)
    if known is None:
        known = set()

        def note(block: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, tuple):
                known.add(block)

        with ExitStack() as stack, torch.no_grad():
            for block in blocks:
                stack.callback(block.register_forward_hook(note).remove)
            run(torch.zeros((1, 2), dtype=torch.long, device=device))
        model.__dict__[_KEY] = known
    return known


def _hand_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _hand_through_tuple(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    return (hidden_states,)
