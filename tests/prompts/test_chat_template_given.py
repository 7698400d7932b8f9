"""A chat template in place of the model's own, as a base model needs one."""

import shutil
from pathlib import Path

import pytest

from mechrefusal import models, study
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import ChatSettings, end_of_turn_tokens, packaged_chat_templates, segments
from mechrefusal.study.loader import load_recipe, recipe_from_dict


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without a chat template."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("base") / "model")
    (folder / "chat_template.jinja").unlink()
    return folder


def test_a_base_model_is_asked_by_a_template_that_is_given(base: Path, tmp_path: Path) -> None:
    with pytest.raises(MechrefusalError, match="give one by chat_template"):
        models.load_tokenizer(base)
    tokenizer = models.load_tokenizer(base, told=ChatSettings.of(template="zephyr"))
    end = tokenizer.eos_token
    # The form that the tokenizer of HuggingFaceH4/zephyr-7b-beta renders.
    wanted = f"<|system|>\nBe kind{end}\n<|user|>\nHi{end}\n<|assistant|>\n"
    messages = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == wanted
    answered = [*messages, {"role": "assistant", "content": "Yes"}]
    assert tokenizer.apply_chat_template(answered, tokenize=False) == f"{wanted}Yes{end}\n"
    assert end_of_turn_tokens(tokenizer) == {tokenizer.eos_token_id}

    own = tmp_path / "own.jinja"
    text = "{% for one in messages %}[{{ one.role }}]{{ one.content + eos_token }}{% endfor %}"
    own.write_text(text + "{% if add_generation_prompt %}[assistant]{% endif %}", encoding="utf-8")
    checkpoint = models.Checkpoint.open(base, chat=ChatSettings.of(template=own))
    assert checkpoint.weights != models.Checkpoint.open(base).weights
    tokenizer = models.load_tokenizer(checkpoint)
    assert tokenizer.decode(segments(tokenizer, "Hi").before) == "[user]"


@pytest.mark.parametrize("name", packaged_chat_templates())
def test_every_packaged_template_marks_its_turns(base: Path, name: str) -> None:
    tokenizer = models.load_tokenizer(base, told=ChatSettings.of(template=name))
    parts = segments(tokenizer, "How do I boil an egg?", target="In water.")
    assert tokenizer.decode(parts.instruction).strip() == "How do I boil an egg?"
    assert parts.before
    assert parts.after
    assert end_of_turn_tokens(tokenizer)


def test_a_recipe_names_it(base: Path) -> None:
    recipe = recipe_from_dict(load_recipe("tiny").as_dict() | {"model": str(base), "chat_template": "zephyr"})
    study.check(recipe)
    with pytest.raises(MechrefusalError, match="no chat template"):
        study.check(recipe_from_dict(recipe.as_dict() | {"chat_template": ""}))


def test_what_is_no_template_is_said(tmp_path: Path) -> None:
    with pytest.raises(MechrefusalError, match="chat_template 'nowhere' is no file"):
        ChatSettings.of(template="nowhere")
    file = tmp_path / "one.jinja"
    for text, said in (("{% for %}", "is no Jinja, line 1"), ("hello", "does not write 'messages'")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(MechrefusalError, match=said):
            ChatSettings.of(template=file)
    file.write_bytes(b"\xff\xfe{{ messages }}")
    with pytest.raises(MechrefusalError, match="cannot be read"):
        ChatSettings.of(template=file)
