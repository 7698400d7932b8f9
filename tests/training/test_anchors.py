"""Whatever could keep an anchor from being written is found before the first step."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from test_arms import SETTINGS, weights
from transformers import AutoModelForCausalLM, GenerationConfig

from mechrefusal import MechrefusalError, models, prompts, training
from mechrefusal.models.small import small_config, small_model
from mechrefusal.training import adapters, anchors, callbacks
from mechrefusal.training.trainer import ArmTrainer

pytestmark = pytest.mark.slow

SHORT = replace(SETTINGS, steps=2, anchors=(0, 2), n_probe=0)
SAMPLED = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.6, "top_p": 0.9, "max_length": 400}
"""As Llama 2's chat models have it: settings of sampling, and not the word that they are to be used."""


@pytest.fixture
def base(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "base")


def train(base, out, **changed):
    built = prompts.builtin()
    return training.train(
        "sft",
        base=models.Checkpoint.open(base),
        utility=[{"prompt": text, "answer": "Of course, here it is."} for text in built.utility_train.texts[:6]],
        behaviours=built.pool.harmful.with_targets()[:5],
        out=out,
        settings=replace(SHORT, **changed),
    )


@pytest.fixture
def no_step(monkeypatch):
    monkeypatch.setattr(ArmTrainer, "training_step", lambda *_, **__: pytest.fail("a step was made"))


@pytest.mark.parametrize(
    "said",
    [
        SAMPLED,
        {**SAMPLED, "do_sample": True},
        {**SAMPLED, "pad_token_id": -1},
        {"eos_token_id": 2, "length_penalty": 2.0, "early_stopping": True},
    ],
)
def test_settings_of_sampling_do_not_cost_the_training(base, tmp_path, said):
    """Anchors have the base's generation config as it stands; answers are greedy all the same."""
    (base / "generation_config.json").write_text(json.dumps(said))
    train(base, tmp_path / "out", save_every=1)
    anchor = tmp_path / "out" / "step-00002"
    assert json.loads((anchor / "generation_config.json").read_text()) == said
    model, tokenizer = models.load_causal_lm(anchor)
    ids = torch.tensor([prompts.segments(tokenizer, "What is a lamp?").prompt_ids])
    if not said.get("do_sample"):
        both = [model.generate(ids, max_new_tokens=5, pad_token_id=0) for _ in range(2)]
        assert torch.equal(*both)
        assert both[0][0, ids.shape[1]] == model(ids).logits[0, -1].argmax()
    model.generation_config.eos_token_id = [2, 3]  # as a trainer changes it
    model.save_pretrained(tmp_path / "again")


def test_settings_of_sampling_in_the_config_of_the_model(base, tmp_path):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "temperature": 0.7, "max_length": 300}))
    (base / "generation_config.json").unlink()
    train(base, tmp_path / "out")
    for folder in (base, tmp_path / "out" / "step-00002"):
        model, _ = models.load_causal_lm(folder)
        model.generation_config.eos_token_id = [2, 3]
        model.save_pretrained(tmp_path / "again")


def test_what_fails_when_an_anchor_is_written_fails_before_a_step(base, tmp_path, monkeypatch, no_step):
    def failing(*_, **__):
        raise ValueError("GenerationConfig is invalid")

    monkeypatch.setattr(GenerationConfig, "save_pretrained", failing)
    with pytest.raises(MechrefusalError, match=r"no step is made.*GenerationConfig is invalid"):
        train(base, tmp_path / "out")
    assert not list((tmp_path / "out").glob("step-*"))
    assert not list((tmp_path / "out").glob(".mechrefusal-draft*"))


def test_what_could_not_be_opened_again_fails_before_a_step(base, tmp_path, monkeypatch, no_step):
    write = anchors._write

    def without_a_tensor(model, tokenizer, folder, *how):
        write(model, tokenizer, folder, *how)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))

    monkeypatch.setattr(anchors, "_write", without_a_tensor)
    with pytest.raises(MechrefusalError, match=r"no step is made.*does not use"):
        train(base, tmp_path / "out")


def test_a_disk_that_does_not_hold_the_anchors(base, tmp_path, monkeypatch, no_step):
    size = (base / "model.safetensors").stat().st_size
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(anchors.shutil, "disk_usage", lambda _: usage(1 << 40, 0, int(1.5 * size)))
    with pytest.raises(MechrefusalError, match=r"2 anchors of .* GiB each do not fit"):
        train(base, tmp_path / "out", anchors=(0, 1, 2))


