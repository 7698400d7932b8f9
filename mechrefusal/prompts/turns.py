"""Where the assistant's turn begins and ends: what a chat template writes around an answer."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts.chat_settings import max_thought_tokens
from mechrefusal.prompts.rendering import (
    ANSWER,
    SENTINELS,
    name_of,
    render,
    require_template,
    short,
    tokenised,
    trimmed,
)
from mechrefusal.prompts.thoughts import MARKS, ThoughtMarks, after_thought, mark_ids, thought_at_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Turn:
    """What a chat template writes around an answer.

    `between`: after the prompt, before the answer's words (a space, an empty thought). `end`: after its words, where
    the conversation ends. `following`: after its words, where the user goes on ("" if the template allows none).
    """

    between: str
    end: str
    following: str


_TURNS: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, str | None], Turn]]" = WeakKeyDictionary()
_ASKS_FOR_ANSWERS: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, str | None], bool]]" = (
    WeakKeyDictionary()
)


def opening_ids(tokenizer: "PreTrainedTokenizerBase", answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How an answer opens after a prompt, as token ids: what the template writes before it, and its own words.

    The first is empty for most templates; where it writes an empty thought, that is it. White space that the tokenizer
    joins to a word belongs to the word.

    Raises:
        MechrefusalError: the answer is blank, or what `segments` raises.
    """
    if not answer.strip():
        raise MechrefusalError(f"the answer {answer!r} is blank: give the words that an answer opens with")
    require_template(tokenizer)
    prompt = render(tokenizer, SENTINELS[0], None)
    answer_text, _ = answered(tokenizer, prompt, SENTINELS[0], answer, None)
    between = len(answer_text) - max(len(words) for words in trimmed(answer) if answer_text.endswith(words))
    ids, starts = tokenised(tokenizer, prompt + answer_text)
    place = len(prompt) + between
    words = bisect_left(starts, place)
    if words == len(starts) or starts[words] > place:  # the first word begins inside a token
        words -= 1
    return ids[bisect_left(starts, len(prompt)) : words], ids[words:]


def turn(tokenizer: "PreTrainedTokenizerBase", *, system: str | None = None) -> Turn:
    """What the chat template writes around an answer, found once by rendering stand-ins.

    Raises:
        MechrefusalError: the template cannot render an answer, shows it other than once, or renders it as something
            that does not continue its generation prompt.
    """
    require_template(tokenizer)
    known = _TURNS.setdefault(tokenizer, {})
    key = (str(tokenizer.chat_template), system)
    if key not in known:
        known[key] = _turn(tokenizer, system)
    return known[key]


