"""Which architectures can be measured: found out on a small random model of the same config, before anything costs.

No architecture is known by its name. A small model is opened as the real one would be, and what measures rely on is
tried on it: the same numbers alone, in a batch and from a cache, and a residual stream that is the sum of its parts.
"""

import copy
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from mechrefusal.devices import HOST
from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file
from mechrefusal.memory import given_back
from mechrefusal.models import tiny
from mechrefusal.models.bridge_internals import scale_of_writes, written_by
from mechrefusal.models.caches import refusal, why_not_continued
from mechrefusal.models.checkpoint import SAID_OF_ORIGIN
from mechrefusal.models.library_output import quiet
from mechrefusal.models.loading import load_hooked
from mechrefusal.models.one_number import require_one_number
from mechrefusal.models.small import small_config, small_model
from mechrefusal.models.sources import cache_folder
from mechrefusal.models.weights import load_config

TRIALS = 1
"""Version of what is tried: counted up where it changes."""
LIBRARIES = ("torch", "transformers", "transformer-lens")
SUM_TOLERANCE = 1e-3
"""Largest relative gap between an activation and the sum of its parts."""

STREAM_HOOKS = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
HEAD_HOOKS = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_pattern", "attn.hook_z")


def require_supported(folder: Path | str) -> None:
    """Raise `MechrefusalError` where the model in a local folder is of an architecture that cannot be measured.

    Its weights are not read. A config that cannot be made small passes: what can be wrong shows when it is opened.
    """
    if (why := why_unsupported(load_config(folder))) is not None:
        raise MechrefusalError(f"'{folder}': {why}")


def why_unsupported(config: PretrainedConfig) -> str | None:
    """Why models of this config cannot be measured, None where they can.

    Tried out once a config and version of the libraries: what was found is kept in the cache of models.
    """
    settings = json.loads(config.to_json_string(use_diff=False))
    settings = {key: value for key, value in settings.items() if key not in SAID_OF_ORIGIN}
    tried = [TRIALS, *map(version, LIBRARIES), type(config).__name__, settings]
    key = hashlib.sha256(json.dumps(tried, sort_keys=True, default=str).encode()).hexdigest()[:32]
    if key not in _KNOWN:
        _KNOWN[key] = _kept(cache_folder() / "architectures" / f"{key}.txt", config)
    return _KNOWN[key]


_KNOWN: dict[str, str | None] = {}


def _kept(path: Path, config: PretrainedConfig) -> str | None:
    with suppress(OSError):
        return path.read_text(encoding="utf-8") or None
    try:
        why = _why_unsupported(config)
    except (OSError, MemoryError):  # a full disk says nothing about an architecture
        return None
    with suppress(OSError):  # where nothing can be kept it is tried again
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as draft:
            draft.write_text(why or "", encoding="utf-8")
    return why


def _why_unsupported(config: PretrainedConfig) -> str | None:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"transformers has no causal language model of type '{config.model_type}'"
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    architecture = architecture[0] if isinstance(architecture, tuple) else architecture
    if (why := why_not_continued(architecture, config)) is not None:
        return refusal(architecture.__name__, why)
    if not _has_adapter(architecture.__name__, config):
        return refusal(architecture.__name__, "TransformerLens has no adapter for it")
    words = tiny.tokenizer()
    try:
        with quiet():
            model = small_model(small_config(config, len(words)))
    except Exception:  # whatever a class says of sizes that do not fit says nothing about the real ones
        return None
    if model.base_model is model:
        prefix = model.base_model_prefix
        return refusal(architecture.__name__, f"it has no body under the name '{prefix}', so that TRL cannot train it")
    with TemporaryDirectory() as folder:
        with quiet():
            model.save_pretrained(folder)
            words.save_pretrained(folder)
        del model
        try:
            hooked = load_hooked(folder, device=HOST.type)
            require_one_number(hooked)
            require_parts(hooked)
        except MechrefusalError as error:
            return str(error).replace(f" in '{folder}'", "").replace(f"'{folder}'", "a small model like it")
        except (OSError, MemoryError):
            raise
        except Exception as error:  # of TransformerLens' or transformers' code, used in a way that it does not know
            lines = str(error).splitlines() or [""]
            return refusal(architecture.__name__, f"trying it ends in {type(error).__name__}: {lines[0][:200]}")
        finally:
            given_back()
    return None


