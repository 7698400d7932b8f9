"""A small random model of the same architecture as another: to find out in a second what it can do.

Its config is the other's with everything that costs made small: widths, heads, layers, experts, vocabulary. What makes
the architecture stays: kinds of layers, multipliers, soft caps, biases, positions, tied embeddings.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

WIDTH, HEADS, LAYERS, CONTEXT, EXPERTS = 64, 4, 4, 512, 4
D_HEAD = WIDTH // HEADS
LARGEST = 20_000_000
SPARE_TOKENS = 32
"""Rows of the embedding beyond the tokenizer's, for special tokens that the text never holds (images, audio)."""

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_QUERY_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "swa_num_key_value_heads")

_SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys((*_QUERY_HEADS, "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dff"), 2 * WIDTH),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp"), 2 * WIDTH),
    **dict.fromkeys(("dense_intermediate_size", "mlp_hidden_size"), 2 * WIDTH),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size"), WIDTH // 2),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), WIDTH),
    **dict.fromkeys(("head_dim", "kv_channels", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"), D_HEAD),
    **dict.fromkeys(("swa_head_dim", "swa_v_head_dim", "global_head_dim", "attention_head_size"), D_HEAD),
    **dict.fromkeys(("qk_head_dim", "index_head_dim"), 2 * D_HEAD),
    "q_lora_rank": WIDTH // 2,
    "kv_lora_rank": WIDTH // 4,
    "rotary_dim": D_HEAD // 2,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"), CONTEXT),
    "hidden_size_per_layer_input": D_HEAD,
}
"""What sizes become, as the configs of transformers name them; a size of 0 stays."""
_AT_MOST: dict[str, int] = {
    **dict.fromkeys((*_LAYERS, "encoder_layers"), LAYERS),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("index_n_heads", "num_kv_shared_layers"), 2),
    "laurel_rank": 8,
}
"""What is made smaller only."""


def small_config(config: PretrainedConfig, vocab_size: int) -> PretrainedConfig:
    """The config of a small model of the same class: d_model 64, at most 4 layers with every kind that `config` has.

    Raises:
        Exception: whatever the class says where its parts do not fit together when made small.
    """
    kept = _made_small(config.to_dict(), vocab_size + SPARE_TOKENS)
    for key in ("architectures", "dtype", "quantization_config", "transformers_version"):
        kept.pop(key, None)
    return type(config).from_dict(kept)


def small_model(config: PretrainedConfig, *, seed: int = 7) -> PreTrainedModel:
    """A float32 model of a small config, in evaluation mode, with noise on every weight, norms and biases included.

    Raises:
        ValueError: more than `LARGEST` parameters, where a config names its sizes in a way that is not known here; or
            logits that are not finite.
        Exception: whatever the class says where its parts do not fit together, built or run on a few tokens.
    """
    with torch.device("meta"):
        n = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if n > LARGEST:
        raise ValueError(f"a small {type(config).__name__} still has {n:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            embedding = model.get_input_embeddings().weight
            for weight in model.parameters():
                if weight.ndim < 2 and weight.isfinite().all():
                    weight += 0.2 * torch.randn_like(weight)
                elif not weight.isfinite().all() or weight.std() < 0.07:
                    # Left empty, zero, or so small that the model would say the same to everything.
                    weight.normal_(0.0, 0.5 if weight is embedding else 0.1)
    model.float().eval()
    with torch.no_grad():
        if not model(input_ids=torch.arange(3, 10)[None], use_cache=False).logits.isfinite().all():
            raise ValueError(f"a small {type(model).__name__} gives logits that are not finite")
    return model


def _made_small(values: dict[str, Any], vocab_size: int, spare: Iterator[int] | None = None) -> dict[str, Any]:
    """A config's values, those of configs inside it included."""
    spare = iter(range(vocab_size - 1, vocab_size - SPARE_TOKENS, -1)) if spare is None else spare
    layers = _layers(values)
    small: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("id2label", "label2id"):
            continue
        if key == "per_layer_config" and isinstance(value, dict) and layers is not None:
            by_layer = {int(layer): its for layer, its in value.items()}
            kept = [(new, by_layer[old]) for new, old in enumerate(layers.kept) if old in by_layer]
            small[key] = {new: _made_small(its, vocab_size, spare) for new, its in kept}
        elif isinstance(value, dict) and not key.startswith("rope"):
            small[key] = _made_small(value, vocab_size, spare)
        elif isinstance(value, dict):
            small[key] = _rope(value)
        elif layers is not None and key.endswith("layers") and _are_places(value):
            small[key] = [new for new, old in enumerate(layers.kept) if old in value]
        elif isinstance(value, list) and layers is not None and len(value) == layers.of:
            small[key] = [value[layer] for layer in layers.kept]
        elif key in _KV_HEADS and isinstance(value, int):
            small[key] = _kv_heads(values, value)
        elif key.endswith("vocab_size") and isinstance(value, int):
            small[key] = vocab_size
        elif key.endswith(("token_id", "token_index")):
            small[key] = _token(key, value, spare)
        elif isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            small[key] = value
        elif key in _SIZES:
            small[key] = _SIZES[key]
        elif key in _AT_MOST:
            small[key] = min(value, _AT_MOST[key])
        else:
            small[key] = value
    if layers is not None:
        for key in _LAYERS:
            if key in small:
                small[key] = len(layers.kept)
    return small


class _Layers:
    """Which layers stay: the first of every kind, and as many others as fit, in their order."""

    def __init__(self, of: int, lists: list[list[Any]]) -> None:
        self.of = of
        kinds = [str(kind) for kind in zip(*lists, strict=True)] if lists else [""] * of
        firsts = {kind: place for place, kind in reversed(list(enumerate(kinds)))}
        others = [place for place in range(of) if place not in firsts.values()]
        n = max(LAYERS, len(firsts))
        self.kept = sorted([*firsts.values(), *others[: max(0, n - len(firsts))]])


def _layers(values: dict[str, Any]) -> _Layers | None:
    for key in _LAYERS:
        if isinstance(of := values.get(key), int) and of > 0:
            lists = [v for k, v in values.items() if isinstance(v, list) and len(v) == of and not k.startswith("rope")]
            by_layer = [each for each in lists if all(isinstance(v, str | int) for v in each) and not _are_places(each)]
            return _Layers(of, by_layer)
    return None


def _are_places(value: Any) -> bool:
    """Whether this is a list of layers by their numbers, not one entry a layer."""
    numbers = isinstance(value, list) and len(value) > 1 and all(type(each) is int for each in value)
    return numbers and all(a < b for a, b in pairwise(value))


def _kv_heads(values: dict[str, Any], kv_heads: int) -> int:
    """As many a query head as before, as far as that goes: one, all, or half of them."""
    queries = next((values[key] for key in _QUERY_HEADS if isinstance(values.get(key), int)), kv_heads)
    return 1 if kv_heads == 1 else HEADS if kv_heads >= queries else HEADS // 2


def _token(key: str, value: Any, spare: Iterator[int]) -> Any:
    if value is None:
        return None
    known = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if key in known:
        return known[key]
    return next(spare) if isinstance(value, int) and value >= 0 else value


def _rope(values: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions without what is sized by heads: lists of factors, sections for images."""
    plain_values = {key: _rope(value) if isinstance(value, dict) else value for key, value in values.items()}
    if plain_values.get("rope_type", plain_values.get("type")) in ("longrope", "su"):
        kept = ("rope_theta", "partial_rotary_factor")
        return {"rope_type": "default", **{key: plain_values[key] for key in kept if key in plain_values}}
    return {key: value for key, value in plain_values.items() if not isinstance(value, list)}
