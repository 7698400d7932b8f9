"""Every token that a text may hold has a row in the embedding."""

import json
import shutil

import pytest
import torch

from mechrefusal import MechrefusalError, models
from mechrefusal.models import vocabulary


@pytest.fixture
def folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary.console, "print", lambda text, **_: said.append(text))
    said.clear()
    vocabulary._say_once.cache_clear()
    return shutil.copytree(tiny, tmp_path / "model")


said: list[str] = []


def add(folder, token, **roles):
    words = models.tiny.tokenizer()
    words.add_tokens([token], special_tokens=True)
    for role, value in roles.items():
        setattr(words, role, value)
    words.save_pretrained(folder)
    return words.convert_tokens_to_ids(token)


def test_a_pad_token_that_was_added_and_never_resized(folder, tiny):
    """The rows of a batch are padded with the end token instead, and it says so."""
    added = add(folder, "[PAD]", pad_token="[PAD]")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, "pad_token_id": added}))
    model, tokenizer = models.load_causal_lm(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id < model.get_input_embeddings().weight.shape[0]
    assert [text for text in said if "'[PAD]'" in text and f"id {added}" in text and str(added) in text] == said != []
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    batch = models.TokenBatch.of(prompts, pad=tokenizer.pad_token_id, device="cpu")
    plain, words = models.load_causal_lm(tiny)
    expected = models.last_logits(plain, models.TokenBatch.of(prompts, pad=words.pad_token_id, device="cpu"))
    torch.testing.assert_close(models.last_logits(model, batch), expected)
    hooked = models.load_hooked(folder)
    assert hooked.tokenizer.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("load", [models.load_causal_lm, models.load_hooked, models.load_tokenizer])
def test_an_end_token_without_a_row(folder, load):
    added = add(folder, "<|stop|>", eos_token="<|stop|>")
    with pytest.raises(MechrefusalError, match=rf"'<\|stop\|>' \(id {added}\)") as caught:
        load(folder)
    assert f"embedding of {added} rows" in str(caught.value)
    assert folder.name in str(caught.value)


def test_a_token_of_the_chat_template_without_a_row(folder):
    add(folder, "<|turn|>")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|turn|>"))
    with pytest.raises(MechrefusalError, match=r"'<\|turn\|>'"):
        models.load_causal_lm(folder)


def test_the_tokenizer_of_another_model(folder):
    models.tiny.tokenizer(1500).save_pretrained(folder)
    with pytest.raises(MechrefusalError, match="476 tokens of the tokenizer"):
        models.load_causal_lm(folder)


@pytest.mark.parametrize("load", [models.load_causal_lm, models.load_hooked])
def test_a_token_that_no_text_needs(folder, load):
    """As Gemma 3's image token. A text that holds it all the same is refused by its name."""
    added = add(folder, "<image>")
    found = load(folder)
    model, tokenizer = found if isinstance(found, tuple) else (found, found.tokenizer)
    assert not said
    with torch.no_grad():
        model(torch.tensor([[3, 4, 5]]))
    with pytest.raises(MechrefusalError, match=rf"'<image>' \(id {added}\)"), torch.no_grad():
        model(torch.tensor([tokenizer("look at <image>")["input_ids"]]))
