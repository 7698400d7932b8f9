"""Where the assistant's turn begins and ends, in templates of the forms that model families have."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from chat_templates import GLM, MISTRAL, QWEN3, R1, ROLES, sentencepiece
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import (
    ChatSettings,
    after_empty_thought,
    answer_room,
    end_of_turn_tokens,
    opening_ids,
    prompt_ids,
    segments,
    thought_marks,
    turn,
)

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]


def thinking(make_tokenizer: MakeTokenizer, template: str, *, special: bool = False) -> PreTrainedTokenizerBase:
    tokenizer = make_tokenizer(template)
    tokenizer.add_tokens([AddedToken(mark, special=special) for mark in ("<think>", "</think>")])
    return tokenizer


def test_an_answer_opens_as_the_rendering_of_the_whole_conversation_has_it() -> None:
    """The issue's own case: "Sure" after "[/INST]" is not the "S", "ure" of a text without its space."""
    for template in (MISTRAL, MISTRAL.replace("' ' + one.content + eos", "' ' + one.content + ' ' + eos")):
        tokenizer = sentencepiece(template)
        whole = segments(tokenizer, "Tell me how", target="Sure, here")
        bare = segments(tokenizer, "Tell me how", target="Sure, here", end_of_turn=False)
        assert tokenizer.convert_ids_to_tokens(bare.target) == ["▁Sure", ",", "▁here"]
        assert whole.target[: len(bare.target)] == bare.target
        assert whole.target[-1] == tokenizer.eos_token_id
        assert bare.prompt_ids == whole.prompt_ids == prompt_ids(tokenizer, ["Tell me how"])[0]
        lead, words = opening_ids(tokenizer, "Sure, here")
        assert (lead, words) == ((), bare.target)
        # Alone, or after a line end, the word is another token: nothing may be tokenised by itself.
        assert tokenizer.convert_ids_to_tokens(opening_ids(tokenizer, "I can't")[1])[0] == "▁I"


