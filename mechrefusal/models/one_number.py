"""One model, one number, whatever the way: alone or in a batch, in one pass or continued from a cache, cut or whole.

Everything measured relies on it, and no architecture is known by name to keep it: it is tried out on drawn tokens.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.models.caches import refusal
from mechrefusal.models.forward import TokenBatch, _step, exact_length, expanded, head_cache

TOLERANCE = 1e-3
"""Largest difference of log-probabilities (nats, float32) between two ways."""
LONGEST, N_STEPS = 14, 2

WAYS = {
    "later tokens": "earlier tokens see later ones, so that it is no causal language model",
    "padding": "a prompt in a batch of unequal ones has other probabilities than alone",
    "shared head": "prompts that continue a cached beginning have other probabilities than alone",
    "continuing": "a token after a cached prompt has other probabilities than in one pass",
}
"""What may differ, and what that means."""


def require_one_number(model: Any) -> None:
    """Try out a hooked transformer or a Hugging Face model on a few drawn tokens.

    Raises:
        MechrefusalError: a way in which its log-probabilities are others, with the difference.
    """
    for way, difference in differences(model).items():
        if not difference <= TOLERANCE:
            name = type(getattr(model, "original_model", model)).__name__
            raise MechrefusalError(refusal(name, f"{WAYS[way]} ({difference:.2g} nats apart, allowed {TOLERANCE:g})"))


@torch.no_grad()
def differences(model: Any) -> dict[str, float]:
    """Largest difference of log-probabilities (nats) from passes of whole rows one at a time, by way (see `WAYS`)."""
    inner = getattr(model, "original_model", model)
    config = inner.config.get_text_config()
    device = inner.get_input_embeddings().weight.device
    longest = min(LONGEST, exact_length(config)[0] - N_STEPS)
    if longest < 4:
        return {}
    drawn = torch.randint(config.vocab_size, (4, longest + N_STEPS), generator=torch.Generator().manual_seed(0))
    drawn[:, : longest // 3] = drawn[0, : longest // 3]
    lengths = [longest, longest // 3 + 1, longest - 2]
    texts = [row[: n + N_STEPS].tolist() for row, n in zip(drawn, lengths, strict=False)]
    alone = [_logits(model, torch.tensor([text], device=device))[0] for text in texts]
    found = {
        "later tokens": _apart(_logits(model, torch.tensor([texts[0][:longest]], device=device))[0], alone[0][:longest])
    }
    prompts = [text[:-N_STEPS] for text in texts]
    following = torch.tensor([text[-N_STEPS:] for text in texts], device=device)
    expected = torch.stack([logits[-N_STEPS - 1 :] for logits in alone])
    pad = config.vocab_size - 1
    whole = TokenBatch.of(prompts, pad=pad, device=str(device), keep=longest)
    shared = TokenBatch.of(prompts, pad=pad, device=str(device), keep=1)
    assert len(whole.head) == 0 < len(shared.head)
    padded, continued = _continued(model, whole, following)
    from_head, _ = _continued(model, shared, following[:, :0])
    found |= {
        "padding": _apart(padded, expected[:, 0]),
        "shared head": _apart(from_head, expected[:, 0]),
        "continuing": _apart(continued, expected[:, 1:]),
    }
    return found


def _logits(model: Any, token_ids: Tensor) -> Float[Tensor, "row token vocab"]:
    """One pass without cache or mask."""
    if hasattr(model, "hook_dict"):
        return model(token_ids, return_type="logits")
    return model(input_ids=token_ids, use_cache=False).logits


def _continued(model: Any, batch: TokenBatch, following: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the end of every prompt [row, vocab], and after each token that follows it [row, token, vocab]."""
    mask, cache = batch.full_mask(), expanded(head_cache(model, batch), len(batch))
    logits, cache = _step(model, batch.rest, mask, cache, keep=1)
    first, later = logits[:, -1], []
    for column in following.T:
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits, cache = _step(model, column[:, None], mask, cache, keep=1)
        later.append(logits[:, -1])
    return first, torch.stack(later, dim=1) if later else logits[:, :0]


def _apart(found: Tensor, expected: Tensor) -> float:
    return (found.float().log_softmax(-1) - expected.float().log_softmax(-1)).abs().max().item()
