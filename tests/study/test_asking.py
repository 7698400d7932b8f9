"""How a model is asked: the recipe's and the commands' keys reach every rendering, and what is trained keeps them."""

import shutil

import pytest
import yaml
from chat_templates import QWEN3

from mechrefusal import MechrefusalError, models, prompts, study
from mechrefusal.cli import main
from mechrefusal.prompts import ChatSettings
from mechrefusal.study.loader import load_recipe, recipe_from_dict
from mechrefusal.study.run import Run
from mechrefusal.training.anchors import save_anchor

OFF = {"enable_thinking": False}
CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def thinker(tiny, tmp_path_factory):
    """The tiny model with a template that lets it think unless it is told not to."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("thinker") / "model")
    (folder / "chat_template.jinja").write_text(QWEN3, encoding="utf-8")
    assert models.load_tokenizer(folder).chat_template == QWEN3
    return folder


def asks(tokenizer) -> str:
    return tokenizer.decode(prompts.segments(tokenizer, "hello").after)


def test_the_recipe_says_how_to_ask(thinker, tmp_path):
    told = {"model": str(thinker), "chat_template_kwargs": OFF, "max_thought_tokens": 30}
    recipe = recipe_from_dict(load_recipe("tiny").as_dict() | told)
    assert recipe.chat == ChatSettings.of(OFF, 30)
    assert recipe_from_dict(yaml.safe_load(yaml.safe_dump(recipe.as_dict()))) == recipe
    assert recipe_from_dict({}).chat == ChatSettings()
    study.check(recipe)

    run = Run.create(tmp_path / "run", recipe)
    run.record(models.Checkpoint.open(thinker, chat=recipe.chat))
    base = Run.open(tmp_path / "run").checkpoint("base", step=0)
    assert base.chat == recipe.chat
    assert base.weights != models.Checkpoint.open(thinker).weights
    with pytest.raises(MechrefusalError, match="differ in chat_template_kwargs"):
        Run.create(tmp_path / "run", recipe_from_dict(recipe.as_dict() | {"chat_template_kwargs": {}}))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"chat_template_kwargs": {"messages": []}}, "cannot hold 'messages'"),
        ({"chat_template_kwargs": "thinking"}, "chat_template_kwargs"),
        ({"max_thought_tokens": -1}, "max_thought_tokens is -1"),
    ],
)
def test_what_cannot_be_told_is_said_with_the_recipe(told, said):
    with pytest.raises(MechrefusalError, match=said):
        recipe_from_dict(told)


def test_a_recipe_for_another_template_is_refused_before_training():
    recipe = recipe_from_dict(load_recipe("tiny").as_dict() | {"chat_template_kwargs": OFF})
    with pytest.raises(MechrefusalError, match="knows no 'enable_thinking'"):
        study.check(recipe)


def test_a_model_whose_answers_have_no_end_is_refused_before_training(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "endless")
    (folder / "chat_template.jinja").write_text(
        "{% for one in messages %}{{ one.role + ': ' + one.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
        encoding="utf-8",
    )
    with pytest.raises(MechrefusalError, match=r"endless' writes no special token after an answer"):
        study.check(recipe_from_dict(load_recipe("tiny").as_dict() | {"model": str(folder)}))


def test_every_way_to_load_a_checkpoint_asks_alike_and_anchors_keep_it(thinker, tmp_path):
    checkpoint = models.Checkpoint.open(thinker, chat=ChatSettings.of(OFF))
    model, tokenizer = models.load_causal_lm(checkpoint)
    assert asks(tokenizer).endswith(CLOSED)
    for other in (models.load_tokenizer(checkpoint), models.load_hooked(checkpoint).tokenizer):
        assert asks(other) == asks(tokenizer)
    assert not asks(models.load_tokenizer(thinker)).endswith(CLOSED)
    anchor = save_anchor(model, tokenizer, tmp_path / "step-00001", base=thinker)
    assert asks(models.load_tokenizer(anchor)) == asks(tokenizer)
    again = models.Checkpoint.open(anchor, chat=checkpoint.chat)
    assert models.load_tokenizer(again).chat_template == tokenizer.chat_template


def test_the_commands_take_it_too(thinker, tmp_path, capsys):
    asked = tmp_path / "asked.txt"
    asked.write_text("Tell me how to bake bread.\n", encoding="utf-8")
    words = ["ablate", str(thinker), "--direction", "random", "--prompts", str(asked), "--max_new_tokens", "3"]
    told = ["--chat_template_kwargs", '{"enable_thinking": false}', "--max_thought_tokens", "5"]
    weights = []
    for given in ([], told, told[2:]):
        out = tmp_path / f"{len(weights)}.csv"
        assert main([*words, "--out", str(out), *given]) == 0
        weights.append(out.read_text(encoding="utf-8").splitlines()[1].split(",")[-1])
    assert len(set(weights)) == 3, "answers of a model that is asked otherwise carry another hash"
    capsys.readouterr()
    assert main([*words, "--chat_template_kwargs", '{"think": false}']) == 2
    assert "knows no 'think'" in capsys.readouterr().err


def test_a_study_is_told_from_the_command_line(thinker, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["run", "--recipe", "tiny", "--out", str(out), "--chat_template_kwargs", '{"enable_thinking": false}']
    assert main(words) == 2
    assert "knows no 'enable_thinking'" in capsys.readouterr().err
    # The tiny model's context of 512 tokens has no room for thoughts of as many; where it does not think there is room.
    tokenizer = models.load_tokenizer(thinker)
    tokenizer.add_tokens(["<think>", "</think>"])
    asked = prompts.PromptSet.from_texts("asked", ["Tell me how to bake bread."])
    with pytest.raises(MechrefusalError, match=r"no room for 522 more tokens.*ask for shorter answers or thoughts"):
        prompts.require_room(tokenizer, asked, limit=512, spare=prompts.answer_room(tokenizer, 10), what="the context")
    ChatSettings.of(OFF).apply(tokenizer)
    prompts.require_room(tokenizer, asked, limit=512, spare=prompts.answer_room(tokenizer, 10), what="the context")
    assert not out.exists()
