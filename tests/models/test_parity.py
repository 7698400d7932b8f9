"""Rule 1: the hooked transformer's log-probabilities are the Hugging Face model's."""

import pytest
import torch
from architectures import FAMILIES
from tolerances import COMPOUND, FORWARD

from mechrefusal import MechrefusalError, models
from mechrefusal.models import library_output, loading


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_at_every_position(family, name):
    model = family(name)
    token_ids = torch.randint(3, model.hf.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model.hf(token_ids).logits.log_softmax(-1)
        found = model.hooked(token_ids).log_softmax(-1)
    assert expected.std() > 0.1, "a flat distribution would agree with anything"
    torch.testing.assert_close(found, expected, atol=2 * FORWARD, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_those_of_the_default_compatibility_mode(family, name):
    from transformer_lens.model_bridge import TransformerBridge

    model = family(name)
    plain, tokenizer = models.load_causal_lm(model.folder)
    with library_output.quiet():
        default = TransformerBridge.boot_transformers(str(model.folder), hf_model=plain, tokenizer=tokenizer)
        default.enable_compatibility_mode(disable_warnings=True)
    found, expected = model.hooked.state_dict(), default.state_dict()
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        assert torch.equal(found[key], weight), key


def test_the_families_are_what_their_names_say(family):
    assert family("llama").hf.config.num_key_value_heads == 2
    assert family("llama").hf.lm_head.weight is family("llama").hf.model.embed_tokens.weight
    assert family("llama-untied").hf.lm_head.weight is not family("llama-untied").hf.model.embed_tokens.weight
    assert family("gemma2").hf.config.final_logit_softcapping == 3.0
    norm = family("gpt-neox").hf.gpt_neox.layers[1].input_layernorm
    assert norm.weight.std() > 0.05
    assert norm.bias.std() > 0.05


def test_hooked_model_is_ready_to_measure(tiny, tiny_hooked):
    assert tiny_hooked.weights == models.Checkpoint.open(tiny).weights
    assert not tiny_hooked.training
    assert not any(weight.requires_grad for weight in tiny_hooked.parameters())
    assert tiny_hooked.tokenizer.padding_side == "left"
    assert tiny_hooked.cfg.dtype == torch.float32
    assert (tiny_hooked.cfg.n_layers, tiny_hooked.cfg.d_model, tiny_hooked.cfg.n_heads) == (4, 64, 4)


def test_a_model_that_differs_is_refused_with_the_difference(tiny, monkeypatch):
    monkeypatch.setattr(loading, "PARITY_TOLERANCE", -1.0)
    with pytest.raises(MechrefusalError, match=r"nats .*Hugging Face model"):
        models.load_hooked(tiny)


def test_hugging_face_weights_are_those_of_the_folder(tiny, tiny_hf):
    from safetensors.torch import load_file

    model, tokenizer = tiny_hf
    saved = load_file(tiny / "model.safetensors")
    for name, weight in saved.items():
        assert torch.equal(model.get_parameter(name), weight), name
    assert not model.training
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id is not None


@pytest.mark.slow
def test_real_model(smollm2):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    hooked = models.load_hooked(smollm2)
    prompt = hooked.tokenizer.apply_chat_template(
        [{"role": "user", "content": "How do I bake bread?"}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        expected = plain(torch.tensor([prompt])).logits.log_softmax(-1)
        found = hooked(torch.tensor([prompt])).log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=COMPOUND, rtol=0)
    assert (plain.config.num_hidden_layers, plain.config.hidden_size) == (30, 576)
    assert (plain.config.num_attention_heads, plain.config.num_key_value_heads) == (9, 3)