def test_a_space_of_the_answer_is_part_of_its_first_token_or_a_token_before_it(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("llama-2", "byte-level")
    found = segments(tokenizer, "hello", target="Sure", end_of_turn=False)
    assert tokenizer.decode(found.target) == " Sure"
    lead, words = opening_ids(tokenizer, "Sure")
    assert lead + words == found.target
    assert tokenizer.decode(words) in ("Sure", " Sure")
    # A first character of several tokens is opened by its first.
    lead, words = opening_ids(make_tokenizer("chatml"), "🙂")
    assert (lead, len(words)) == ((), 4)


def test_the_empty_thought_of_the_template_stands_between_prompt_and_answer(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = thinking(make_tokenizer, QWEN3)
    messages = [{"role": "user", "content": "Tell me how"}, {"role": "assistant", "content": "Sure, here"}]
    for end_of_turn, tail in ((True, "<|im_end|>\n"), (False, "")):
        found = segments(tokenizer, "Tell me how", target="Sure, here", end_of_turn=end_of_turn)
        assert tokenizer.decode(found.target) == "<think>\n\n</think>\n\nSure, here" + tail
        assert tokenizer.decode(found.after) == "<|im_end|>\n<|im_start|>assistant\n"
    assert list(segments(tokenizer, "Tell me how", target="Sure, here").ids) == tokenizer.apply_chat_template(
        messages, return_dict=False
    )
    lead, words = opening_ids(tokenizer, "Sure, here")
    assert tokenizer.decode(lead) == "<think>\n\n</think>\n\n"
    assert tokenizer.decode(words) == "Sure, here"
    # With a thought of its own, an answer keeps it.
    own = segments(tokenizer, "Tell me how", target="<think>\nLet me see.\n</think>\n\nSure", end_of_turn=False)
    assert tokenizer.decode(own.target) == "<think>\nLet me see.\n</think>\n\nSure"

    ChatSettings.of({"enable_thinking": False}).apply(tokenizer)
    found = segments(tokenizer, "Tell me how", target="Sure, here", end_of_turn=False)
    assert tokenizer.decode(found.after).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(found.target) == "Sure, here"


def test_a_thought_that_the_prompt_opens_is_closed_before_an_answer(make_tokenizer: MakeTokenizer) -> None:
    for template in (R1, "chatml-thinking"):
        tokenizer = thinking(make_tokenizer, template)
        asked = segments(tokenizer, "hello")
        assert tokenizer.decode(asked.after).endswith("<|im_start|>assistant\n<think>\n")
        found = segments(tokenizer, "hello", target="Sure")
        text = tokenizer.decode(found.after + found.target)
        assert "<|im_start|>assistant\n<think>\n\n</think>\n\nSure<|im_end|>" in text
        bare = segments(tokenizer, "hello", target="Sure", end_of_turn=False)
        assert tokenizer.decode(bare.after + bare.target).endswith("</think>\n\nSure")
        assert thought_marks(tokenizer).begun
        assert thought_marks(tokenizer).opened == "<think>\n"


@pytest.mark.parametrize(
    ("template", "trouble"),
    [
        (ROLES, r"writes '<\|im_start\|>assistant\\n' before an answer, which the model is not asked with"),
        ("{% for one in messages %}{{ one.content + '\n' }}{% endfor %}", "marks no end of the user's turn"),
        (ROLES + "{{ '<|im_start|>assistant\n' }}", "asks for another answer behind an answer"),
    ],
)
def test_a_template_without_a_generation_prompt_is_refused_by_name(
    make_tokenizer: MakeTokenizer, template: str, trouble: str
) -> None:
    tokenizer = make_tokenizer(template)
    for given in ({}, {"target": "Sure"}, {"target": "Sure", "end_of_turn": False}):
        with pytest.raises(MechrefusalError, match="the same with and without its generation prompt, and " + trouble):
            segments(tokenizer, "hello", **given)


def test_a_template_whose_answers_begin_at_the_end_of_the_users_turn_needs_no_generation_prompt() -> None:
    tokenizer = sentencepiece(MISTRAL)
    render = [tokenizer.apply_chat_template([{"role": "user", "content": "I"}], add_generation_prompt=g, tokenize=False)
              for g in (True, False)]  # fmt: skip
    assert render[0] == render[1]
    assert segments(tokenizer, "I").prompt_ids
    assert turn(tokenizer).between == " "


@pytest.mark.parametrize(
    ("template", "backend", "token"),
    [
        ("chatml", "byte-level", "<|im_end|>"),
        ("gemma", "byte-level", "<end_of_turn>"),
        ("gemma", "metaspace", "<end_of_turn>"),
        ("llama-2", "metaspace", "</s>"),
        (MISTRAL, "metaspace", "</s>"),
        (QWEN3, "byte-level", "<|im_end|>"),
        (R1, "byte-level", "<|im_end|>"),
        (GLM, "byte-level", "<|im_start|>"),
    ],
)
def test_a_turn_ends_where_the_template_ends_it(
    make_tokenizer: MakeTokenizer, template: str, backend: str, token: str
) -> None:
    tokenizer = make_tokenizer(template, backend)
    assert tokenizer.eos_token == "</s>", "whatever the tokenizer's own end token is"
    assert end_of_turn_tokens(tokenizer) == {tokenizer.convert_tokens_to_ids(token)}


def test_a_template_that_ends_no_turn_is_refused_by_name(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("silent-on-system")
    with pytest.raises(MechrefusalError, match=r"writes no special token after an answer \(it writes '\\n'\)"):
        end_of_turn_tokens(tokenizer)
    # The beginning of a document is no end of a turn.
    tokenizer = make_tokenizer("{% for one in messages %}{{ bos_token + one.role + ': ' + one.content }}{% endfor %}")
    with pytest.raises(MechrefusalError, match="nothing says where the model's turn ends"):
        end_of_turn_tokens(tokenizer)


def test_marks_of_thoughts_are_tokens_or_nothing(make_tokenizer: MakeTokenizer) -> None:
    plain = make_tokenizer("chatml")
    assert thought_marks(plain).at_most == 0
    assert answer_room(plain, 30) == 30
    tokenizer = thinking(make_tokenizer, QWEN3)
    marks = thought_marks(tokenizer)
    assert (marks.opens, marks.closes) == tuple(
        {(tokenizer.convert_tokens_to_ids(mark),)} for mark in ("<think>", "</think>")
    )
    assert not marks.begun
    assert answer_room(tokenizer, 30) == 30 + 512
    ChatSettings.of(max_thought_tokens=7).apply(tokenizer)
    assert answer_room(tokenizer, 30) == 37
    # Where the prompt closes the thought, none is to come.
    ChatSettings.of({"enable_thinking": False}, 7).apply(tokenizer)
    assert answer_room(tokenizer, 30) == 30


def test_thoughts_are_replaced_by_the_templates_empty_one(make_tokenizer: MakeTokenizer) -> None:
    for template, lead in ((QWEN3, "<think>\n\n</think>"), (R1, "\n</think>")):
        tokenizer = thinking(make_tokenizer, template)
        said = ["<think>\nI see.\n</think>\n\nSure", "Hm.\n</think>\n\nSorry", "No thought"]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
        found, n_lead = after_empty_thought(tokenizer, ids)
        assert [tokenizer.decode(row) for row in found] == [f"{lead}\n\nSure", f"{lead}\n\nSorry", f"{lead}No thought"]
        assert {tokenizer.decode(row[:n_lead]) for row in found} == {lead}
        assert after_empty_thought(tokenizer, ids[2:]) == ([tuple(ids[2])], 0)


# What published templates write between prompt and answer, which token ends the turn, and whether the prompt opens a
# thought: as TRL carries them.
PUBLISHED = {
    "cohere": ("", "<|END_OF_TURN_TOKEN|>", ""),
    "deepseek_r1_distill": ("\n</think>\n\n", "<｜end▁of▁sentence｜>", "<think>\n"),
    "gemma3": ("", "<end_of_turn>", ""),
    "glm4moe": ("\n<think></think>\n", "<|user|>", ""),
    "gptoss": ("<|channel|>final<|message|>", "<|return|>", ""),
    "lfm2": ("", "<|im_end|>", ""),
    "llama3_1": ("", "<|eot_id|>", ""),
    "nemotron_3_nano": ("\n</think>\n\n", "<|im_end|>", "<think>\n"),
    "phi3": ("", "<|end|>", ""),
    "qwen2_5": ("", "<|im_end|>", ""),
    "qwen3": ("<think>\n\n</think>\n\n", "<|im_end|>", ""),
    "qwen3_5_think": ("\n</think>\n\n", "<|im_end|>", "<think>\n"),
    "qwen3_instruct_2507": ("", "<|im_end|>", ""),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates(make_tokenizer: MakeTokenizer, name: str) -> None:
    (folder,) = find_spec("trl").submodule_search_locations
    path = Path(folder) / "chat_templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this version of TRL carries no template '{name}'")
    template = path.read_text(encoding="utf-8")
    tokenizer = make_tokenizer(template)
    marks = re.findall(r"<[|｜][^<>\s]{1,40}?[|｜]>|</?think>", template)
    tokenizer.add_tokens([AddedToken(mark, special="think" not in mark) for mark in dict.fromkeys(marks)])
    between, end, opened = PUBLISHED[name]
    assert turn(tokenizer).between == between
    assert end_of_turn_tokens(tokenizer) == {tokenizer.convert_tokens_to_ids(end)}
    assert thought_marks(tokenizer).opened == opened
    found = segments(tokenizer, "Tell me how", target="Sure, here", end_of_turn=False)
    assert tokenizer.decode(found.prompt_ids + found.target).endswith(opened + between + "Sure, here")
    lead, words = opening_ids(tokenizer, "Sure, here")
    assert tokenizer.decode(words) == "Sure, here"
    assert (lead == ()) is (between == "")
