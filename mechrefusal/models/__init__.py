"""What is asked: where models come from, checkpoints that know their weights, and the hooked transformer."""

from mechrefusal.models import tiny
from mechrefusal.models.checkpoint import Checkpoint, hash_weights
from mechrefusal.models.forward import (
    Continuation,
    TokenBatch,
    continuations,
    end_tokens,
    generate,
    head_cache,
    last_logits,
)
from mechrefusal.models.loading import context_length, load_causal_lm, load_hooked, load_tokenizer
from mechrefusal.models.refusal_metric import ForcedOpenings, RefusalMetric, rd_score, rd_tokens
from mechrefusal.models.residual_stream import is_direction, require_direction, require_layers, wanted_layers
from mechrefusal.models.sources import cache_folder, fetch

__all__ = [
    "Checkpoint",
    "Continuation",
    "ForcedOpenings",
    "RefusalMetric",
    "TokenBatch",
    "cache_folder",
    "context_length",
    "continuations",
    "end_tokens",
    "fetch",
    "generate",
    "hash_weights",
    "head_cache",
    "is_direction",
    "last_logits",
    "load_causal_lm",
    "load_hooked",
    "load_tokenizer",
    "rd_score",
    "rd_tokens",
    "require_direction",
    "require_layers",
    "tiny",
    "wanted_layers",
]
