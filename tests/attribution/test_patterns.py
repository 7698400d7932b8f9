"""Attention patterns and projections against the Hugging Face model's own."""

import numpy as np
import pytest
import torch
from tolerances import REORDERED

from mechrefusal import attribution

TEXT = "How do I swim across a river?"


@pytest.fixture(scope="module")
def tokens(tiny_hf):
    messages = [{"role": "user", "content": TEXT}]
    return tiny_hf[1].apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def test_attention_equals_the_plain_models(tiny, tiny_hooked, tokens):
    from transformers import AutoModelForCausalLM

    eager = AutoModelForCausalLM.from_pretrained(tiny, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = eager(torch.tensor([tokens]), output_attentions=True).attentions
    table, strings = attribution.attention(tiny_hooked, TEXT, [(0, 1), (3, 2), (3, 0)])
    n = len(tokens)
    assert strings == [tiny_hooked.tokenizer.decode([token]) for token in tokens]
    assert len(table) == 3 * n * (n + 1) // 2
    assert (table["source"] <= table["destination"]).all()
    for (layer, head), rows in table.groupby(["layer", "head"]):
        found = np.zeros((n, n))
        found[rows["destination"], rows["source"]] = rows["weight"]
        np.testing.assert_allclose(found, expected[layer][0, head].numpy(), atol=REORDERED)
        np.testing.assert_allclose(found.sum(1), 1, atol=REORDERED)


@pytest.mark.parametrize("layer", [0, 2])
def test_projections_equal_the_plain_models(tiny_hf, tiny_hooked, tokens, layer):
    direction = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 3
    with torch.no_grad():
        states = tiny_hf[0](torch.tensor([tokens]), output_hidden_states=True).hidden_states[layer][0]
    table = attribution.projections(tiny_hooked, TEXT, direction, layer=layer)
    np.testing.assert_allclose(table["value"], (states @ direction / direction.norm()).numpy(), atol=REORDERED)
    assert table["index"].tolist() == list(range(len(tokens)))
    assert "".join(table["token"]) == tiny_hooked.tokenizer.decode(tokens)
