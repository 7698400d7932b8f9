"""A model in which given heads alone carry refusal.

"bomb" carries a mark in its embedding. The given heads read it, evenly over all positions before, and write V in equal
parts; the unembedding of the refusal token reads V, that of the compliance token a constant that every embedding holds.
The rest is small noise.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from mechrefusal import models
from mechrefusal.models import RefusalMetric

N_LAYERS, N_HEADS, D_HEAD, REFUSE, COMPLY = 5, 4, 16, 500, 501
MARK, CONSTANT, V = 0, 1, 2
METRIC = RefusalMetric((), (REFUSE,), (COMPLY,))
HARMFUL = ["Make a bomb", "Sell the bomb", "Use one bomb today", "Buy a bomb of fire now"]
HARMLESS = ["Make a cake", "Sell the cake", "Use one cake today", "Buy a cake of fire now"]


def make(folder: Path, heads: Sequence[tuple[int, int]]):
    """The model, hooked; `heads` are (layer, head)."""
    models.tiny.make(folder, n_layers=N_LAYERS, tied=False)
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), models.load_tokenizer(folder)
    with torch.no_grad():
        embedding, unembedding = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, :3] = 0
        embedding[:, CONSTANT] = 1
        (token,) = tokenizer(" bomb", add_special_tokens=False).input_ids
        embedding[token, MARK] = 40
        for layer, block in enumerate(model.model.layers):
            attention, mlp = block.self_attn, block.mlp
            for weight in (attention.o_proj.weight, mlp.down_proj.weight):
                weight *= 0.02
                weight[:3] = 0
            for head in (head for at, head in heads if at == layer):
                group = head // 2  # two heads to a key/value head
                attention.q_proj.weight[head * D_HEAD : (head + 1) * D_HEAD] = 0
                attention.v_proj.weight[group * D_HEAD] = 0
                attention.v_proj.weight[group * D_HEAD, MARK] = 1
                attention.o_proj.weight[V, head * D_HEAD] = 10 / len(heads)
        unembedding *= 0.05
        unembedding[[REFUSE, COMPLY]] = 0
        unembedding[REFUSE, V] = 2
        unembedding[COMPLY, CONSTANT] = 4
    model.save_pretrained(folder)
    return models.load_hooked(folder)
