"""Start a forward pass of the hooked transformer at a layer, without paying for the layers below it.

TransformerBridge's own `start_at_layer` swaps the residual stream in but still runs the blocks below. Here those
blocks hand their input through while the context is open.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from mechrefusal.forward.blocks import blocks_with_tuples, skipped
from mechrefusal.models.batches import contiguous_head, positions


@contextmanager
def skipping(model, layer: int) -> Iterator[None]:
    """While open, blocks below `layer` return their input unchanged and unhooked."""
    with skipped(list(model.blocks)[:layer], blocks_return_tuple(model)):
        yield


@torch.no_grad()
def logits_from(
    model,
    layer: int,
    residual: Float[Tensor, "row position d_model"],
    *,
    mask: Tensor,
    cache: DynamicCache | None,
    keep: int = 1,
) -> Float[Tensor, "row keep vocab"]:
    """Logits at the last `keep` positions when `residual` enters block `layer`.

    Args:
        mask: attention mask over cached and given positions, (row, cached + position).
        cache: key/value cache of the cached positions (already expanded to the rows; it is used up), or None.
    """
    arguments: dict = {"attention_mask": mask, "logits_to_keep": keep, "use_cache": True}
    if cache is not None:
        arguments["past_key_values"] = cache
    position_ids = positions(mask)[:, -residual.shape[1] :]
    with skipping(model, layer), contiguous_head(model):
        logits = model(residual, start_at_layer=layer, position_ids=position_ids, return_type="logits", **arguments)
    return logits[:, -keep:]


def blocks_return_tuple(model) -> set[nn.Module]:
    """The blocks that return a tuple; found out once, so call it before opening hooks that expect other shapes."""
    return blocks_with_tuples(model, list(model.blocks), model, device=model.cfg.device)
