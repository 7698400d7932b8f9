"""A checkpoint is everything that is loaded from its folder."""

import hashlib
import importlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mechrefusal import MechrefusalError, models
from mechrefusal.models import Checkpoint, checkpoint, model_files


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


def edit_json(path, **changes):
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **changes}))


def edit_weights(path):
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name].view(-1)[3] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})


def test_hash_is_that_of_the_files(tiny):
    """Computed here file by file, config files without what they say of their origin."""
    lines = []
    for name in ("config.json", "generation_config.json"):
        said = json.loads((tiny / name).read_text())
        said.pop("transformers_version")
        lines.append((f"model/{name}", json.dumps(said, sort_keys=True).encode()))
    lines.append(("model/model.safetensors", (tiny / "model.safetensors").read_bytes()))
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        content = (tiny / name).read_bytes()
        if name == "tokenizer_config.json":
            content = json.dumps(json.loads(content), sort_keys=True).encode()
        lines.append((f"tokenizer/{name}", content))
    text = "".join(f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in lines)
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert models.hash_checkpoint(tiny) == Checkpoint.open(tiny).weights == expected


def test_copies_have_the_same_hash(tiny, copy):
    (copy / "notes.txt").write_text("something else in the folder")
    (copy / "trainer_state.json").write_text("{}")
    (copy / "consolidated.safetensors").write_bytes(b"never loaded")
    assert models.hash_checkpoint(copy) == models.hash_checkpoint(str(tiny))


def test_made_again_with_the_same_seed(tiny, tmp_path):
    assert models.hash_checkpoint(models.tiny.make(tmp_path / "again")) == models.hash_checkpoint(tiny)
    assert models.hash_checkpoint(models.tiny.make(tmp_path / "other", seed=1)) != models.hash_checkpoint(tiny)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit_weights(folder / "model.safetensors"),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}"),
        lambda folder: edit_json(folder / "config.json", rms_norm_eps=1e-3),
        lambda folder: edit_json(folder / "config.json", rope_parameters={"rope_theta": 5e3, "rope_type": "default"}),
        lambda folder: edit_json(folder / "generation_config.json", eos_token_id=[2, 5]),
        lambda folder: (folder / "generation_config.json").unlink(),
        lambda folder: edit_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>"),
        lambda folder: (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " "),
        lambda folder: edit_json(folder / "special_tokens_map.json", eos_token="<|endoftext|>"),
        lambda folder: (folder / "vocab.json").write_text("{}"),
        lambda folder: (folder / "tokenizer.model").write_bytes(b"\0"),
    ],
)
def test_what_is_loaded_changes_the_hash(tiny, copy, change):
    change(copy)
    assert models.hash_checkpoint(copy) != models.hash_checkpoint(tiny)


def test_templates_in_their_own_folder_count(copy):
    before = models.hash_checkpoint(copy)
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    assert models.hash_checkpoint(copy) != before


def test_origin_and_layout_of_config_files_do_not_count(tiny, copy):
    edit_json(copy / "config.json", transformers_version="4.40.1", _name_or_path="/somewhere/else")
    edit_json(copy / "tokenizer_config.json", name_or_path="/somewhere/else")
    text = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(dict(reversed(text.items())), indent=7))
    assert models.hash_checkpoint(copy) == models.hash_checkpoint(tiny)


def test_a_file_is_read_once_until_it_changes(tiny, copy, monkeypatch):
    long_ago = 1_600_000_000
    monkeypatch.setattr(checkpoint.time, "time", lambda: 2e9 + 1e9)  # as if the files had been there for long
    before, read = models.hash_checkpoint(copy), []
    compute = checkpoint._sha256
    monkeypatch.setattr(checkpoint, "_sha256", lambda path: read.append(path.name) or compute(path))
    assert models.hash_checkpoint(copy) == before
    assert not read
    edit_weights(copy / "model.safetensors")
    os.utime(copy / "model.safetensors", (long_ago, long_ago))
    assert models.hash_checkpoint(copy) != before
    assert read == ["model.safetensors"]


