"""The base model's own answers, as an assistant's message holds them."""

import pytest

from mechrefusal import MechrefusalError, models, prompts
from mechrefusal.evaluation import Completions
from mechrefusal.prompts import PromptSet
from mechrefusal.study import own_answers as module
from mechrefusal.study.own_answers import own_answers


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Bread is baked in an oven.", "Bread is baked in an oven."),
        (" Bread is baked ", " Bread is baked"),  # the template puts no space there: it is the model's
        ("\n\nBread", "\n\nBread"),
        ("<think>\nI can't help with that.\n</think>\n\nBread is baked", "Bread is baked"),
        ("<think>\nBread", None),
        ("   ", None),
    ],
)
def test_an_answer_is_kept_as_the_model_opened_it(tiny, tmp_path, monkeypatch, completion, answer):
    monkeypatch.setenv("MECHREFUSAL_CACHE", str(tmp_path))
    said = Completions((completion, "An apple."), ((1,), (2,)), (False, True))
    monkeypatch.setattr(module, "complete", lambda *_, **__: said)
    asked = PromptSet.from_texts("asked", ["How do I bake bread?", "Name a fruit."])
    found = own_answers(models.Checkpoint.open(tiny), asked, max_new_tokens=4)
    wanted = [] if answer is None else [{"prompt": asked.texts[0], "answer": answer, "finished": False}]
    assert found == [*wanted, {"prompt": asked.texts[1], "answer": "An apple.", "finished": True}]


def test_what_the_template_puts_before_an_answer_is_not_said_twice():
    assert module._answer(" Bread", " ") == "Bread"
    assert module._answer("  Bread", " ") == " Bread"
    assert module._answer("Bread", " ") == "Bread"  # decoders of SentencePiece drop it themselves


def test_answers_of_a_model_that_is_asked_otherwise_are_others(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MECHREFUSAL_CACHE", str(tmp_path))
    asked = PromptSet.from_texts("asked", ["How do I bake bread?"])
    base = models.Checkpoint.open(tiny)
    other = base.asked(prompts.ChatSettings.of(max_thought_tokens=3))
    assert other.weights != base.weights == models.Checkpoint.open(tiny, chat=prompts.ChatSettings()).weights
    assert models.Checkpoint.open(tiny, chat=other.chat) == other
    with pytest.raises(MechrefusalError, match=r"is asked with .* already"):
        other.asked(prompts.ChatSettings())
    for checkpoint in (base, other):
        own_answers(checkpoint, asked, max_new_tokens=2)
    assert len(list((tmp_path / "answers").iterdir())) == 2
