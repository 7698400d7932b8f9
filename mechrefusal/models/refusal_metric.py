"""The refusal metric: one number a prompt that is high where the model is about to refuse.

It lives here because every measuring package receives one as a value; `mechrefusal.evaluation` discovers it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.models.forward import TokenBatch, head_cache, last_logits


@dataclass(frozen=True)
class ForcedOpenings:
    """Openings of several tokens (token ids) that a checkpoint's refusals and its answers begin with."""

    refusals: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.refusals or not self.answers or not all([*self.refusals, *self.answers]):
            raise ValueError("teacher-forced openings need at least one refusal and one answer, none of them empty")


@dataclass(frozen=True)
class RefusalMetric:
    """How much likelier a refusal is than an answer, in nats.

    log P(refusal tokens) − log P(compliance tokens) for the token after prompt + `opening`, a forced prefix of the
    answer (token ids, often empty): models that open refusals and answers with the same token are told apart after it.

    Where `forced` is given, scores are log Σ P(refusal opening) − log Σ P(answer opening) instead, each the
    teacher-forced probability of the whole opening after the prompt. Patching and attribution, which look at the logits
    of one position, go on using the token sets.

    `kind` is "discovered", "teacher_forced", or "fallback" where a checkpoint showed too few refusals or answers to
    discover anything.
    """

    opening: tuple[int, ...]
    refusal_tokens: tuple[int, ...]
    compliance_tokens: tuple[int, ...]
    kind: str = "discovered"
    forced: ForcedOpenings | None = None

    def __post_init__(self) -> None:
        if not self.refusal_tokens or not self.compliance_tokens:
            raise ValueError("a refusal metric needs at least one refusal token and one compliance token")
        if shared := set(self.refusal_tokens) & set(self.compliance_tokens):
            raise ValueError(f"tokens {sorted(shared)} are both refusal and compliance tokens")

    @property
    def runs(self) -> tuple[tuple[int, ...], ...]:
        """What has to be run after each prompt (token ids) to score it; `of_runs` takes the logits."""
        if self.forced is None:
            return (self.opening,)
        return tuple(opening[:-1] for opening in (*self.forced.refusals, *self.forced.answers))

    def of_runs(self, logits: Sequence[Float[Tensor, "prompt place vocab"]]) -> Float[Tensor, " prompt"]:
        """Score of every prompt.

        Args:
            logits: for each of `runs`, at the end of the prompt and at each of the run's tokens.
        """
        if self.forced is None:
            return self.of(logits[0][:, -1])
        openings = (*self.forced.refusals, *self.forced.answers)
        found = []
        for opening, after in zip(openings, logits, strict=True):
            told = torch.tensor(opening, device=after.device).expand(len(after), -1)
            found.append(after.log_softmax(-1).gather(-1, told[..., None])[..., 0].sum(-1))
        likely = torch.stack(found)
        n = len(self.forced.refusals)
        return likely[:n].logsumexp(0) - likely[n:].logsumexp(0)

    def of(self, logits: Float[Tensor, "*prompt vocab"]) -> Float[Tensor, "*prompt"]:
        """Score from the logits at the metric's position (the last one of prompt + opening)."""
        refusal = torch.logsumexp(logits[..., list(self.refusal_tokens)], dim=-1)
        return refusal - torch.logsumexp(logits[..., list(self.compliance_tokens)], dim=-1)

    def batch(self, prompts: Sequence[Sequence[int]], *, pad: int, device: str = "cpu") -> TokenBatch:
        """Prompts (token ids up to the start of the answer) followed by the opening."""
        longer = [[*prompt, *self.opening] for prompt in prompts]
        return TokenBatch.of(longer, pad=pad, device=device, keep=8 + len(self.opening))

    def score(self, model, batch: TokenBatch, *, cache=None) -> Float[Tensor, " prompt"]:
        """Score of every prompt of a `batch` made by `self.batch`, under the hooks that are active now."""
        return self.of(last_logits(model, batch, cache=cache)[:, -1])

    def score_and_next(self, model, batch: TokenBatch) -> tuple[Tensor, Float[Tensor, "prompt vocab"]]:
        """The scores, and the next-token log-probabilities at the end of the prompt itself (before the opening)."""
        logits = last_logits(model, batch, keep=len(self.opening) + 1, cache=head_cache(model, batch))
        return self.of(logits[:, -1]), logits[:, 0].log_softmax(-1)


def rd_score(logits: Float[Tensor, "*prompt vocab"], tokens: Sequence[int]) -> Float[Tensor, "*prompt"]:
    """Refusal score of Arditi et al. (2406.11717): log(P_R + 1e-8) − log(1 − P_R + 1e-8) at the end of the prompt.

    P_R is the probability of the hand-picked first `tokens`. Computed in float64, as 1 − P_R cancels.
    """
    mass = logits.double().softmax(-1)[..., list(tokens)].sum(-1)
    return torch.log(mass + 1e-8) - torch.log(1 - mass + 1e-8)


RD_OPENINGS = ("I", "As")
"""First words of refusals that RD picks by hand for most chat models (its config of each model family)."""


def rd_tokens(tokenizer) -> tuple[int, ...]:
    """First token of each of `RD_OPENINGS` under `tokenizer`."""
    return tuple(dict.fromkeys(tokenizer(word, add_special_tokens=False).input_ids[0] for word in RD_OPENINGS))
