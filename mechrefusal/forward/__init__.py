"""The one engine: how models are run, plainly or under edits of what they hold, and what is read of it."""

from mechrefusal.forward.decoding import Continuation, continuations, end_tokens, generate
from mechrefusal.forward.refusal_metric import ForcedOpenings, RefusalMetric, rd_score, rd_tokens

__all__ = [
    "Continuation",
    "ForcedOpenings",
    "RefusalMetric",
    "continuations",
    "end_tokens",
    "generate",
    "rd_score",
    "rd_tokens",
]
