"""What is asked: where models come from, checkpoints that know their weights, and the hooked transformer."""

from mechrefusal.models import tiny
from mechrefusal.models.architectures import require_supported
from mechrefusal.models.batches import TokenBatch, head_cache, last_logits
from mechrefusal.models.capacity import bytes_to_hook, bytes_to_load, require_memory
from mechrefusal.models.checkpoint import Checkpoint, hash_checkpoint
from mechrefusal.models.loading import context_length, load_causal_lm, load_hooked, load_tokenizer
from mechrefusal.models.model_files import LoadedFiles
from mechrefusal.models.placement import Placed, Placement
from mechrefusal.models.residual_stream import is_direction, require_direction, require_layers, wanted_layers
from mechrefusal.models.sources import cache_folder, fetch, loaded_files
from mechrefusal.models.weights import load_config

__all__ = [
    "Checkpoint",
    "LoadedFiles",
    "Placed",
    "Placement",
    "TokenBatch",
    "bytes_to_hook",
    "bytes_to_load",
    "cache_folder",
    "context_length",
    "fetch",
    "hash_checkpoint",
    "head_cache",
    "is_direction",
    "last_logits",
    "load_causal_lm",
    "load_config",
    "load_hooked",
    "load_tokenizer",
    "loaded_files",
    "require_direction",
    "require_layers",
    "require_memory",
    "require_supported",
    "tiny",
    "wanted_layers",
]
