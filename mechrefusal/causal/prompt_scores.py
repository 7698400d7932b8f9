"""Scores of harmful and of harmless prompts, as every intervention on both is judged by them."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PromptScores:
    """Refusal scores of all prompts (nats), and KL(base ‖ now) of the next token of the harmless ones (nats)."""

    harmful: Float[Tensor, " harmful"]
    harmless: Float[Tensor, " harmless"]
    kl: Float[Tensor, " harmless"]

    @classmethod
    def of(cls, scores: Float[Tensor, " prompt"], kl: Float[Tensor, " harmless"]) -> "PromptScores":
        """From the scores of all prompts, harmful ones first."""
        n_harmful = len(scores) - len(kl)
        return cls(scores[:n_harmful], scores[n_harmful:], kl)
