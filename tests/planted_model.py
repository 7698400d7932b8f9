"""What the hand-built models of the tests have in common: a tiny Llama, quiet but for what is planted.

Words carry marks in their embedding, in dimensions of their own, and every embedding holds a constant. What attention
and MLPs write is small noise beside these dimensions. The unembedding of the refusal token reads a dimension that the
planted part writes, that of the compliance token the constant.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from mechrefusal import models
from mechrefusal.forward import RefusalMetric

REFUSE, COMPLY = 500, 501
METRIC = RefusalMetric((), (REFUSE,), (COMPLY,))


@torch.no_grad()
def make(
    folder: Path,
    plant: Callable[[torch.nn.ModuleList], None],
    *,
    n_layers: int,
    n_kept: int,
    marks: Mapping[str, int],
    constant: int,
    refusal: tuple[int, float],
    compliance: float,
    noise: float = 0.02,
    level: float = 1.0,
    seed: int = 0,
):
    """The model, hooked.

    Args:
        plant: gets the layers and plants what reads the marks and writes refusal.
        n_kept: first dimensions that nothing but the plan writes to.
        marks: dimension of each word's mark.
        constant, level: dimension and value of what every embedding holds.
        refusal: dimension that the refusal token reads, and its weight.
        compliance: weight with which the compliance token reads the constant.
        seed: of all other weights.
        noise: what is left of all that attention and MLPs write.
    """
    models.tiny.make(folder, seed=seed, n_layers=n_layers, tied=False)
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), models.load_tokenizer(folder)
    embedding, unembedding = model.model.embed_tokens.weight, model.lm_head.weight
    embedding[:, :n_kept] = 0
    embedding[:, constant] = level
    for word, mark in marks.items():
        (token,) = tokenizer(f" {word}", add_special_tokens=False).input_ids
        embedding[token, mark] = 40
    for block in model.model.layers:
        for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            weight *= noise
            weight[:n_kept] = 0
    plant(model.model.layers)
    unembedding *= 0.05
    unembedding[[REFUSE, COMPLY]] = 0
    unembedding[REFUSE, refusal[0]] = refusal[1]
    unembedding[COMPLY, constant] = compliance
    model.save_pretrained(folder)
    return models.load_hooked(folder)
