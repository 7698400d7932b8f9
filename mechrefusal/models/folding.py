"""What compatibility mode does to the weights of a hooked transformer, a part of the model at a time.

TransformerLens computes it (`ProcessWeights`): norms folded, writing weights centred, value biases folded, in float32
and rounded once. Each of its passes copies all weights that it is given. What becomes of a block's hangs on no other
block, so it is given one block at a time, then the head, and the embeddings before them.
"""

import copy
import re
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mechrefusal.memory import trim
from mechrefusal.models.bridge_internals import processing

HEAD = ("ln_final", "unembed")
STAND_INS = ("embed.weight", "pos_embed.weight")
"""What `ProcessWeights` looks for among whatever weights it is given, to centre it."""


def fold(model: Any, reference: PreTrainedModel) -> None:
    """Compatibility mode as by default, with one part of the weights copied at a time.

    The pass over value biases is left out where the model has no bias at all; the unembedding is centred here, in
    place, by the subtraction of `ProcessWeights.center_unembed`.
    """
    from transformer_lens.utilities.activation_functions import softcap_enabled

    has_biases = any(name.endswith("bias") for name, _ in reference.named_parameters())
    with processing(lambda whole, weights, cfg, **how: _by_part(model, whole, weights, cfg, **how)):
        model.enable_compatibility_mode(disable_warnings=True, center_unembed=False, fold_value_biases=has_biases)
    if softcap_enabled(getattr(model.cfg, "output_logits_soft_cap", None)):
        return  # a soft cap is not indifferent to what is added to every logit
    with torch.no_grad():  # in float32 whatever the dtype
        model.unembed.weight.sub_(model.unembed.weight.mean(dim=0, keepdim=True))
        if (bias := model.unembed.bias) is not None:
            bias.sub_(bias.mean())


def _by_part(model: Any, process: Any, weights: dict[str, Tensor], cfg: Any, **how: Any) -> dict[str, Tensor]:
    """Each part processed alone and put into the model, in whose place nothing is left to distribute.

    A block is given as the only one of its model.
    """
    from transformer_lens.weight_processing import ProcessWeights

    components = model.real_components
    in_block = re.compile(rf"(blocks|{re.escape(components['blocks'][0])})\.(\d+)(?=\.)")
    for part, names in _parts(weights, in_block).items():
        alone = copy.copy(cfg)
        alone.n_layers = int(part.isdecimal())
        absent = {} if part == "embeddings" else {name: torch.zeros(1, cfg.d_model) for name in STAND_INS}
        # No name for the dictionary: `process` lets go of what it has copied.
        processed = process(
            {in_block.sub(r"\1.0", name, count=1): weights.pop(name) for name in names} | absent, alone, **how
        )
        ProcessWeights.distribute_weights_to_components(
            {
                _own_name(in_block.sub(rf"\g<1>.{part}", name, count=1), components): weight
                for name, weight in processed.items()
                if name not in absent
            },
            components,
        )
        del processed
        if cfg.dtype != torch.float32:
            trim()  # else freed copies, larger than the weights that came after them, stay in the process between these
    return {}


def _parts(weights: dict[str, Tensor], in_block: re.Pattern[str]) -> dict[str, list[str]]:
    """Names of the weights that are folded together: `embeddings` with all else, each block by its number, `head`."""
    parts: dict[str, list[str]] = {"embeddings": []}
    for name in weights:
        if (found := in_block.match(name)) is not None:
            parts.setdefault(found[2], []).append(name)
        elif name.partition(".")[0] not in HEAD:
            parts["embeddings"].append(name)
    parts["head"] = [name for name in weights if name.partition(".")[0] in HEAD]
    return parts


def _own_name(name: str, components: dict[str, tuple[str, Any]]) -> str:
    """TransformerLens' name of a weight that still has Hugging Face's."""
    for own, (path, _) in components.items():
        if path and name.startswith(f"{path}."):
            return own + name.removeprefix(path)
    return name
