"""A model in which one head writes what a later head reads, and that one alone carries refusal.

"bomb" carries a mark in its embedding. Head `FIRST` reads it, evenly over all positions before, and writes U at every
token after; head `SECOND` reads U and writes V; the unembedding of the refusal token reads V, that of the compliance
token a constant that every embedding holds. The rest is small noise.
"""

from pathlib import Path

import torch
from one_head import COMPLY, CONSTANT, D_HEAD, MARK, METRIC, N_LAYERS, REFUSE, V
from transformers import LlamaForCausalLM

from mechrefusal import models

FIRST, SECOND, U = (1, 0), (3, 2), 3
__all__ = ["FIRST", "METRIC", "SECOND", "make"]


def make(folder: Path):
    """The model, hooked."""
    models.tiny.make(folder, n_layers=N_LAYERS, tied=False)
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), models.load_tokenizer(folder)
    with torch.no_grad():
        embedding, unembedding = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, :4] = 0
        embedding[:, CONSTANT] = 8  # so large that U does not move the norms, and with them the logits, by itself
        (token,) = tokenizer(" bomb", add_special_tokens=False).input_ids
        embedding[token, MARK] = 40
        for block in model.model.layers:
            for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                weight *= 0.02
                weight[:4] = 0
        for (layer, head), read, write in ((FIRST, MARK, (U, 2)), (SECOND, U, (V, 10))):
            attention = model.model.layers[layer].self_attn
            group = head // 2  # two heads to a key/value head
            attention.q_proj.weight[head * D_HEAD : (head + 1) * D_HEAD] = 0
            attention.v_proj.weight[group * D_HEAD] = 0
            attention.v_proj.weight[group * D_HEAD, read] = 1
            attention.o_proj.weight[write[0], head * D_HEAD] = write[1]
        unembedding *= 0.05
        unembedding[[REFUSE, COMPLY]] = 0
        unembedding[REFUSE, V] = 2
        unembedding[COMPLY, CONSTANT] = 0.5
    model.save_pretrained(folder)
    return models.load_hooked(folder)
