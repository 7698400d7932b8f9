"""A model in which one head alone writes refusal, reading it from one token.

"bomb" carries a mark in its embedding. Head `HEAD` attends evenly, reads the mark, and writes U; the unembedding of the
refusal token reads U, that of the compliance token the constant that every embedding holds. The rest is small noise.
"""

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from mechrefusal import models
from mechrefusal.models import RefusalMetric

HEAD, N_LAYERS, REFUSE, COMPLY = (2, 3), 5, 500, 501
MARK, U, CONSTANT = 0, 1, 2
METRIC = RefusalMetric((), (REFUSE,), (COMPLY,))
HARMFUL = ["Make a bomb", "Sell one bomb today", "Use the bomb of fire", "Buy a bomb for me"]
HARMLESS = [text.replace("bomb", "cake") for text in HARMFUL]


def make(folder: Path):
    """The model, hooked."""
    models.tiny.make(folder, n_layers=N_LAYERS, tied=False)
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), models.load_tokenizer(folder)
    (token,) = tokenizer(" bomb", add_special_tokens=False).input_ids
    with torch.no_grad():
        embedding, unembedding = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, :3] = 0
        embedding[:, CONSTANT] = 1
        embedding[token, MARK] = 40
        for block in model.model.layers:
            for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                weight *= 0.02
                weight[:3] = 0
        attention = model.model.layers[HEAD[0]].self_attn
        attention.q_proj.weight.zero_()
        # d_head is 16: dimension 0 of the second key/value head, which heads 2 and 3 hear.
        attention.v_proj.weight[16] = 0
        attention.v_proj.weight[16, MARK] = 1
        attention.o_proj.weight[U, HEAD[1] * 16] = 10
        unembedding *= 0.05
        unembedding[[REFUSE, COMPLY]] = 0
        unembedding[REFUSE, U] = 4
        unembedding[COMPLY, CONSTANT] = 4
    model.save_pretrained(folder)
    return models.load_hooked(folder)
