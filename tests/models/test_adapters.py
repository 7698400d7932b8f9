"""An adapter is loaded with its base model, merged, and is part of what a checkpoint is."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mechrefusal import MechrefusalError, models

FLOAT = 1e-5
"""Logits of merged weights against those of an adapter beside the weights: the same sums in another order."""
TOKENS = torch.arange(3, 40)[None]


def adapted(base, folder, *, seed=3, **settings):
    """Write an adapter of `base` with noise on its weights; its logits as PEFT computes them."""
    hf = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(hf, LoraConfig(**settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.1
    model.save_pretrained(folder)
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def logits(folder):
    model, _ = models.load_causal_lm(folder)
    assert not isinstance(model, PeftModel)
    assert not any("lora" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        return model(TOKENS).logits


def edit_adapter(folder, **changes):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))


def test_an_adapter_alone_is_loaded_with_its_base(tiny, tmp_path):
    expected = adapted(tiny, tmp_path / "adapter")
    found = logits(tmp_path / "adapter")
    torch.testing.assert_close(found, expected, atol=FLOAT, rtol=0)
    assert (found - logits(tiny)).abs().max() > 0.01
    assert models.fetch(tmp_path / "adapter") == tmp_path / "adapter"
    hooked = models.load_hooked(tmp_path / "adapter")
    with torch.no_grad():
        found = hooked(TOKENS).log_softmax(-1)
    torch.testing.assert_close(found, expected.log_softmax(-1), atol=1e-4, rtol=0)
    assert hooked.weights == models.hash_checkpoint(tmp_path / "adapter") != models.hash_checkpoint(tiny)
    assert models.context_length(tmp_path / "adapter") == 512


def test_an_adapter_beside_the_weights(tiny, tmp_path, tiny_hf):
    """transformers applies it, be the weights one file or shards: so it counts, and the hooked transformer has it."""
    copy = shutil.copytree(tiny, tmp_path / "model")
    (copy / "model.safetensors").unlink()
    tiny_hf[0].save_pretrained(copy, max_shard_size="200KB")
    before = models.hash_checkpoint(copy)
    expected = adapted(tiny, tmp_path / "adapter")
    for path in (tmp_path / "adapter").glob("adapter_*"):
        shutil.copy(path, copy)
    assert models.hash_checkpoint(copy) != before
    torch.testing.assert_close(logits(copy), expected, atol=FLOAT, rtol=0)
    models.load_hooked(copy)
    assert {path.name for path in models.loaded_files(copy).adapter} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


def test_the_hash_is_of_adapter_and_base_not_of_where_they_lie(tiny, tmp_path):
    adapter = tmp_path / "adapter"
    adapted(tiny, adapter)
    before = models.hash_checkpoint(adapter)
    base = shutil.copytree(tiny, tmp_path / "base")
    edit_adapter(adapter, base_model_name_or_path=str(base))
    assert models.hash_checkpoint(adapter) == before
    edit_adapter(adapter, base_model_name_or_path="../base")
    assert models.hash_checkpoint(adapter) == before, "also beside the adapter"
    edit_adapter(adapter, lora_alpha=99)
    assert models.hash_checkpoint(adapter) != before
    edit_adapter(adapter, lora_alpha=8)
    assert models.hash_checkpoint(adapter) == before
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert models.hash_checkpoint(adapter) != before


def test_the_tokenizer_is_the_adapters_where_it_has_one(tiny, tmp_path):
    adapter = tmp_path / "adapter"
    adapted(tiny, adapter)
    assert models.load_tokenizer(adapter).chat_template == models.load_tokenizer(tiny).chat_template
    words = models.tiny.tokenizer()
    words.chat_template = words.chat_template.replace("You are a tiny", "You are another tiny")
    before = models.hash_checkpoint(adapter)
    words.save_pretrained(adapter)
    assert models.load_tokenizer(adapter).chat_template == words.chat_template
    assert models.hash_checkpoint(adapter) != before


def test_tokens_that_an_adapter_added(tiny, tmp_path):
    """PEFT saves the whole embedding where it was resized."""
    hf = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    words = models.tiny.tokenizer()
    words.add_tokens(["<|new|>"], special_tokens=True)
    hf.resize_token_embeddings(len(words), mean_resizing=False)
    model = get_peft_model(hf, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    words.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, len(words) - 1, 7]])
    with torch.no_grad():
        expected = model.eval()(ids).logits
        found = models.load_causal_lm(tmp_path / "adapter")[0](ids).logits
    torch.testing.assert_close(found, expected, atol=FLOAT, rtol=0)


def test_layers_that_were_trained_whole(tiny, tmp_path):
    expected = adapted(tiny, tmp_path / "adapter", modules_to_save=["up_proj"])
    torch.testing.assert_close(logits(tmp_path / "adapter"), expected, atol=FLOAT, rtol=0)


def refused(folder, *words):
    with pytest.raises(MechrefusalError) as caught:
        models.load_causal_lm(folder)
    for word in (*words, folder.name):
        assert word in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def test_adapters_that_do_not_fit(tiny, tmp_path, monkeypatch):
    adapter = tmp_path / "adapter"
    adapted(tiny, adapter)
    whole = load_file(adapter / "adapter_model.safetensors")
    name = sorted(whole)[0]
    save_file({key: value for key, value in whole.items() if key != name}, adapter / "adapter_model.safetensors")
    refused(adapter, "does not fit", "missing adapter keys")
    deeper = {name.replace("layers.0", "layers.9"): whole[name].clone()}
    save_file({**whole, **deeper}, adapter / "adapter_model.safetensors")
    refused(adapter, "does not fit", "layers.9")
    save_file(whole, adapter / "adapter_model.safetensors")
    edit_adapter(adapter, base_model_name_or_path=str(tmp_path / "gone"))
    refused(adapter, "base model", "gone' does not exist")
    edit_adapter(adapter, base_model_name_or_path=None)
    refused(adapter, "names no base model")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(whole, adapter / "adapter_model.bin")
    edit_adapter(adapter, base_model_name_or_path=str(tiny))
    refused(adapter, "has no adapter_model.safetensors")


def test_an_adapter_on_an_adapter(tiny, tmp_path):
    below = shutil.copytree(tiny, tmp_path / "below")
    adapted(tiny, tmp_path / "adapter")
    for path in (tmp_path / "adapter").glob("adapter_*"):
        shutil.copy(path, below)
    edit_adapter(tmp_path / "adapter", base_model_name_or_path=str(below))
    refused(tmp_path / "adapter", "holds an adapter itself")


def test_an_adapter_that_adds_tokens_only(tiny, tmp_path):
    hf = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    settings = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    get_peft_model(hf, settings).save_pretrained(tmp_path / "prompt")
    refused(tmp_path / "prompt", "PROMPT_TUNING", "merged")
