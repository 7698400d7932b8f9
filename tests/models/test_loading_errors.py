"""What a broken folder says: one line that names the thing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import is_flash_attn_2_available

from mechrefusal import MechrefusalError, models


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "model")


def refused(folder, *words, load=models.load_causal_lm):
    with pytest.raises(MechrefusalError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in (*words, folder.name):
        assert word in message, message


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("load", [models.load_causal_lm, models.load_hooked, models.Checkpoint.open])
def test_missing_folder(tmp_path, load):
    refused(tmp_path / "nowhere", "does not exist", load=load)


@pytest.mark.parametrize("load", [models.load_causal_lm, models.load_hooked, models.Checkpoint.open])
def test_a_file_is_not_a_folder(tmp_path, load):
    (tmp_path / "weights").write_text("")
    refused(tmp_path / "weights", "does not exist", load=load)


@pytest.mark.parametrize("load", [models.load_causal_lm, models.load_hooked, models.Checkpoint.open])
def test_no_config(copy, load):
    (copy / "config.json").unlink()
    refused(copy, "config.json", load=load)


@pytest.mark.parametrize("load", [models.load_causal_lm, models.load_hooked, models.Checkpoint.open])
def test_no_weights(copy, load):
    (copy / "model.safetensors").unlink()
    refused(copy, "no *.safetensors", load=load)


def test_pickled_weights_only(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    refused(copy, "pickled .bin")


@pytest.mark.parametrize("load", [models.load_causal_lm, models.load_hooked, models.Checkpoint.open])
@pytest.mark.parametrize("kept", [0, 5, 100, 10_000, -1])
def test_truncated_weights(copy, kept, load):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[:kept])
    refused(copy, "model.safetensors", "not whole", load=load)


def test_shard_that_the_index_names_is_missing(copy):
    weights = load_file(copy / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00002-of-00002.safetensors")}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "model.safetensors").unlink()
    refused(copy, "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_index_that_is_none(copy, content):
    (copy / "model.safetensors.index.json").write_text(content)
    (copy / "model.safetensors").unlink()
    refused(copy, "index")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite(copy, value):
    name = "model.layers.2.mlp.up_proj.weight"
    edit_weights(copy, lambda weights: weights[name].view(-1)[5].fill_(value))
    refused(copy, name)
    refused(copy, name, load=models.load_hooked)


def test_weight_that_is_missing(copy):
    edit_weights(copy, lambda weights: weights.pop("model.layers.2.mlp.up_proj.weight"))
    refused(copy, "model.layers.2.mlp.up_proj.weight")


def test_weight_of_another_shape(copy):
    edit_config(copy, intermediate_size=96)
    refused(copy, "12 tensors of another shape", "'model.layers.0.mlp.down_proj.weight' is (64, 128)", "(64, 96)")


@pytest.mark.parametrize("load", [models.load_causal_lm, models.load_hooked])
def test_fewer_layers_than_weights(copy, load):
    edit_config(copy, num_hidden_layers=3)
    refused(copy, "9 tensors", "'model.layers.3.input_layernorm.weight'", "num_hidden_layers", load=load)


def test_weights_of_another_architecture(family, tmp_path):
    folder = shutil.copytree(family("qwen3").folder, tmp_path / "qwen")
    edit_config(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    refused(folder, "8 tensors", "q_norm", "LlamaForCausalLM")


def test_buffers_that_older_releases_saved_are_no_weights(family, tmp_path):
    """GPT-J's causal masks, position ids and constants, and rotary frequencies, which transformers knows itself."""
    from transformers import GPTJConfig, GPTJForCausalLM

    words = models.tiny.tokenizer()
    config = GPTJConfig(vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, n_positions=512, rotary_dim=8)
    folder = tmp_path / "gptj"
    GPTJForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    old = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e9),
        "transformer.position_ids": torch.arange(8)[None],
    }
    edit_weights(folder, lambda weights: weights.update(old))
    models.load_causal_lm(folder)
    edit_weights(folder, lambda weights: weights.update({"transformer.h.0.attn.scale": torch.ones(8)}))
    refused(folder, "transformer.h.0.attn.scale")


