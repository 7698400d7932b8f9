"""The residual stream at chosen places, prompt by prompt: streamed, so that memory does not grow with the prompts."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.models import TokenBatch, head_cache, last_logits, require_layers

Place = tuple[int, int]
"""(position, layer): the position counts from the end of the prompt, −1 is its last token."""


@torch.no_grad()
def stream(
    model,
    token_ids: Sequence[Sequence[int]],
    *,
    positions: Sequence[int],
    layers: Sequence[int] | None = None,
    chunk: int = 8,
) -> Iterator[Float[Tensor, "prompt position layer d_model"]]:
    """resid_pre of `chunk` prompts after another, in their order, at `positions` and `layers` (all by default).

    Only the wanted positions are kept, in float32 on the CPU.

    Args:
        token_ids: prompts up to the start of the answer.

    Raises:
        MechrefusalError: a position that is not in every prompt, or a layer that the model lacks.
    """
    shortest = min(map(len, token_ids), default=0)
    if not positions or not all(-shortest <= position < 0 for position in positions):
        raise MechrefusalError(
            f"positions {list(positions)} do not lie in every prompt; count from the end, -1 to -{shortest} "
            "(the shortest)"
        )
    wanted = list(range(model.cfg.n_layers) if layers is None else layers)
    require_layers(model, wanted)
    batch = TokenBatch.of(
        token_ids, pad=model.tokenizer.pad_token_id, device=str(model.cfg.device), keep=-min(positions)
    )
    hooked: dict[int, Tensor] = {}

    def keep(activation: Tensor, hook, layer: int) -> None:
        hooked[layer] = activation[:, list(positions)].float().cpu()

    hooks = [(f"blocks.{layer}.hook_resid_pre", partial(keep, layer=layer)) for layer in dict.fromkeys(wanted)]
    cache = head_cache(model, batch)
    for part in batch.chunks(chunk):
        with model.hooks(fwd_hooks=hooks):
            last_logits(model, part, cache=cache, chunk=chunk)
        yield torch.stack([hooked[layer] for layer in wanted], dim=2)


def collect(
    model, token_ids: Sequence[Sequence[int]], places: Sequence[Place]
) -> Float[Tensor, "prompt place d_model"]:
    """resid_pre of every prompt at a few places, float32 on the CPU. Memory: prompts × places × d_model."""
    positions = sorted({position for position, _ in places})
    layers = sorted({layer for _, layer in places})
    rows, columns = [positions.index(p) for p, _ in places], [layers.index(layer) for _, layer in places]
    parts = [found[:, rows, columns] for found in stream(model, token_ids, positions=positions, layers=layers)]
    return torch.cat(parts)
