"""One model, one number, whatever the way: alone or in a batch, in one pass or continued from a cache, cut or whole.

Everything measured relies on it, and no architecture is known by name to keep it: it is tried out on drawn tokens.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.models.batches import TokenBatch, continue_from, exact_length, expanded, head_cache
from mechrefusal.models.caches import refusal
from mechrefusal.models.rounding import Allowance, Found, allowed

TOLERANCE = 1e-3
"""Largest difference of log-probabilities (nats, float32) between two ways; in 16 bits see `models.rounding`."""
EXACT = Allowance(TOLERANCE, TOLERANCE)
LONGEST, N_STEPS = 14, 2

WAYS = {
    "later tokens": "earlier tokens see later ones, so that it is no causal language model",
    "padding": "a prompt in a batch of unequal ones has other probabilities than alone",
    "shared head": "prompts that continue a cached beginning have other probabilities than alone",
    "continuing": "a token after a cached prompt has other probabilities than in one pass",
}
"""What may differ, and what that means."""


def require_one_number(model: Any) -> None:
    """Try out a hooked transformer or a Hugging Face model on a few drawn tokens, every way.

    Raises:
        MechrefusalError: a way in which its log-probabilities are others, with the difference.
    """
    _require(model, _found(model))


def require_same_in_batch(model: Any) -> None:
    """The quickest of these trials, for every model that is opened: four passes over some fourteen tokens.

    Raises:
        MechrefusalError: a batch of two unequal prompts with a cached head gives other log-probabilities.
    """
    if (trial := _Trial.of(model, rows=2)) is not None:
        logits, _ = trial.continued(model, trial.prompts, keep=1)
        allowance = allowed(model, lambda: _likely(trial.alone(model)), EXACT)
        _require(model, {"shared head": allowance[:, 0].found(_likely(logits), _likely(trial.alone(model)[:, 0]))})


def differences(model: Any) -> dict[str, float]:
    """Differences of log-probabilities (nats) from passes of whole rows one at a time that come nearest to what is
    allowed, by way (see `WAYS`).

    Empty where attention reaches too few tokens to tell.
    """
    return {way: found.difference for way, found in _found(model).items()}


def _found(model: Any) -> dict[str, Found]:
    if (trial := _Trial.of(model, rows=3)) is None:
        return {}
    expected, text = _likely(trial.alone(model)), trial.texts[0]
    longest = len(trial.prompts[0])

    def cut() -> Tensor:
        return _likely(_logits(model, torch.tensor([text[:longest]], device=trial.device))[0])

    whole = _likely(_logits(model, torch.tensor([text], device=trial.device))[0])[:longest]
    padded, continued = map(_likely, trial.continued(model, trial.texts, keep=longest))
    from_head = _likely(trial.continued(model, trial.prompts, keep=1)[0])
    allowance = allowed(model, lambda: _likely(trial.alone(model)), EXACT)
    return {
        "later tokens": allowed(model, cut, EXACT).found(cut(), whole),
        "padding": allowance[:, 0].found(padded, expected[:, 0]),
        "shared head": allowance[:, 0].found(from_head, expected[:, 0]),
        "continuing": allowance[:, 1:].found(continued, expected[:, 1:]),
    }


@dataclass(frozen=True)
class _Trial:
    """Texts of unequal length that begin with the same tokens; the last `N_STEPS` tokens of each follow its prompt."""

    texts: list[list[int]]
    pad: int
    device: torch.device

    @classmethod
    def of(cls, model: Any, *, rows: int) -> Self | None:
        """None where attention reaches too few tokens to tell."""
        inner = getattr(model, "original_model", model)
        config = inner.config.get_text_config()
        longest = min(LONGEST, exact_length(config)[0] - N_STEPS)
        if longest < 4:
            return None
        generator = torch.Generator().manual_seed(0)
        token_ids = torch.randint(config.vocab_size, (rows, longest + N_STEPS), generator=generator)
        token_ids[:, : longest // 3] = token_ids[0, : longest // 3]
        lengths = (longest, longest // 3 + 1, longest - 2)
        texts = [row[: n + N_STEPS].tolist() for row, n in zip(token_ids, lengths, strict=False)]
        return cls(texts, config.vocab_size - 1, inner.get_input_embeddings().weight.device)

    @property
    def prompts(self) -> list[list[int]]:
        """The texts without what follows."""
        return [text[:-N_STEPS] for text in self.texts]

    @torch.no_grad()
    def alone(self, model: Any) -> Float[Tensor, "row token vocab"]:
        """Logits at the end of each prompt and at what follows it, one row after another."""
        rows = (_logits(model, torch.tensor([text], device=self.device))[0] for text in self.texts)
        return torch.stack([row[-N_STEPS - 1 :] for row in rows])

    @torch.no_grad()
    def continued(self, model: Any, texts: list[list[int]], *, keep: int) -> tuple[Tensor, Tensor]:
        """Logits at the end of every prompt [row, vocab], and after each token of a text that follows it."""
        batch = TokenBatch.of(self.prompts, pad=self.pad, device=str(self.device), keep=keep)
        following = torch.tensor([text[len(p) :] for text, p in zip(texts, self.prompts, strict=True)])
        mask, cache = batch.full_mask(), expanded(head_cache(model, batch), len(batch))
        logits, cache = continue_from(model, batch.rest, mask, cache, keep=1)
        steps = [logits[:, -1]]
        for column in following.to(self.device).T:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits, cache = continue_from(model, column.long()[:, None], mask, cache, keep=1)
            steps.append(logits[:, -1])
        return steps[0], torch.stack(steps[1:] or steps, dim=1)


def _require(model: Any, ways: dict[str, Found]) -> None:
    for way, found in ways.items():
        if not found.holds:
            name = type(getattr(model, "original_model", model)).__name__
            apart = f"{found.difference:.2g} nats apart, allowed {found.allowed:g}"
            raise MechrefusalError(refusal(name, f"{WAYS[way]} ({apart})"))


@torch.no_grad()
def _logits(model: Any, token_ids: Tensor) -> Float[Tensor, "row token vocab"]:
    """One pass without cache or mask."""
    if hasattr(model, "hook_dict"):
        return model(token_ids, return_type="logits")
    return model(input_ids=token_ids, use_cache=False).logits


def _likely(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)