def _has_adapter(name: str, config: PretrainedConfig) -> bool:
    """Whether TransformerLens knows a model of class `name` and this config."""
    from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config

    named = copy.copy(config)
    named.architectures = [name]
    try:
        determine_architecture_from_hf_config(named)
    except ValueError:
        return False
    return True


@torch.no_grad()
def require_parts(model: Any) -> None:
    """Whether a hooked transformer has the sites that measures look at, and its stream is the sum of what is written.

    Raises:
        MechrefusalError: a layer without attention's or the MLP's hooks; writes that do not add up to the stream, or
            heads that do not add up to what attention writes.
    """
    name = type(model.original_model).__name__
    for layer in range(model.cfg.n_layers):
        wanted = (*STREAM_HOOKS, *HEAD_HOOKS)
        if missing := [hook for hook in wanted if f"blocks.{layer}.{hook}" not in model.hook_dict]:
            raise MechrefusalError(refusal(name, f"TransformerLens has no {missing[0]} in its layer {layer}"))
    seen = _seen(model)
    for layer in range(model.cfg.n_layers):
        if (why := _why_no_sum(model, layer, seen)) is not None:
            raise MechrefusalError(refusal(name, why))


def _why_no_sum(model: Any, layer: int, seen: dict[str, Tensor]) -> str | None:
    """Why the parts of a layer are not what the stream gains there."""
    activations = [seen.get(f"blocks.{layer}.{hook}") for hook in (*STREAM_HOOKS, *HEAD_HOOKS)]
    if any(each is None for each in activations):
        return f"a hook of TransformerLens in layer {layer} is never reached"
    pre, attention, mlp, post, q, k, v, pattern, z = (each for each in activations if each is not None)
    for name, each in (("q", q), ("k", k), ("v", v)):
        if each.shape[:2] != pre.shape[:2]:
            return f"TransformerLens' hook_{name} in layer {layer} is not by token and head ({tuple(each.shape)})"
    if not _close(pre + attention + mlp, post):
        return f"what attention and MLP of layer {layer} write is not what its residual stream gains"
    n_heads, d_head, block = model.cfg.n_heads, model.cfg.d_head, model.blocks[layer]
    if pattern.shape[1] != n_heads or z.shape[2:].numel() != n_heads * d_head:
        return f"layer {layer} has not {n_heads} heads of {d_head}"
    if written_by(block, "hook_attn_out")[0] != "attn":
        return None  # a norm stands between the heads and the stream
    total = torch.einsum("bphd,hdm->bpm", z.reshape(*z.shape[:2], n_heads, d_head), block.attn.W_O)
    total = total if block.attn.b_O is None else total + block.attn.b_O
    if not _close(scale_of_writes(model) * total, attention):
        return f"the heads of layer {layer} do not add up to what its attention writes"
    return None


def _seen(model: Any) -> dict[str, Tensor]:
    """Activations of one pass over a few drawn tokens."""
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any, name: str) -> None:
        kept[name] = activation.detach().clone()

    layers = range(model.cfg.n_layers)
    names = [f"blocks.{layer}.{hook}" for layer in layers for hook in (*STREAM_HOOKS, *HEAD_HOOKS)]
    hooks: list[tuple[str, Callable[..., None]]] = [(name, partial(keep, name=name)) for name in names]
    token_ids = torch.randint(model.cfg.d_vocab, (1, 7), generator=torch.Generator().manual_seed(0))
    with model.hooks(fwd_hooks=hooks):
        model(token_ids.to(model.cfg.device), return_type="logits")
    return kept


def _close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).norm() <= SUM_TOLERANCE * expected.norm())
