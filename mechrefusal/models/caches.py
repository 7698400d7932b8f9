"""Which models continue text from keys and values of single tokens, as every batched pass here does.

A recurrent layer keeps one state of all that it has read: tokens cannot be taken from it, padding inside a row changes
it, and it holds no attention that a head could be patched in. Such models are known by the type of what they keep.
"""

import inspect
from typing import Any

from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, LinearAttentionCacheLayerMixin

from mechrefusal.errors import MechrefusalError


def why_not_continued(architecture: type[PreTrainedModel], config: PretrainedConfig) -> str | None:
    """Why texts cannot be continued from the cache of a model of this class and config, found without a model.

    None where they can.
    """
    if getattr(architecture, "_is_stateful", False):
        return "its layers keep a recurrent state, not keys and values of single tokens"
    if "past_key_values" not in inspect.signature(architecture.forward).parameters:
        return "it keeps no keys and values to continue from"
    try:
        layers = DynamicCache(config=config).layers
    except KeyError as error:
        return f"its layers of kind {error} keep something else than keys and values"
    except AttributeError:  # a config of several parts, which says nothing of layers
        return None
    return _odd_layer(layers)


def require_continued(model: Any, cache: Any) -> DynamicCache:
    """The cache of a pass, where it holds keys and values of single tokens.

    Raises:
        MechrefusalError: a recurrent state, another kind of cache, or none, with the model's class.
    """
    why = _odd_layer(cache.layers) if isinstance(cache, DynamicCache) else f"its cache is a {type(cache).__name__}"
    if why is not None:
        model = getattr(model, "original_model", model)
        raise MechrefusalError(refusal(type(model).__name__, why))
    return cache


def without_router_logits(config: PretrainedConfig) -> None:
    """Have passes leave out the loss that balances experts, which cannot be taken of a text that continues a cache."""
    text = config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False


def refusal(name: str, why: str) -> str:
    """The message for a model of class `name` that cannot be measured."""
    return f"{name} cannot be measured: {why}; docs/architectures.md lists the architectures that can"


def _odd_layer(layers: list[Any]) -> str | None:
    for number, layer in enumerate(layers):
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            return (
                f"layer {number} keeps a recurrent state ({type(layer).__name__}), not keys and values of single tokens"
            )
        if not isinstance(layer, DynamicLayer | DummyLayer):
            return f"layer {number} keeps a {type(layer).__name__}, not keys and values of single tokens"
    return None
