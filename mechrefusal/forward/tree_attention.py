"""Attention over token trees, in place of a model's own while a tree runs (transformers' `AttentionInterface`)."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from mechrefusal.devices import is_host
from mechrefusal.forward.tree import KeyValues, Tree

ATTENTION = "mechrefusal_tree"
_BEFORE: dict[int, str] = {}
"""The attention that each config (by its id) names outside of `attending`."""

_READING: ContextVar[bool] = ContextVar("mechrefusal_reading_a_tree", default=False)


@contextmanager
def attending(model: nn.Module) -> Iterator[None]:
    """Let the model's attention read trees. Ordinary passes inside are what they are outside.

    Backward passes with gradient checkpointing, which run parts of the forward again, must lie inside too.
    """
    configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None)) is not None}
    changed = [
        (config, name)
        for config in configs.values()
        if isinstance(name := getattr(config, "_attn_implementation", None), str) and name != ATTENTION
    ]
    try:
        for config, name in changed:
            _BEFORE[id(config)] = name
            config._attn_implementation_internal = ATTENTION
        yield
    finally:
        for config, name in changed:
            config._attn_implementation_internal = name
            del _BEFORE[id(config)]


@contextmanager
def reading_a_tree() -> Iterator[None]:
    """While open, the model's own masks are left out: a tree has its own."""
    token = _READING.set(True)
    try:
        yield
    finally:
        _READING.reset(token)


class Running:
    """One run of a tree: what the attention function needs to know, and the keys and values that it keeps.

    Subclasses may change what happens inside of attention, layer by layer.
    """

    def __init__(self, tree: Tree, bank: KeyValues, captured: dict[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.tree, self._bank, self._captured = tree, bank, captured
        self.windows: set[int | None] = set()

    def tree_at(self, layer: int) -> Tree:
        """The tokens that layer `layer` runs."""
        return self.tree

    def projected(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What attention uses for the tree's queries, keys and values (after rotation), [token, head, d_head] each."""
        return query, key, value

    def given(self, layer: int) -> Float[Tensor, "token head d_head"] | None:
        """What stands for the result of attention, which is not computed then."""
        return None

    def attended(self, layer: int, z: Float[Tensor, "token head d_head"]) -> None:
        """Told of the result of attention."""

    def read(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that places of this tree point into: those of the bank, then these."""
        if self._captured is not None:
            self._captured[layer] = (keys.detach(), values.detach())
        if not len(self._bank):
            return keys, values
        return torch.cat([self._bank.keys[layer], keys]), torch.cat([self._bank.values[layer], values])

    def bank(self) -> KeyValues:
        """The tokens run, where they were captured."""
        assert self._captured is not None
        layers = [self._captured[layer] for layer in sorted(self._captured)]
        return KeyValues(tuple(self.tree.tokens.tolist()), tuple(k for k, _ in layers), tuple(v for _, v in layers))


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    mechrefusal_tree: Running | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of a tree: [1, head, token, d_head] in, [1, token, head, d_head] out."""
    before = _BEFORE.get(id(module.config), "sdpa")
    if mechrefusal_tree is None:
        return _function(module, before)(module, query, key, value, attention_mask, *args, **kwargs)
    layer = module.layer_idx
    tree = mechrefusal_tree.tree_at(layer)
    window = kwargs.get("sliding_window")
    mechrefusal_tree.windows.add(window)
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    if (z := mechrefusal_tree.given(layer)) is not None:
        return z[None], None
    queries, keys, values = mechrefusal_tree.projected(layer, queries, keys, values)
    keys, values = mechrefusal_tree.read(layer, keys, values)
    padded = []
    for block in tree.blocks:
        parts = ((queries, block.queries), (keys, block.keys), (values, block.keys))
        q, k, v = (rows_at(rows, places).transpose(1, 2) for rows, places in parts)
        padded.append(_padded(module, before, q, k, v, block.mask(window).to(queries.device), kwargs).flatten(0, 1))
    z = rows_at(torch.cat(padded), tree.unpad)
    mechrefusal_tree.attended(layer, z)
    return z[None], None


def rows_at(rows: Float[Tensor, "row *rest"], places: Int[Tensor, "*places"]) -> Float[Tensor, "..."]:
    """`rows[places]`, with a gradient whose last digits are the same every time.

    The gradient of a row is the sum of those of all places that read it. With several threads torch adds up that of
    `rows[places]` in whatever order they arrive, so that two trainings of one recipe would part in the last digits. An
    embedding's gradient has a fixed order, and takes a quarter of the time.
    """
    return functional.embedding(places.to(rows.device), rows.flatten(1)).unflatten(-1, rows.shape[1:])


def _padded(
    module: nn.Module, before: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, kwargs: dict[str, Any]
) -> Tensor:
    """Ordinary attention of a block: [node, head, query, d_head] in, [node, query, head, d_head] out."""
    is_plain = all(kwargs.get(name) is None for name in ("softcap", "s_aux", "position_bias"))
    if before == "eager" or not is_plain:
        hidden = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
        return _function(module, "eager")(module, query, key, value, hidden, **kwargs)[0]
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not is_host(query.device):  # elsewhere a mask sends grouped heads to the slow kernel
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    z = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=kwargs.get("dropout", 0.0),
        scale=kwargs.get("scaling"),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return z.transpose(1, 2)


def _function(module: nn.Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return AttentionInterface()[name]


def _mask(*args: Any, config: Any = None, **kwargs: Any) -> Any:
    """The mask that the model's own attention would have had; none for a tree, which has its own."""
    if _READING.get():
        return None
    before = _BEFORE.get(id(config), "sdpa")
    return ALL_MASK_ATTENTION_FUNCTIONS[before](*args, config=config, **kwargs)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)