def test_shards_all_count(tiny, copy, tiny_hf):
    model, _ = tiny_hf
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="200KB")
    shards = sorted(copy.glob("model-*.safetensors"))
    assert len(shards) > 1
    before = models.hash_checkpoint(copy)
    assert [*models.loaded_files(copy).weights] == shards
    edit_weights(shards[-1])
    assert models.hash_checkpoint(copy) != before
    shards[0].unlink()
    with pytest.raises(MechrefusalError, match=shards[0].name):
        models.hash_checkpoint(copy)


def test_one_file_goes_before_the_index(tiny, copy, tiny_hf):
    """As transformers has it: the shards beside are not loaded, and so they do not count."""
    model, _ = tiny_hf
    with torch.no_grad():
        shards = copy / "shards"
        model.save_pretrained(shards, max_shard_size="200KB")
    edit_weights(sorted(shards.glob("*.safetensors"))[0])
    for path in shards.glob("model*"):
        shutil.copy(path, copy)
    assert [path.name for path in models.loaded_files(copy).weights] == ["model.safetensors"]
    assert models.hash_checkpoint(copy) == models.hash_checkpoint(tiny)
    loaded, _ = models.load_causal_lm(copy)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_weights_under_the_name_that_the_config_gives(tiny, copy):
    weights = copy / "model.safetensors"
    edit_weights(shutil.copy(weights, copy / "other.safetensors"))
    edit_json(copy / "config.json", transformers_weights="other.safetensors")
    assert [path.name for path in models.loaded_files(copy).weights] == ["other.safetensors"]
    stored, loaded = load_file(copy / "other.safetensors"), models.load_causal_lm(copy)[0].state_dict()
    name = sorted(stored)[0]
    assert torch.equal(loaded[name], stored[name])
    edit_json(copy / "config.json", transformers_weights="../other.safetensors")
    with pytest.raises(MechrefusalError, match="outside of the folder"):
        models.loaded_files(copy)


def test_weights_under_names_that_are_not_loaded(copy):
    (copy / "model.safetensors").rename(copy / "weights.safetensors")
    with pytest.raises(MechrefusalError, match=r"no \*.safetensors weights .*weights\.safetensors would not be loaded"):
        models.loaded_files(copy)
    (copy / "weights.safetensors").rename(copy / "shard-00001-model-00001-of-00002.safetensors")
    with pytest.raises(MechrefusalError, match="distributed checkpoint"):
        models.loaded_files(copy)


def test_size_is_that_of_the_weights(tiny):
    assert Checkpoint.open(tiny).n_bytes == (tiny / "model.safetensors").stat().st_size


def test_vocabularies_of_all_tokenizers_are_known(tmp_path):
    """Every file that a tokenizer of transformers is read from has a name that is looked for."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
    from transformers.utils import is_sentencepiece_available, is_tokenizers_available

    assert is_tokenizers_available() or is_sentencepiece_available()
    names = set()
    for kind in TOKENIZER_MAPPING_NAMES:
        for module in (f"transformers.models.{kind}.tokenization_{kind}", f"transformers.models.{kind}"):
            try:
                found = importlib.import_module(module)
            except Exception:
                continue
            names |= set(getattr(found, "VOCAB_FILES_NAMES", {}).values())
    assert len(names) > 10
    for name in names:
        (tmp_path / name).write_text("")
    listed = {path.name for pattern in model_files.TOKENIZER_FILES for path in tmp_path.glob(pattern)}
    assert listed == names


def test_id(tiny):
    assert Checkpoint.open(tiny).id == "base-step-00000"
    assert Checkpoint.open(tiny, arm="sft", step=50).id == "sft-step-00050"
    assert Checkpoint("r2d2", 123456, tiny, "").id == "r2d2-step-123456"
