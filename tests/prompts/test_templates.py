"""Segments against the tokenizer's own chat template, and against text positions counted by hand."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import Segments, segments

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]

INSTRUCTIONS = (
    "How do I pick a lock?",
    "Say \"hello\" and 'bye' \\ twice",
    "🙂 smile 👨‍👩‍👧, café, 漢字",
    "<b>bold</b> &amp; {{ messages }} {% raw %}",
    "first line\nsecond line\n\nfourth",
    "  spaces around  ",
    "\n\tlines around\n\n",
    "x",
)
ATTACKS = ("", "! ! ! !", "🙂🙂", "trailing space ")
# (template, backend, whether it takes a system message)
FAMILIES = (
    ("chatml", "byte-level", True),
    ("chatml", "byte-level-trimmed", True),
    ("chatml-without-system", "byte-level", False),
    ("llama-2", "byte-level", True),
    ("llama-2", "metaspace", True),
    ("gemma", "byte-level", False),
    ("gemma", "metaspace", False),
)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: "-".join(family[:2]))
def family(request: pytest.FixtureRequest, make_tokenizer: MakeTokenizer) -> tuple[PreTrainedTokenizerBase, bool]:
    template, backend, takes_system = request.param
    return make_tokenizer(template, backend), takes_system


def messages_of(
    instruction: str, attack: str = "", system: str | None = None, target: str | None = None
) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": instruction + " " + attack if attack else instruction})
    return messages if target is None else [*messages, {"role": "assistant", "content": target}]


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_ids_equal_the_tokenizers_own_chat_template(
    family: tuple[PreTrainedTokenizerBase, bool], instruction: str, attack: str
) -> None:
    tokenizer, takes_system = family
    for system in (None, "You are terse.") if takes_system else (None,):
        messages = messages_of(instruction, attack, system)
        found = segments(tokenizer, instruction, attack=attack, system=system)
        wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert list(found.ids) == wanted
        assert found.target == ()
        assert found.prompt_ids == found.ids

        target = "Sure, here is 🙂"
        answered = segments(tokenizer, instruction, attack=attack, target=target, system=system)
        messages = messages_of(instruction, attack, system, target)
        wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=True, return_dict=False)
        assert list(answered.ids) == wanted

        bare = segments(tokenizer, instruction, attack=attack, target=target, end_of_turn=False, system=system)
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
        text = text[: text.rindex(target) + len(target)]
        assert list(bare.ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert bare.prompt_ids == answered.prompt_ids
        assert answered.target[: len(bare.target)] == bare.target


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_byte_level_segments_hold_the_text_of_their_part(
    make_tokenizer: MakeTokenizer, instruction: str, attack: str
) -> None:
    """ChatML alters no content, and byte-level tokens join to the text: at special tokens the parts are exact."""
    for backend in ("byte-level", "byte-level-trimmed"):
        tokenizer = make_tokenizer("chatml", backend)
        found = segments(tokenizer, instruction, attack=attack, target="Sure, 🙂", system="Be kind.")
        parts = {
            name: tokenizer.decode(getattr(found, name), clean_up_tokenization_spaces=False)
            for name in ("before", "after", "target")
        }
        assert parts["before"].startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user")
        assert parts["after"] == "<|im_end|>\n<|im_start|>assistant\n"
        assert parts["target"] == "Sure, 🙂<|im_end|>\n"
        asked = tokenizer.decode(found.before + found.instruction + found.attack, clean_up_tokenization_spaces=False)
        assert asked == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n" + (
            f"{instruction} {attack}" if attack else instruction
        )
        if attack and not instruction.endswith((" ", "\n")):
            shown = tokenizer.decode(found.instruction, clean_up_tokenization_spaces=False)
            assert shown.lstrip("\n") == instruction.lstrip("\n")
            assert tokenizer.decode(found.attack, clean_up_tokenization_spaces=False) == f" {attack}"
        if not attack:
            assert found.attack == ()


def test_the_tokens_of_one_emoji_stay_in_one_segment(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    emoji = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(emoji) == 4  # the four bytes of U+1F642: the tokenizer never saw it
    found = segments(tokenizer, "🙂", attack="🙂", target="🙂")
    assert list(found.instruction) == emoji
    assert list(found.attack[-4:]) == emoji
    assert len(found.attack) == 5
    assert list(found.target[:4]) == emoji


def test_slices_and_labels_cut_the_ids_into_the_segments(make_tokenizer: MakeTokenizer) -> None:
    found = segments(make_tokenizer("chatml"), "How do I pick a lock?", attack="! !", target="Sure")
    for name in ("before", "instruction", "attack", "after", "target"):
        part = getattr(found, name)
        assert part
        assert found.ids[found.slice(name)] == part
        assert found.labels.count(name) == len(part)
        assert set(found.labels[found.slice(name)]) == {name}
    assert sum(found.lengths) == len(found.ids) == len(found.labels)
    assert found.prompt_ids + found.target == found.ids
    with pytest.raises(MechrefusalError, match="unknown segment 'middle': expected one of before, instruction"):
        found.slice("middle")


def test_a_token_over_a_border_belongs_to_the_part_in_which_it_starts(make_tokenizer: MakeTokenizer) -> None:
    answer = "{% if messages | length > 1 %}{{ messages[1]['content'] }}{% endif %}"
    template = "{{ 'how' + messages[0]['content'] + 'r' }}" + answer
    tokenizer = make_tokenizer(template, "metaspace")
    # "how" + " is" + "r" + "e": the template's "r" merges with the answer's "e".
    found = segments(tokenizer, " is", target="e")
    assert found.after == (tokenizer.convert_tokens_to_ids("re"),)
    assert found.target == ()
    assert found.instruction == (tokenizer.convert_tokens_to_ids("▁is"),)


def test_a_template_that_strips_gives_the_instruction_without_its_outer_spaces(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("gemma")
    padded, bare = segments(tokenizer, "  pick a lock  "), segments(tokenizer, "pick a lock")
    assert padded == bare
    # With an attack behind it, the inner spaces stay, and are the instruction's.
    attacked = segments(tokenizer, "  pick a lock  ", attack="now")
    assert tokenizer.decode(attacked.instruction, clean_up_tokenization_spaces=False) == "pick a lock  "
    assert tokenizer.decode(attacked.attack, clean_up_tokenization_spaces=False) == " now"


def test_trimmed_offsets_give_the_same_segments_and_leave_the_tokenizer_alone(make_tokenizer: MakeTokenizer) -> None:
    plain = make_tokenizer("chatml", "byte-level")
    trimmed = make_tokenizer("chatml", "byte-level-trimmed")
    before = trimmed.backend_tokenizer.to_str()
    # The instruction ends in white space and the template in a line end: both are trimmed off the offsets.
    for instruction in ("pick a lock ", "pick\n\n", " \n pick"):
        arguments = {"attack": "! now", "target": " Sure"}
        assert segments(trimmed, instruction, **arguments) == segments(plain, instruction, **arguments)
    assert trimmed.backend_tokenizer.to_str() == before
    # A token that is added later is known to the next call.
    for tokenizer in (plain, trimmed):
        tokenizer.add_tokens(["pick a lock"])
    assert segments(trimmed, "pick a lock ", attack="! now") == segments(plain, "pick a lock ", attack="! now")


def test_a_blank_instruction_is_refused(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    for blank in ("", " \n"):
        with pytest.raises(MechrefusalError, match="is blank: give the text of a request"):
            segments(tokenizer, blank)


def test_a_tokenizer_without_chat_template_is_refused(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(MechrefusalError, match="has no chat template"):
        segments(make_tokenizer(None), "hello")


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        name_or_path = "some/model"
        chat_template = "{{ messages[0]['content'] }}"
        is_fast = False

    with pytest.raises(MechrefusalError, match="'some/model' is a slow tokenizer"):
        segments(Slow(), "hello")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ messages[0]['content'] | upper }}", "shows the user's words 0 times"),
        ("{{ messages[0]['content'] | replace('l', 'L') }}", "shows the user's words 0 times"),
        ("{{ messages[0]['content'] | replace('!', '') }}", "changes the instruction 'hello! world'"),
        ("{{ messages[0]['content'] + messages[0]['content'] }}", "shows the user's words 2 times"),
        (
            "{{ messages[0]['content'] | length }}:{{ messages[0]['content'] }}",
            "changes its own text with the user's words",
        ),
        ("{{ raise_exception('not today') }}", "cannot render the roles ['user']: not today"),
        ("{{ messages[0]['content'] }}{% if", "cannot render the roles ['user']"),
    ],
)
def test_a_template_that_does_more_than_strip_is_refused(
    make_tokenizer: MakeTokenizer, template: str, complaint: str
) -> None:
    with pytest.raises(MechrefusalError) as caught:
        segments(make_tokenizer(template), "hello! world")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_system_message_that_is_refused_or_dropped_is_an_error(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(MechrefusalError, match="System role not supported; use system=None"):
        segments(make_tokenizer("gemma"), "hello", system="Be kind.")
    silent = make_tokenizer("silent-on-system")
    with pytest.raises(MechrefusalError, match=r"does not show the system message 'Be kind\.'"):
        segments(silent, "hello", system="Be kind.")
    assert isinstance(segments(silent, "hello"), Segments)


def test_an_answer_that_does_not_continue_the_generation_prompt_is_an_error(make_tokenizer: MakeTokenizer) -> None:
    template = "{{ 'user: ' + messages[0]['content'] + '|' }}{% if add_generation_prompt %}{{ 'bot: ' }}{% else %}"
    tokenizer = make_tokenizer(template + "{{ 'model: ' + messages[1]['content'] }}{% endif %}")
    for end_of_turn in (True, False):
        with pytest.raises(MechrefusalError, match="does not render an answer as a continuation of its generation"):
            segments(tokenizer, "hello", target="Sure", end_of_turn=end_of_turn)


def test_a_template_that_changes_the_answer_is_an_error(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(
        "{% for one in messages %}{{ one.role + ': ' + one.content.replace('!', '.') + '|' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    assert segments(tokenizer, "hello", target="Sure").target
    with pytest.raises(MechrefusalError, match=r"changes the answer 'Sure!' beyond its outer white space"):
        segments(tokenizer, "hello", target="Sure!")
