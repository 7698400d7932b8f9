"""What heads look at, and where a direction shows in a prompt: the raw material of the circuit figures."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from mechrefusal.attribution.writes import token_ids_of
from mechrefusal.forward.direction import Along, direction_of, require_weights


def attention(model, text: str, heads: Sequence[tuple[int, int]]) -> tuple[pd.DataFrame, list[str]]:
    """Attention patterns of (layer, head) pairs on one prompt.

    Returns:
        A table layer, head, destination, source, weight (source ≤ destination only), and the prompt's tokens.
    """
    token_ids = token_ids_of(model, text)
    names = {f"blocks.{layer}.attn.hook_pattern" for layer, _ in heads}
    _, cache = model.run_with_cache(token_ids, names_filter=lambda name: name in names)
    rows = []
    for layer, head in heads:
        pattern = cache["pattern", layer][0, head]
        for destination in range(len(pattern)):
            for source in range(destination + 1):
                rows.append((layer, head, destination, source, pattern[destination, source].item()))
    return pd.DataFrame(rows, columns=["layer", "head", "destination", "source", "weight"]), _strings(model, token_ids)


def projections(model, text: str, along: Along, *, layer: int | None = None) -> pd.DataFrame:
    """Projection of resid_pre of `layer` on a unit direction at every token: index, token, value.

    Args:
        layer: by default the direction's own.
    """
    chosen = direction_of(along)
    require_weights(model, chosen.weights, chosen.name)
    layer, direction = chosen.require_layer() if layer is None else layer, chosen.vector
    token_ids = token_ids_of(model, text)
    kept: dict[str, Tensor] = {}
    with (
        torch.no_grad(),
        model.hooks([(f"blocks.{layer}.hook_resid_pre", lambda value, hook: kept.update(resid=value.detach()))]),
    ):
        model(token_ids, logits_to_keep=1)
    values = kept["resid"][0] @ (direction / direction.norm()).to(kept["resid"])
    strings = _strings(model, token_ids)
    return pd.DataFrame({"index": range(len(strings)), "token": strings, "value": values.tolist()})


def _strings(model, token_ids: Tensor) -> list[str]:
    return [model.tokenizer.decode([token]) for token in token_ids[0].tolist()]