def test_old_rotary_frequencies_are_no_weights(copy):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(copy, lambda weights: weights.update({name: torch.ones(8)}))
    models.load_causal_lm(copy)


@pytest.mark.parametrize("demanded", ["flash_attention_2", "flash_attention_3", "flex_attention", "kernels/own"])
def test_attention_that_is_not_there_is_not_part_of_the_weights(copy, tiny_hf, demanded):
    for key in ("attn_implementation", "_attn_implementation"):
        edit_config(copy, **{key: demanded})
        model, _ = models.load_causal_lm(copy)
        assert model.config._attn_implementation == tiny_hf[0].config._attn_implementation == "sdpa"


@pytest.mark.parametrize("demanded", ["deepgemm", "kernels/own"])
def test_experts_that_are_computed_otherwise(tmp_path, demanded):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    words, folder = models.tiny.tokenizer(), tmp_path / "experts"
    sizes = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = Qwen3MoeConfig(vocab_size=len(words), num_experts=4, num_experts_per_tok=2, **sizes, **heads)
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = models.load_causal_lm(folder)[0](ids).logits
        edit_config(folder, experts_implementation=demanded)
        found = models.load_causal_lm(folder)[0](ids).logits
    torch.testing.assert_close(found, expected)


def test_attention_that_is_asked_for(copy):
    edit_config(copy, attn_implementation="eager")
    assert models.load_causal_lm(copy)[0].config._attn_implementation == "eager"
    model, _ = models.load_causal_lm(copy, attention="sdpa")
    assert model.config._attn_implementation == "sdpa"
    if not is_flash_attn_2_available():
        with pytest.raises(MechrefusalError, match=r"install what attention 'flash_attention_2' needs"):
            models.load_causal_lm(copy, attention="flash_attention_2")


QUANTISED = {
    "bitsandbytes": {"load_in_4bit": True, "quant_method": "bitsandbytes"},
    "gptq": {"bits": 4, "group_size": 128, "quant_method": "gptq"},
    "awq": {"bits": 4, "group_size": 128, "quant_method": "awq", "version": "gemm", "zero_point": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}},
}


@pytest.mark.parametrize("method", QUANTISED)
@pytest.mark.parametrize("load", [models.load_causal_lm, models.load_hooked])
def test_quantised_weights(copy, load, method):
    edit_config(copy, quantization_config=QUANTISED[method])
    refused(copy, "quantised", f"'{method}'", "dequantize", load=load)


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_weights_of_a_judge_need_their_package(copy, method):
    edit_config(copy, quantization_config=QUANTISED[method])
    refused(copy, f"'{method}'", "pip install", load=lambda folder: models.load_causal_lm(folder, quantised=True))


def test_a_config_that_says_it_is_not_quantised(copy):
    edit_config(copy, quantization_config=None)
    models.load_causal_lm(copy)


def test_no_chat_template(copy):
    (copy / "chat_template.jinja").unlink()
    refused(copy, "chat template")
    refused(copy, "chat template", load=models.load_hooked)
    models.load_causal_lm(copy, chat=False)


def test_no_tokenizer(copy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    refused(copy, "tokenizer")


def test_unknown_architecture(copy):
    edit_config(copy, model_type="nosuchmodel", architectures=["NoSuchModelForCausalLM"])
    refused(copy, "nosuchmodel")


def test_architecture_that_writes_no_text(copy):
    edit_config(copy, model_type="vit", architectures=["ViTModel"])
    refused(copy)


def test_config_that_is_no_json(copy):
    (copy / "config.json").write_text("{")
    refused(copy)


def test_code_in_the_checkpoint_is_never_run(copy, tmp_path):
    mark = tmp_path / "ran"
    (copy / "modeling_own.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    edit_config(
        copy,
        model_type="own",
        auto_map={"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"},
    )
    refused(copy)
    assert not mark.exists()


def test_pad_token_is_the_end_token_where_there_is_none(copy):
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = models.load_tokenizer(copy)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_neither_pad_nor_end_token(copy):
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    config.pop("eos_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    refused(copy, "pad")
