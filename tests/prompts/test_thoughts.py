"""Thoughts in completions, and settings that chat templates are given."""

from collections.abc import Callable

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import ChatSettings, after_thought, texts_of
from mechrefusal.prompts.thoughts import thought_at_end

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Sure, here.", "Sure, here."),
        (" Sure", " Sure"),
        ("", ""),
        ("<think>\nI must refuse.\n</think>\n\nSure, here.", "Sure, here."),
        ("\n<think></think>Sure", "Sure"),
        ("<think>a</think>\n<think>b</think>\nSure", "Sure"),
        ("[THINK]a[/THINK]Sure", "Sure"),
        ("<seed:think>a</seed:think>Sure", "Sure"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Sure", "Sure"),
        ("<|channel|>final<|message|>Sure", "Sure"),
        ("<|channel|>analysis<|message|>a", None),
        ("I must see.\n</think>\n\nSure", "Sure"),  # the prompt had opened it
        ("<think>\nI must", None),
        ("<think>a</think><think>b", None),
        ("<think>a</think>", ""),
        ("<think>one writes `</think>` at the end</think>Sure", "Sure"),
        ("The mark `</think>` closes a thought.", "The mark `</think>` closes a thought."),
        ("I write <think> before I think, </think> after.", "I write <think> before I think, </think> after."),
    ],
)
def test_the_answer_is_what_follows_the_thought(completion: str, answer: str | None) -> None:
    assert after_thought(completion) == answer


def test_many_thoughts_are_read_one_after_another() -> None:
    assert after_thought("<think></think>" * 3000 + "Sure") == "Sure"
    assert after_thought("a" + "</think>" * 3000) == "</think>" * 2999


def test_the_thought_at_the_end_of_a_prompt() -> None:
    assert thought_at_end("user<think>\n") == ("user", "\n</think>\n\n")
    assert thought_at_end("user<think>") == ("user", "\n\n</think>\n\n")
    assert thought_at_end("user<think>\n\n</think>\n\n") == ("user", "")
    assert thought_at_end("user</think>") == ("user", "")
    assert thought_at_end("a <think> b") == ("a <think> b", "")


@pytest.mark.parametrize("special", [True, False])
def test_the_text_of_a_completion_keeps_the_marks_of_thoughts(make_tokenizer: MakeTokenizer, *, special: bool) -> None:
    tokenizer = make_tokenizer("chatml")
    ids = tokenizer("<s>Sure, here<|im_end|>", add_special_tokens=False).input_ids
    assert texts_of(tokenizer, [ids, []]) == ["Sure, here", ""]
    tokenizer.add_tokens(
        [AddedToken(mark, special=special) for mark in ("<think>", "</think>")], special_tokens=special
    )
    ids = tokenizer("<s><think>I see</think>Sure<|im_end|>", add_special_tokens=False).input_ids
    assert texts_of(tokenizer, [ids]) == ["<think>I see</think>Sure"]


def test_what_a_template_is_told_is_part_of_it(make_tokenizer: MakeTokenizer) -> None:
    body = (
        "\n{{ '[' + (style | default('-')) + ('|on' if think is not defined or think else '|off') + ']' }}"
        "{% macro mark() %}{{ think }}{% endmacro %}{{ mark() }}"
        "{% for one in messages %}{{ one.content ~ (level | default(0)) }}{% endfor %}"
    )
    tokenizer = make_tokenizer(body)
    messages = [{"role": "user", "content": "hello"}]
    given = {"style": 'a "b" %} {{ c }}\n\\n é', "think": False, "level": 2.5}
    plain = tokenizer.apply_chat_template(messages, tokenize=False)
    wanted = tokenizer.apply_chat_template(messages, tokenize=False, **given)
    ChatSettings.of(given).apply(tokenizer)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == wanted != plain
    once = tokenizer.chat_template
    ChatSettings.of(given).apply(tokenizer)
    assert tokenizer.chat_template == once, "a template that was saved with its settings takes them again"
    ChatSettings.of({"think": True}).apply(tokenizer)
    assert "[-|on]" in tokenizer.apply_chat_template(messages, tokenize=False)
    nested = make_tokenizer("{{ x }}" + body)
    ChatSettings.of({"x": ["a", None, {"b": [1, -2, True]}]}).apply(nested)
    assert "['a', None, {'b': [1, -2, True]}]" in nested.apply_chat_template(messages, tokenize=False)


def test_settings_that_say_nothing_to_the_template_are_refused(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    before = tokenizer.chat_template
    ChatSettings().apply(tokenizer)
    assert tokenizer.chat_template == before
    with pytest.raises(MechrefusalError, match="knows no 'enable_thinking'"):
        ChatSettings.of({"enable_thinking": False}).apply(tokenizer)
    with pytest.raises(MechrefusalError, match="cannot hold 'messages'"):
        ChatSettings.of({"messages": []})
    with pytest.raises(MechrefusalError, match="cannot hold 'two words'"):
        ChatSettings.of({"two words": 1})
    with pytest.raises(MechrefusalError, match="no plain values"):
        ChatSettings.of({"a": object()})
    with pytest.raises(MechrefusalError, match="max_thought_tokens is -1"):
        ChatSettings.of(max_thought_tokens=-1)


def test_another_way_to_ask_is_another_hash() -> None:
    assert ChatSettings.of().hashed("abc") == "abc"
    hashes = [ChatSettings.of(*given).hashed("abc") for given in (({"a": 1},), ({"a": 2},), ({}, 9), ({"a": 1}, 9))]
    assert len({"abc", *hashes}) == 5
    assert ChatSettings.of({"a": 1, "b": 2}) == ChatSettings.of({"b": 2, "a": 1})