def end_of_turn_tokens(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The token that ends the assistant's turn: the first special or added one that the template writes behind it.

    A template that writes none there, but begins the user's next turn with one, ends the answer with that.

    Raises:
        MechrefusalError: it writes no such token, so that no model that was trained on it can end its turn; or what
            `turn` raises.
    """
    around = turn(tokenizer)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for tail in (around.end, around.following):
        text = render(tokenizer, SENTINELS[0], None) + around.between + ANSWER
        ids, starts = tokenised(tokenizer, text + tail)
        behind = ids[bisect_left(starts, len(text)) :]
        begins = {tokenizer.bos_token_id} - {tokenizer.eos_token_id} if tail is not around.end else set()
        for token in behind:
            if token in special and token not in begins:
                return frozenset({token})
    raise MechrefusalError(
        f"the chat template of {name_of(tokenizer)} writes no special token after an answer (it writes "
        f"{short(around.end or around.following)}), so that nothing says where the model's turn ends: "
        "put the end-of-turn token behind the assistant's content in the template"
    )


def thought_marks(tokenizer: "PreTrainedTokenizerBase") -> ThoughtMarks:
    """How thoughts stand in completions of this template's prompts, and how many tokens one may take."""
    opens, closes = mark_ids(tokenizer)
    at_most = max_thought_tokens(tokenizer)
    prompt = render(tokenizer, SENTINELS[0], None)
    stem, closing = thought_at_end(prompt)
    return ThoughtMarks(opens, closes, at_most if opens else 0, prompt[len(stem) :] if closing else "")


def after_empty_thought(
    tokenizer: "PreTrainedTokenizerBase", completions: Sequence[Sequence[int]]
) -> tuple[list[tuple[int, ...]], int]:
    """Completions (token ids) with an empty thought, as the template writes it, in place of their own.

    What a model thinks differs from prompt to prompt; how it answers after no thought is the same question for all.

    Returns:
        The completions, and how many first tokens the empty thought takes: 0, and the completions as they are, where
        none of them holds a thought that ended.
    """
    closes = mark_ids(tokenizer)[1]
    ends = [_end_of(closes, ids) for ids in completions]
    if not any(ends):
        return [tuple(ids) for ids in completions], 0
    lead = opening_ids(tokenizer, ANSWER)[0]
    lead = lead[: _end_of(closes, lead)]
    return [(*lead, *ids[end:]) for ids, end in zip(completions, ends, strict=True)], len(lead)


def _end_of(marks: Iterable[tuple[int, ...]], ids: Sequence[int]) -> int:
    """How many tokens there are up to the end of the first of these marks; 0 where there is none."""
    ends = [
        start + len(mark)
        for mark in marks
        for start in range(len(ids) - len(mark) + 1)
        if tuple(ids[start : start + len(mark)]) == mark
    ]
    return min(ends, default=0)


def answer_room(tokenizer: "PreTrainedTokenizerBase", max_new_tokens: int) -> int:
    """Tokens that a completion may take: those of the answer, and those of a thought where the model may think.

    A template that closes the thought in its generation prompt leaves none to think.
    """
    marks = thought_marks(tokenizer)
    after = render(tokenizer, SENTINELS[0], None).split(SENTINELS[0])[-1]
    closed = any(closing in after for _, closing in MARKS)
    return max_new_tokens + (0 if closed else marks.at_most)


def _turn(tokenizer: "PreTrainedTokenizerBase", system: str | None) -> Turn:
    question = SENTINELS[0]
    prompt = render(tokenizer, question, system)
    before, end = _around_answer(tokenizer, render(tokenizer, question, system, ANSWER))
    if before.startswith(prompt):
        between = before[len(prompt) :]
    elif thought_at_end(prompt)[0].rstrip() == thought_at_end(before)[0].rstrip():
        # The prompt opens a thought, or has an empty one, that the template leaves out of what was said before.
        between = thought_at_end(prompt)[1]
    else:
        raise MechrefusalError(
            f"the chat template of {name_of(tokenizer)} does not render an answer as a continuation of its generation "
            f"prompt (it ends in {short(prompt[-40:])}, before the answer stands {short(before[-40:])}): "
            "use another template"
        )
    try:
        longer = render(tokenizer, question, system, ANSWER, SENTINELS[1])
        following = _around_answer(tokenizer, longer)[1].split(SENTINELS[1])[0]
    except MechrefusalError:
        following = ""
    return Turn(between, end, following)


def _around_answer(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[str, str]:
    parts = text.split(ANSWER)
    if len(parts) != 2:
        raise MechrefusalError(
            f"the chat template of {name_of(tokenizer)} shows the assistant's words {len(parts) - 1} times: "
            "it must show them once"
        )
    return parts[0], parts[1]


def answered(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, content: str, target: str, system: str | None
) -> tuple[str, str]:
    """What follows the prompt up to the answer's last word, and what the template writes behind that."""
    around = turn(tokenizer, system=system)
    rendered = render(tokenizer, content, system, target)
    if rendered.startswith(prompt):
        continuation = rendered[len(prompt) :]
    else:  # a thought that the prompt opens, and that what was said before is rendered without
        words = next((w for w in trimmed(target) if rendered.endswith(w + around.end)), target)
        continuation = around.between + words + around.end
        rendered = rendered if rendered.endswith(words + around.end) else ""
    body = continuation.removesuffix(around.end)
    if not rendered or len(body) + len(around.end) != len(continuation) or not body.endswith(trimmed(target)):
        raise MechrefusalError(
            f"the chat template of {name_of(tokenizer)} changes the answer {short(target)} beyond its outer white "
            "space: reword the answer or use another template"
        )
    return body, around.end


def require_generation_prompt(tokenizer: "PreTrainedTokenizerBase", system: str | None) -> None:
    """Raise MechrefusalError where the model would be asked to go on with the user's turn.

    Where the template writes the same with and without a generation prompt, the end of the user's turn must be where an
    answer begins: it is marked, before the words of an answer stands no more than white space or a thought, and behind
    them no more than where the conversation goes on.
    """
    known = _ASKS_FOR_ANSWERS.setdefault(tokenizer, {})
    key = (str(tokenizer.chat_template), system)
    if key in known:
        return
    question = SENTINELS[0]
    prompt = render(tokenizer, question, system)
    try:
        same = prompt == render(tokenizer, question, system, ask=False)
    except MechrefusalError:  # it renders no question that it does not ask
        same = False
    if same:
        after, around = prompt.split(question)[1], turn(tokenizer, system=system)
        trouble = ""
        if not after.strip():
            trouble = "marks no end of the user's turn"
        elif (after_thought(around.between) or "").strip():
            trouble = f"writes {short(around.between)} before an answer, which the model is not asked with"
        elif around.following and not around.following.startswith(around.end.rstrip()):
            trouble = f"asks for another answer behind an answer ({short(around.end)})"
        if trouble:
            raise MechrefusalError(
                f"the chat template of {name_of(tokenizer)} renders a conversation the same with and without its "
                f"generation prompt, and {trouble}: write what opens the assistant's turn in the template under "
                "'if add_generation_prompt'"
            )
    known[key] = True
