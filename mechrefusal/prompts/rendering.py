"""A conversation as the text that a chat template makes of it, and as tokens that know where they start in it."""

from itertools import accumulate
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from tokenizers import Tokenizer, processors

from mechrefusal.errors import MechrefusalError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTINELS = ("mechrefusalinstruction", "mechrefusalotherinstruction")
"""Contents that no template alters; they differ in length so that a template which counts or repeats is noticed."""
ANSWER = "mechrefusalanswer"
"""An answer that no template alters."""


def trimmed(text: str) -> tuple[str, ...]:
    """A text as templates may show it."""
    return (text, text.strip(), text.lstrip(), text.rstrip())


def render(
    tokenizer: "PreTrainedTokenizerBase",
    content: str,
    system: str | None,
    answer: str | None = None,
    again: str | None = None,
    *,
    ask: bool | None = None,
) -> str:
    """The conversation of the user's `content`, its answer, and the user `again`; by default open for an answer if
    there is none.
    """
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    if again is not None:
        messages.append({"role": "user", "content": again})
    try:
        text = tokenizer.apply_chat_template(
            messages, add_generation_prompt=answer is None if ask is None else ask, tokenize=False
        )
    except (TemplateError, ValueError, TypeError) as error:
        roles = [message["role"] for message in messages]
        raise MechrefusalError(
            f"the chat template of {name_of(tokenizer)} cannot render the roles {roles}: {' '.join(str(error).split())}"
            + ("; use system=None" if system is not None else "; give the tokenizer another chat template")
        ) from error
    return str(text)


def require_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise MechrefusalError for a tokenizer without chat template, or one that cannot say where its tokens lie."""
    if not getattr(tokenizer, "chat_template", None):
        raise MechrefusalError(
            f"{name_of(tokenizer)} has no chat template: use an instruction-tuned model, or set tokenizer.chat_template"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise MechrefusalError(
            f"{name_of(tokenizer)} is a slow tokenizer and cannot say where its tokens lie: "
            "load a fast one (with a tokenizer.json)"
        )


def name_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A tokenizer in a message."""
    path = getattr(tokenizer, "name_or_path", "")
    return f"the tokenizer '{path}'" if path else f"the tokenizer ({type(tokenizer).__name__})"


def short(text: str) -> str:
    """A text in a message: quoted, and cut where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def tokenised(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[tuple[int, ...], list[int]]:
    """Ids of a rendered conversation, and where each token starts."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = tuple(encoding["input_ids"])
    return ids, _starts(tokenizer, text, ids, encoding["offset_mapping"])


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


_BARE: "WeakKeyDictionary[PreTrainedTokenizerBase, Tokenizer]" = WeakKeyDictionary()


def _untrimmed(tokenizer: "PreTrainedTokenizerBase", text: str, ids: tuple[int, ...]) -> list[tuple[int, int]] | None:
    """Offsets from a copy of the tokenizer without its post-processor, made once; the caller's own is never changed.

    A copy that no longer gives the same ids (tokens were added since) is made anew; None where that does not help.
    """
    for _ in range(2):
        if tokenizer not in _BARE:
            bare = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            bare.post_processor = processors.Sequence([])
            bare.no_truncation()
            bare.no_padding()
            _BARE[tokenizer] = bare
        encoding = _BARE[tokenizer].encode(text, add_special_tokens=False)
        if tuple(encoding.ids) == ids:
            return list(encoding.offsets)
        del _BARE[tokenizer]
    return None
