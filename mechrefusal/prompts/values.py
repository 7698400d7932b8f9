"""Single values as files hold them: what is missing, what is text, and what is a conversation."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"

_ROLES = {
    SYSTEM: SYSTEM, "developer": SYSTEM,
    USER: USER, "human": USER, "prompter": USER,
    ASSISTANT: ASSISTANT, "gpt": ASSISTANT, "model": ASSISTANT, "bot": ASSISTANT, "chatbot": ASSISTANT,
}  # fmt: skip
"""Names that formats give to the speakers. Any other speaker (tool, function, ...) keeps its own name."""


_HALF = re.compile(r"[\ud800-\udfff]")


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none: None, NaN, NaT, pandas' NA. The texts "None", "nan" and "" are text."""
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def is_blank(value: Any) -> bool:
    """Whether a value is missing, a text without a character that shows, or an empty list or object."""
    if isinstance(value, str) or is_missing(value):
        return is_missing(value) or not value.strip()
    return not pd.api.types.is_scalar(value) and hasattr(value, "__len__") and not len(value)


def whole(text: str) -> str:
    """The text with U+FFFD for every half of a surrogate pair, which is no character: no tokenizer or file takes it."""
    return _HALF.sub("\ufffd", text) if not text.isascii() and _HALF.search(text) else text


def whole_characters(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table with `whole` texts, also those in lists, and a warning where that changed one."""
    changed: dict[str, pd.Series] = {}
    for column in table.columns[[not pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes]]:
        before = list(table[column])
        after = [_whole_value(value) for value in before]
        rows = [row for row, (new, old) in enumerate(zip(after, before, strict=True)) if new is not old]
        if rows:
            changed[column] = pd.Series(after, index=table.index, dtype=object)
            warnings.warn(
                f"{where}, row {rows[0]}, column '{column}' ({len(rows)} rows in all) held half of a surrogate pair, "
                "which is no character: U+FFFD stands there now; mend the source",
                stacklevel=4,  # whoever made the set: between them is the `__init__` of a dataclass
            )
    return table.assign(**changed) if changed else table


def _whole_value(value: Any) -> Any:
    """The value itself where nothing is to be changed in it."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list) and any(_whole_value(item) is not item for item in value):
        return [_whole_value(item) for item in value]
    return value


def as_text(value: Any, *, role: str = USER) -> str:
    """The text that a value is: "" where it is missing, numbers and dates as Python writes them.

    A conversation (a list of messages with `role` and `content`, or `from` and `value`) of the one turn of `role` is
    the text of that turn.

    Raises:
        ValueError: the value is no text.
    """
    if isinstance(value, str):
        return value
    if is_blank(value):
        return ""
    messages = turns(value)
    if messages is not None:
        if len(messages) != 1 or messages[0].role != role:
            roles = ", ".join(turn.role for turn in messages)
            raise ValueError(f"a conversation (of {roles}), not the one turn of the {role}: give its text alone")
        return messages[0].require_text()
    if not _is_single(value):
        kinds = {bytes: "bytes", bytearray: "bytes", Mapping: "an object", Sequence: "a list"}
        what = next((name for kind, name in kinds.items() if isinstance(value, kind)), f"a {type(value).__name__}")
        raise ValueError(f"{what} ({_shown(value)}): give text")
    return str(value)


@dataclass(frozen=True)
class Turn:
    """One message. `trouble` says why `text` is not all of it ("" where it is)."""

    role: str
    text: str
    trouble: str = ""

    def require_text(self) -> str:
        """The text. Raises ValueError where it is not all of the message."""
        if self.trouble:
            raise ValueError(f"{self.trouble}: give text")
        return self.text


def turns(value: Any) -> list[Turn] | None:
    """The messages of a conversation, None where the value is none.

    Known forms: a list of objects with `role` and `content`, or `from` and `value`, or one such object; content that
    is text, or a list of parts of the type `text`; an object of such lists, as `datasets` keeps a sequence of objects.
    """
    if _is_message(value):
        value = [value]
    if isinstance(value, Mapping) and value and all(_is_list(column) for column in value.values()):
        rows = zip(*value.values(), strict=True) if len({len(column) for column in value.values()}) == 1 else ()
        value = [dict(zip(value, row, strict=True)) for row in rows]
    if not _is_list(value) or not len(value) or not all(_is_message(message) for message in value):
        return None
    return [_turn(message) for message in value]


def _turn(message: Mapping[str, Any]) -> Turn:
    named = message.get("role")
    named = str(message.get("from") if is_missing(named) else named).strip()
    content = message.get("content")
    content = message.get("value") if is_missing(content) else content
    text, trouble = _content(content)
    if not text and any(not is_blank(message.get(name)) for name in ("tool_calls", "function_call")):
        trouble = "a call of a tool"
    return Turn(_ROLES.get(named.lower(), named), text, trouble)


def _content(content: Any) -> tuple[str, str]:
    """The text of a message's content, and what of it is no text."""
    if is_missing(content) or _is_single(content):
        return "" if is_missing(content) else str(content), ""
    texts = []
    for part in content if _is_list(content) else [content]:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            return "", f"a message with a part that is no text ({kind})"
        texts.append(text)
    return "".join(texts), ""


def _is_message(value: Any) -> bool:
    if not isinstance(value, Mapping) or not {"content", "value", "tool_calls"} & set(value):
        return False
    return any(isinstance(value.get(name), str) for name in ("role", "from"))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _is_single(value: Any) -> bool:
    """Whether a value is text, a number, a date: what stands in one cell."""
    return pd.api.types.is_scalar(value) and not isinstance(value, (bytes, bytearray))


def _shown(value: Any) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
