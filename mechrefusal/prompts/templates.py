"""Chat templates as named token segments: where the template ends, the instruction begins, the attack, the answer."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts.rendering import SENTINELS, name_of, render, require_template, short, tokenised, trimmed
from mechrefusal.prompts.turns import answered, require_generation_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = ("before", "instruction", "attack", "after", "target")


@dataclass(frozen=True)
class Segments:
    """Token ids of one conversation, cut where the parts of its text begin.

    `before` is what the template puts before the user's words, `after` what it puts between them and the answer: the
    positions after the instruction, at which refusal directions are read. A token that lies across a border belongs
    to the part in which its first character stands.
    """

    before: tuple[int, ...]
    instruction: tuple[int, ...]
    attack: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens, in order: exactly what the tokenizer's own chat template gives."""
        return self.prompt_ids + self.target

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """All tokens without the target."""
        return self.before + self.instruction + self.attack + self.after

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each segment, in the order of `NAMES`."""
        return tuple(len(getattr(self, name)) for name in NAMES)

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of the segment of each token of `ids`."""
        return tuple(name for name, length in zip(NAMES, self.lengths, strict=True) for _ in range(length))

    def slice(self, name: str) -> slice:
        """Where segment `name` lies in `ids`."""
        if name not in NAMES:
            raise MechrefusalError(f"unknown segment '{name}': expected one of {', '.join(NAMES)}")
        place = NAMES.index(name)
        ends = [0, *accumulate(self.lengths)]
        return slice(ends[place], ends[place + 1])


def segments(
    tokenizer: "PreTrainedTokenizerBase",
    instruction: str,
    *,
    attack: str = "",
    target: str = "",
    end_of_turn: bool = True,
    system: str | None = None,
) -> Segments:
    """Token ids of `instruction` (and `attack`, after a space) as a user's turn, and `target` as the answer to it.

    The conversation is rendered by the tokenizer's chat template, answer included, and tokenised once, as a whole,
    without further special tokens; hence no beginning-of-sequence token appears in the middle, and the ids equal
    `tokenizer.apply_chat_template(...)`. Without a target, the prompt ends with the template's generation prompt.
    With a target, its segment begins with what the template puts before an answer (a space, an empty thought). With
    `end_of_turn` it holds what the template puts behind it too (the end-of-turn token); without, the same rendering is
    cut off behind the target's last word.

    Raises:
        MechrefusalError: the instruction is blank; the tokenizer has no chat template or cannot say where its tokens
            lie; the template refuses the messages, drops the system message, changes the instruction or the answer
            other than at outer white space, renders the answer as something that does not continue its generation
            prompt, or asks for an answer in the middle of the user's turn.
    """
    if not instruction.strip():
        raise MechrefusalError(f"the instruction {instruction!r} is blank: give the text of a request")
    require_template(tokenizer)
    content = f"{instruction} {attack}" if attack else instruction
    before, after = _frame(tokenizer, system)
    prompt = render(tokenizer, content, system)
    words = prompt[len(before) : len(prompt) - len(after)]
    lead = len(content) - len(content.lstrip())
    if before + words + after != prompt or words not in trimmed(content):
        raise MechrefusalError(
            f"the chat template of {name_of(tokenizer)} changes the instruction {short(content)} beyond its outer "
            "white space: reword the instruction or use another template"
        )
    require_generation_prompt(tokenizer, system)
    cut = lead if words in (content.strip(), content.lstrip()) and words != content else 0
    start = len(before)
    borders = (start, start + min(max(len(instruction) - cut, 0), len(words)), start + len(words), len(prompt))
    text = prompt
    if target:
        answer, end = answered(tokenizer, prompt, content, target, system)
        text = prompt + answer + (end if end_of_turn else "")
    ids, starts = tokenised(tokenizer, text)
    ends = [0, *(bisect_left(starts, border) for border in borders), len(ids)]
    return Segments(*(ids[low:high] for low, high in pairwise(ends)))


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str]) -> list[tuple[int, ...]]:
    """Token ids of each instruction in the chat template, up to where the answer starts."""
    return [segments(tokenizer, text).prompt_ids for text in texts]


def _frame(tokenizer: "PreTrainedTokenizerBase", system: str | None) -> tuple[str, str]:
    """What the template puts before and after the user's words, found by rendering it with two stand-ins."""
    frames = []
    for sentinel in SENTINELS:
        parts = render(tokenizer, sentinel, system).split(sentinel)
        if len(parts) != 2:
            raise MechrefusalError(
                f"the chat template of {name_of(tokenizer)} shows the user's words {len(parts) - 1} times: "
                "it must show them once"
            )
        frames.append((parts[0], parts[1]))
    if frames[0] != frames[1]:
        raise MechrefusalError(
            f"the chat template of {name_of(tokenizer)} changes its own text with the user's words: "
            "use another template"
        )
    if system and system.strip() not in frames[0][0] + frames[0][1]:
        raise MechrefusalError(
            f"the chat template of {name_of(tokenizer)} does not show the system message {short(system)}: "
            "use system=None"
        )
    return frames[0]
