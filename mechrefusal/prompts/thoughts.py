"""What a reasoning model thinks before it answers, "<think> ... </think>": part of a completion, not of its answer."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""What opens and what closes a thought, by family of models."""
MAX_THOUGHT_TOKENS = 512
"""Tokens that a thought may take where nothing else is said."""

_OPENINGS = "|".join(re.escape(opening) for opening, _ in MARKS)
_BEGINS = re.compile(rf"\s*(?P<opening>{_OPENINGS})")
_CLOSINGS = "|".join(re.escape(closing) for _, closing in MARKS)
_AT_END = re.compile(
    rf"(?P<opening>{_OPENINGS})(?P<gap>\s*)\Z|(?:(?:{_OPENINGS})\s*)?(?:{_CLOSINGS})\s*\Z",
)
# Between quotation marks or in code it is spoken of.
_CLOSES = {closing: re.compile(rf"(?<![`'\"]){re.escape(closing)}(?![`'\"])") for _, closing in MARKS}


def after_thought(completion: str) -> str | None:
    """The answer in a completion: what follows its thought; None where a thought has no end yet.

    A completion that goes on from an opening mark in the prompt holds only the closing one; it is read alike. Without
    marks, the completion is its answer.
    """
    text = completion
    if _BEGINS.match(text) is None:
        for opening, closing in MARKS:
            ended = _CLOSES[closing].search(text)
            if ended is not None and opening not in text[: ended.start()]:
                text = text[ended.end() :].lstrip()
                break
    while (begun := _BEGINS.match(text)) is not None:
        ended = _CLOSES[dict(MARKS)[begun["opening"]]].search(text, begun.end())
        if ended is None:
            return None
        text = text[ended.end() :].lstrip()
    return text


def thought_at_end(text: str) -> tuple[str, str]:
    """What stands before the thought with which `text` ends, and what would close it ("" where nothing is open).

    All of the text where it ends in no thought, or in one that holds words.
    """
    ending = _AT_END.search(text)
    if ending is None:
        return text, ""
    if not ending["opening"]:
        return text[: ending.start()], ""
    gap = "\n" * max(0, 2 - ending["gap"].count("\n"))
    return text[: ending.start()], f"{gap}{dict(MARKS)[ending['opening']]}\n\n"


@dataclass(frozen=True)
class ThoughtMarks:
    """Thoughts as tokens: what opens and closes one (ids, mostly one token each), and how many tokens one may take.

    `begun`: the prompt opens one, by `opened` (text). Empty sets: the vocabulary has no such marks.
    """

    opens: frozenset[tuple[int, ...]] = frozenset()
    closes: frozenset[tuple[int, ...]] = frozenset()
    at_most: int = 0
    opened: str = ""

    @property
    def begun(self) -> bool:
        """Whether every completion begins inside a thought."""
        return bool(self.opened and self.closes)


def mark_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[frozenset[tuple[int, ...]], frozenset[tuple[int, ...]]]:
    """Token ids of what opens and of what closes a thought: of the pairs of marks that the vocabulary knows.

    A mark begins and ends in tokens of its own, which no text around it changes; else it is text like any other.
    """
    added = set(tokenizer.added_tokens_decoder)
    pairs = []
    for pair in MARKS:
        ids = [tuple(tokenizer(mark, add_special_tokens=False)["input_ids"]) for mark in pair]
        if all(mark and mark[0] in added and mark[-1] in added for mark in ids):
            pairs.append(ids)
    return frozenset(opening for opening, _ in pairs), frozenset(closing for _, closing in pairs)


def texts_of(tokenizer: "PreTrainedTokenizerBase", rows: Iterable[Sequence[int]]) -> list[str]:
    """The texts of completions without special tokens; marks of thoughts stay, whether they are special or not."""
    opens, closes = mark_ids(tokenizer)
    marks = {token for mark in (*opens, *closes) for token in mark}
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} if marks else set()
    if not marks & special:
        return [str(tokenizer.decode(list(row), skip_special_tokens=True)) for row in rows]
    visible = ([token for token in row if token in marks or token not in special] for row in rows)
    return [str(tokenizer.decode(row, skip_special_tokens=False)) for row in visible]
