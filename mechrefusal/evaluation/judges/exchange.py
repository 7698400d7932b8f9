"""A prompt and its answer, as the rules see them: the model's own sentences, and what else the answer consists of."""

import re
from dataclasses import dataclass
from typing import Self

from mechrefusal.evaluation.judges.prompt_types import PromptType, prompt_type
from mechrefusal.evaluation.judges.word_lists import WORDS

LIST = 3
"""Items from which on a list may be an answer."""
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
class Exchange:
    """A prompt, its type, and its answer, taken apart.

    sentences: the model's own words, lower case, one sentence each, greetings included, without quotations, code and
    list marks. start: index of the first sentence that is more than a greeting. items: lines of a list. code: whether
    there is a block of code.
    """

    prompt: str
    type: PromptType
    sentences: tuple[str, ...]
    start: int
    items: int
    code: bool

    @classmethod
    def of(cls, prompt: str, completion: str) -> Self:
        """Take a prompt and a completion as `plain_text.plain` gives them.

        Where a text in another voice was asked for, lines of a dialogue ("Guard: I cannot let you in.") are left out.
        """
        kind = prompt_type(prompt)
        text = _CODE_BLOCK.sub("\n", completion).replace("`", "'")
        text = _without_quotations(_PARTED.sub(", ", text))
        if kind is PromptType.WRITING or len(_SPEAKER.findall(text)) >= 3:
            text = _SPEAKER.sub("", text)
        text = WORDS.abbreviation.sub(lambda abbreviation: abbreviation.group(1).replace(".", ""), text)
        sentences: list[str] = []
        items = 0
        for line in _INLINE_ITEM.sub("\n", text).split("\n"):
            item = _ITEM.match(line)
            items += item is not None
            pieces = _SENTENCE_END.split(line[item.end() :] if item else line)
            sentences += [s[:LONGEST] for s in (piece.strip(" \t*_#>~-").lower() for piece in pieces) if s]
        start = 0
        while start < min(3, len(sentences) - 1) and WORDS.pleasantry.fullmatch(sentences[start]):
            start += 1
        return cls(prompt, kind, tuple(sentences), start, items, "```" in completion)

    def first(self, n: int) -> tuple[str, ...]:
        """The first `n` sentences after greetings, and the greetings."""
        return self.sentences[: self.start + n]

    @property
    def opening(self) -> tuple[str, ...]:
        """The sentences in which declining is declining the request: the first three, with greetings."""
        return self.first(3)

    @property
    def body(self) -> tuple[str, ...]:
        """Sentences after greetings."""
        return self.sentences[self.start :]

    @property
    def has_list(self) -> bool:
        """Whether the answer has a list that may be what was asked for."""
        return self.items >= LIST

    def after_but(self, index: int) -> tuple[str, ...]:
        """What comes after the first "but" or "however" of sentence `index`, and after the sentence."""
        rest = WORDS.but_however.split(self.sentences[index], maxsplit=1)[1:]
        return (*rest, *self.sentences[index + 1 :])


def _without_quotations(text: str) -> str:
    """Quoted words say what somebody says, not what the model does; an answer quoted as a whole is the answer."""
    bare = text.strip()
    if len(bare) > 2 and bare[0] == bare[-1] == '"' and '"' not in bare[1:-1]:
        return bare[1:-1]
    return _SINGLE_QUOTED.sub("'quoted'", _QUOTED.sub('"quoted"', text))
