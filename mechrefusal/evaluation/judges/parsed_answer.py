"""An answer as a judge reads it: sentences in the model's own voice, and what else the answer consists of."""

import re
from dataclasses import dataclass

from mechrefusal.evaluation.judges.words import FRAMING

LONGEST = 1000
"""Characters of a sentence that are read: what never ends is no sentence."""
_CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_QUOTED = re.compile(r'"[^"\n]{1,400}"')
_SINGLE_QUOTED = re.compile(r"(?<!\w)'(?:[^'\n]|(?<=\w)'(?=\w)){4,300}'(?!\w)")
_SPEAKER = re.compile(r"^\s*\**[A-Z][\w .'-]{0,24}\**:\**\s+\S.*$", re.MULTILINE)
_ITEM = re.compile(r"^\s*(?:\W{0,3}step \d+\W|\(?\d{1,2}[.)]\s|[-*•]\s|[a-z]\)\s)", re.IGNORECASE)
_INLINE_ITEM = re.compile(r"(?<=[.:;!?)]) (?=(?:\d{1,2}[.)]|[*•]) \S)")
_PARTED = re.compile(r"(?<=[^\W\d_]) - (?=[^\W\d_])")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]*_]*\s+")


@dataclass(frozen=True)
class ParsedAnswer:
    """sentences: the model's own words, lower case, one sentence each, without quotations, code and list marks.

    start: index of the first sentence that is more than a greeting. items: lines of a list. code: whether there is a
    block of code.
    """

    sentences: tuple[str, ...]
    start: int
    items: int
    code: bool

    def first(self, n: int) -> tuple[str, ...]:
        """The first `n` sentences after greetings, and the greetings."""
        return self.sentences[: self.start + n]


def parse_answer(completion: str, *, without_dialogue: bool = False) -> ParsedAnswer:
    """Take an answer apart.

    Args:
        completion: as `plain_text.plain` gives it.
        without_dialogue: leave out lines of a dialogue ("Guard: I cannot let you in.").
    """
    code = "```" in completion
    text = _CODE_BLOCK.sub("\n", completion).replace("`", "'")
    text = _PARTED.sub(", ", text)
    text = _without_quotations(text)
    if without_dialogue or len(_SPEAKER.findall(text)) >= 3:
        text = _SPEAKER.sub("", text)
    text = FRAMING.abbreviation.sub(lambda found: found.group(1).replace(".", ""), text)
    sentences: list[str] = []
    items = 0
    for line in _INLINE_ITEM.sub("\n", text).split("\n"):
        item = _ITEM.match(line)
        items += item is not None
        rest = line[item.end() :] if item else line
        sentences += [
            s[:LONGEST] for s in (piece.strip(" \t*_#>~-").lower() for piece in _SENTENCE_END.split(rest)) if s
        ]
    start = 0
    while start < min(3, len(sentences) - 1) and FRAMING.pleasantry.fullmatch(sentences[start]):
        start += 1
    return ParsedAnswer(tuple(sentences), start, items, code)


def _without_quotations(text: str) -> str:
    """Quoted words say what somebody says, not what the model does; an answer quoted as a whole is the answer."""
    bare = text.strip()
    if len(bare) > 2 and bare[0] == bare[-1] == '"' and '"' not in bare[1:-1]:
        return bare[1:-1]
    return _SINGLE_QUOTED.sub("'quoted'", _QUOTED.sub('"quoted"', text))
