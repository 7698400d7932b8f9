"""The one engine: how models are run, plainly or under edits of what they hold, and what is read of it."""

from mechrefusal.forward.choosing import runner_of
from mechrefusal.forward.decoding import Continuation, ModelDecoder, continuations, decoded, end_tokens, generate
from mechrefusal.forward.metric_reader import Metric, MetricReader
from mechrefusal.forward.patches import MEMORY, PairRun, Patch
from mechrefusal.forward.refusal_metric import ForcedOpenings, RefusalMetric, rd_score, rd_tokens
from mechrefusal.forward.runner import (
    Asked,
    Batch,
    Number,
    Output,
    PatchedPair,
    Runner,
    batches,
    by_continuation,
    require_context,
)
from mechrefusal.forward.scoring import logits_after, opening_log_probabilities, refusal_scores, refusal_scores_and
from mechrefusal.forward.sites import Activations, Edit, Place, Site, bridge_hooks, flat, hook_name
from mechrefusal.forward.token_classes import TokenClasses, TokenLayout
from mechrefusal.forward.unhooked import stream_of, unhooked_model

__all__ = [
    "MEMORY",
    "Activations",
    "Asked",
    "Batch",
    "Continuation",
    "Edit",
    "ForcedOpenings",
    "Metric",
    "MetricReader",
    "ModelDecoder",
    "Number",
    "Output",
    "PairRun",
    "Patch",
    "PatchedPair",
    "Place",
    "RefusalMetric",
    "Runner",
    "Site",
    "TokenClasses",
    "TokenLayout",
    "batches",
    "bridge_hooks",
    "by_continuation",
    "continuations",
    "decoded",
    "end_tokens",
    "flat",
    "generate",
    "hook_name",
    "logits_after",
    "opening_log_probabilities",
    "rd_score",
    "rd_tokens",
    "refusal_scores",
    "refusal_scores_and",
    "require_context",
    "runner_of",
    "stream_of",
    "unhooked_model",
]
