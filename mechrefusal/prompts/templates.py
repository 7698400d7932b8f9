"""Chat templates as named token segments: where the template ends, the instruction begins, the attack, the answer."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from tokenizers import Tokenizer, processors

from mechrefusal.errors import MechrefusalError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = ("before", "instruction", "attack", "after", "target")

# Two contents that no template alters; they differ in length so that a template which counts or repeats is noticed.
_SENTINELS = ("mechrefusalinstruction", "mechrefusalotherinstruction")


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

    The conversation is rendered by the tokenizer's chat template and tokenised once, as a whole, without further
    special tokens; hence no beginning-of-sequence token appears in the middle, and the ids equal
    `tokenizer.apply_chat_template(...)`. Without a target, the prompt ends with the template's generation prompt.
    With `end_of_turn`, the target is rendered as an assistant message, and the segment holds whatever the template
    puts around it (the end-of-turn token). Without, the bare text follows the generation prompt.

    Raises:
        MechrefusalError: the instruction is blank; the tokenizer has no chat template or cannot say where its tokens
            lie; the template refuses the messages, drops the system message, changes the instruction other than at its
            outer white space, or renders the answer as something that does not continue its generation prompt.
    """
    if not instruction.strip():
        raise MechrefusalError(f"the instruction {instruction!r} is blank: give the text of a request")
    _require(tokenizer)
    content = f"{instruction} {attack}" if attack else instruction
    before, after = _frame(tokenizer, system)
    prompt = _render(tokenizer, content, system)
    words = prompt[len(before) : len(prompt) - len(after)]
    lead = len(content) - len(content.lstrip())
    if before + words + after != prompt or words not in (content, content.strip(), content.lstrip(), content.rstrip()):
        raise MechrefusalError(
            f"the chat template of {_name(tokenizer)} changes the instruction {_short(content)} beyond its outer "
            "white space: reword the instruction or use another template"
        )
    cut = lead if words in (content.strip(), content.lstrip()) and words != content else 0
    start = len(before)
    borders = (start, start + min(max(len(instruction) - cut, 0), len(words)), start + len(words), len(prompt))
    return _cut(tokenizer, _with_target(tokenizer, prompt, content, target, system, end_of_turn=end_of_turn), borders)


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str]) -> list[tuple[int, ...]]:
    """Token ids of each instruction in the chat template, up to where the answer starts."""
    return [segments(tokenizer, text).prompt_ids for text in texts]


def _with_target(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    content: str,
    target: str,
    system: str | None,
    *,
    end_of_turn: bool,
) -> str:
    if not target or not end_of_turn:
        return prompt + target
    text = _render(tokenizer, content, system, target)
    if not text.startswith(prompt) or target.strip() not in text[len(prompt) :]:
        raise MechrefusalError(
            f"the chat template of {_name(tokenizer)} does not render the answer {_short(target)} as a continuation "
            "of its generation prompt: use end_of_turn=False, or another template"
        )
    return text


def _cut(tokenizer: "PreTrainedTokenizerBase", text: str, borders: tuple[int, ...]) -> Segments:
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = tuple(encoding["input_ids"])
    starts = _starts(tokenizer, text, ids, encoding["offset_mapping"])
    ends = [0, *(bisect_left(starts, border) for border in borders), len(ids)]
    return Segments(*(ids[low:high] for low, high in pairwise(ends)))


def _starts(
    tokenizer: "PreTrainedTokenizerBase", text: str, ids: tuple[int, ...], offsets: list[tuple[int, int]]
) -> list[int]:
    """The place in `text` of each token's first character, never falling.

    The tokens of one character that is split over several all start there. Some tokenizers trim white space off what
    they report (post-processors with `trim_offsets`); the gaps show it, and the untrimmed offsets are used then.
    """
    if any(low > high for (_, high), (low, _) in zip([(0, 0), *offsets], [*offsets, (len(text), 0)], strict=True)):
        offsets = _untrimmed(tokenizer, text, ids) or offsets
    return list(accumulate((low for low, _ in offsets), max))


_PLAIN: "WeakKeyDictionary[PreTrainedTokenizerBase, Tokenizer]" = WeakKeyDictionary()


def _untrimmed(tokenizer: "PreTrainedTokenizerBase", text: str, ids: tuple[int, ...]) -> list[tuple[int, int]] | None:
    """Offsets from a copy of the tokenizer without its post-processor, made once; the caller's own is never changed.

    A copy that no longer gives the same ids (tokens were added since) is made anew; None where that does not help.
    """
    for _ in range(2):
        if tokenizer not in _PLAIN:
            plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            plain.post_processor = processors.Sequence([])
            plain.no_truncation()
            plain.no_padding()
            _PLAIN[tokenizer] = plain
        encoding = _PLAIN[tokenizer].encode(text, add_special_tokens=False)
        if tuple(encoding.ids) == ids:
            return list(encoding.offsets)
        del _PLAIN[tokenizer]
    return None


def _frame(tokenizer: "PreTrainedTokenizerBase", system: str | None) -> tuple[str, str]:
    """What the template puts before and after the user's words, found by rendering it with two stand-ins."""
    frames = []
    for sentinel in _SENTINELS:
        parts = _render(tokenizer, sentinel, system).split(sentinel)
        if len(parts) != 2:
            raise MechrefusalError(
                f"the chat template of {_name(tokenizer)} shows the user's words {len(parts) - 1} times: "
                "it must show them once"
            )
        frames.append((parts[0], parts[1]))
    if frames[0] != frames[1]:
        raise MechrefusalError(
            f"the chat template of {_name(tokenizer)} changes its own text with the user's words: use another template"
        )
    if system and system.strip() not in frames[0][0] + frames[0][1]:
        raise MechrefusalError(
            f"the chat template of {_name(tokenizer)} does not show the system message {_short(system)}: "
            "use system=None"
        )
    return frames[0]


def _render(tokenizer: "PreTrainedTokenizerBase", content: str, system: str | None, answer: str | None = None) -> str:
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=answer is None, tokenize=False)
    except (TemplateError, ValueError, TypeError) as error:
        roles = [message["role"] for message in messages]
        raise MechrefusalError(
            f"the chat template of {_name(tokenizer)} cannot render the roles {roles}: {' '.join(str(error).split())}"
            + ("; use system=None" if system is not None else "; give the tokenizer another chat template")
        ) from error
    return str(text)


def _require(tokenizer: "PreTrainedTokenizerBase") -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise MechrefusalError(
            f"{_name(tokenizer)} has no chat template: use an instruction-tuned model, or set tokenizer.chat_template"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise MechrefusalError(
            f"{_name(tokenizer)} is a slow tokenizer and cannot say where its tokens lie: "
            "load a fast one (with a tokenizer.json)"
        )


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    path = getattr(tokenizer, "name_or_path", "")
    return f"the tokenizer '{path}'" if path else f"the tokenizer ({type(tokenizer).__name__})"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