def test_an_anchor_is_tried_once_and_only_where_one_is_written(base, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(callbacks, "require_anchors", lambda *_, n_anchors, **__: tried.append(n_anchors))
    train(base, tmp_path / "out", anchors=(0, 1, 2))
    train(base, tmp_path / "none", anchors=(0,))
    assert tried == [2]


def test_trying_changes_nothing(base, tmp_path, monkeypatch):
    train(base, tmp_path / "tried")
    monkeypatch.setattr(callbacks, "require_anchors", lambda *_, **__: None)
    train(base, tmp_path / "not")
    a, b = (weights(tmp_path / name / "step-00002") for name in ("tried", "not"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_adapter_is_trained_like_the_model_that_it_makes(base, tmp_path):
    from peft import LoraConfig, get_peft_model

    hf = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(hf, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight += 0.1
    adapted.save_pretrained(tmp_path / "adapter")
    train(tmp_path / "adapter", tmp_path / "out")
    merged = shutil.copytree(base, tmp_path / "merged")
    models.load_causal_lm(tmp_path / "adapter")[0].save_pretrained(merged)
    train(merged, tmp_path / "expected")
    found, expected = (weights(tmp_path / name / "step-00002") for name in ("out", "expected"))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    # Adapters that are trained on it are merged into it: none can be opened on another.
    train(tmp_path / "adapter", tmp_path / "two", lora=training.LoraSettings(rank=2), learning_rate=1e-2)
    found, before = weights(tmp_path / "two" / "step-00002"), weights(merged)
    assert found.keys() == before.keys()
    changed = {name for name in before if not torch.equal(found[name], before[name])}
    assert changed
    assert all("proj" in name for name in changed)


@pytest.mark.parametrize(
    ("kind", "targets"), [("GPT2", "all-linear"), ("Mixtral", "all-linear"), ("Llama", ["q_proj", "down_proj"])]
)
def test_an_adapter_is_merged_as_it_is_opened(tmp_path, kind, targets):
    """Layers that are transposed (GPT-2), experts, and a layer that is trained whole."""
    from peft import LoraConfig, get_peft_model

    words, base = models.tiny.tokenizer(), tmp_path / "base"
    small_model(small_config(getattr(transformers, f"{kind}Config")(), len(words))).to(torch.bfloat16).save_pretrained(
        base
    )
    words.save_pretrained(base)
    whole = ["up_proj"] if kind == "Llama" else None
    settings = LoraConfig(r=2, target_modules=targets, modules_to_save=whole, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.1
    folders = [
        anchors.save_anchor(model, words, tmp_path / "arm" / f"step-0000{step}", base=base, merged=bool(step))
        for step in (0, 1)
    ]
    assert [(folder / "config.json").is_file() for folder in folders] == [False, True]
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        torch.testing.assert_close(models.load_causal_lm(folders[0])[0](ids).logits, expected, atol=2e-5, rtol=0)
        untrained = models.load_causal_lm(base)[0](ids).logits
    assert (untrained - expected).abs().max() > 0.01
    for dtype in ("float32", "bfloat16"):
        adapted, merged = (models.load_causal_lm(folder, dtype=dtype)[0].state_dict() for folder in folders)
        assert adapted.keys() == merged.keys()
        # The sum alone is rounded; of experts PEFT rounds factors, product and sum, each by 2^-9 of their size.
        rounded = 4 * 2**-9 if (dtype, kind) == ("bfloat16", "Mixtral") else 0
        for name in merged:
            torch.testing.assert_close(adapted[name], merged[name], atol=rounded, rtol=rounded)
    assert models.Checkpoint.open(folders[0]).weights != models.Checkpoint.open(folders[1]).weights


def test_how_an_adapter_names_its_base(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHREFUSAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    run, commit = tmp_path / "run", "0123abcd"
    for base, expected in {
        tmp_path / "cache/models/smollm2-135m-instruct": ("smollm2-135m-instruct", None),
        tmp_path / f"hub/models--owner--name-1/snapshots/{commit}": ("owner/name-1", commit),
        run / "warm-up/step-00060": ("../../warm-up/step-00060", None),
        tmp_path / "base": (str(tmp_path / "base"), None),
        run / "base": (str(run / "base"), None),
    }.items():
        assert adapters.name_of_base(base, run / "sft" / "step-00080") == expected
    monkeypatch.chdir(tmp_path)
    assert adapters.name_of_base(Path("base"), Path("run/sft/step-00080")) == (str(tmp_path / "base"), None)
