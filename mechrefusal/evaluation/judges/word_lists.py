"""What the refusal rules look for: lists of words and phrases, in files with a comment and examples for each.

A file in `words/` holds lists in this form, where a line that begins with "#" is a comment:

    # What a model says that does not do what it was asked.
    #+ i'm sorry, but i can't help with that
    #- you can help with that
    [declines]
    \\bi {cannot} {act}
    ^no can do\\b|\\bcount me out\\b

The lines of a list are alternatives of one regular expression, in this order; "|" parts alternatives within a line, and
`{cannot}` stands for a list further up in the file. `#+` and `#-` are texts in which the list finds something or
nothing (in quotation marks where spaces begin or end them), which the tests try. After the name, `whole words` puts the
alternatives between word boundaries, and `any case` finds capitals too; the rules read answers in lower case.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mechrefusal.errors import MechrefusalError

FOLDER = Path(__file__).parent / "words"
OPTIONS = ("whole words", "any case")
_HEADER = re.compile(r"\[(\w+)((?:, [^],]+)*)\]")
_REFERENCE = re.compile(r"\{([a-z]\w*)\}")
_PIECE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.")
"""What stands together in a regular expression: an escaped character, a class of characters, or one character."""


@dataclass(frozen=True)
class WordList:
    """One list: its alternatives as a regular expression, and the examples in which it finds something or nothing."""

    name: str
    expression: str
    pattern: re.Pattern[str]
    found_in: tuple[str, ...]
    not_found_in: tuple[str, ...]


class WordLists:
    """The lists of one file; each is an attribute, the pattern that rules search with.

    Attributes:
        lists: by name, in the order of the file.

    Raises:
        MechrefusalError: the file is not in form: a list without name, comment or alternative, an unknown option, a
            list or an alternative that is there twice, an empty one, or one that is no regular expression. The message
            names file and line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lists: dict[str, WordList] = {}
        for section in _sections(path):
            if section.name in (*self.lists, "lists", "path"):
                raise MechrefusalError(
                    f"{section.where}: the name '{section.name}' is taken above; join the two, or give another"
                )
            self.lists[section.name] = section.word_list(self.lists)
        vars(self).update({name: each.pattern for name, each in self.lists.items()})

    def __getattr__(self, name: str) -> re.Pattern[str]:
        """Called where there is no such attribute, so no such list."""
        raise AttributeError(f"no word list '{name}' in {vars(self).get('path')}")


@dataclass(frozen=True)
class _Section:
    """The lines of one list; `where` and the numbers say which they are."""

    where: str
    name: str
    options: tuple[str, ...]
    comment: tuple[str, ...]
    lines: list[tuple[str, str]]

    def word_list(self, above: Mapping[str, WordList]) -> WordList:
        """The list, in which those above stand for their names."""
        alternatives: list[str] = []
        for where, line in self.lines:
            for alternative in _alternatives(line):
                if not alternative.strip() or alternative != alternative.strip():
                    raise MechrefusalError(
                        f"{where}: an alternative is empty, or a space begins or ends it: {line!r:.60}; write '[ ]' "
                        "for such a space"
                    )
                if missing := set(_REFERENCE.findall(alternative)) - set(above):
                    raise MechrefusalError(f"{where}: no list '{min(missing)}' stands above; put it there")
                expanded = _REFERENCE.sub(lambda found: above[found[1]].expression, alternative)
                if expanded in alternatives:
                    raise MechrefusalError(
                        f"{where}: {alternative!r:.60} is in list '{self.name}' twice; leave one out"
                    )
                alternatives.append(expanded)
        if not alternatives:
            raise MechrefusalError(f"{self.where}: list '{self.name}' is empty; give one alternative a line")
        expression = f"(?:{'|'.join(alternatives)})"
        if "whole words" in self.options:
            expression = rf"\b{expression}\b"
        try:
            pattern = re.compile(expression, re.IGNORECASE if "any case" in self.options else 0)
        except (re.error, OverflowError) as error:
            raise MechrefusalError(
                f"{self.where}: list '{self.name}' is no regular expression ({error}); mend it"
            ) from error
        return WordList(self.name, expression, pattern, self._examples("#+ "), self._examples("#- "))

    def _examples(self, mark: str) -> tuple[str, ...]:
        texts = [line.removeprefix(mark) for line in self.comment if line.startswith(mark)]
        return tuple(text[1:-1] if text[:1] == text[-1:] == '"' else text for text in texts)


def _sections(path: Path) -> Iterator[_Section]:
    comment: list[str] = []
    section: _Section | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path.name}, line {number}"
        if not line.strip():
            comment = []
        elif line.startswith("#"):
            comment.append(line)
        elif header := _HEADER.fullmatch(line):
            if section:
                yield section
            section = _Section(where, header[1], tuple(header[2].split(", ")[1:]), tuple(comment), [])
            if unknown := set(section.options) - set(OPTIONS):
                raise MechrefusalError(f"{where}: unknown option '{min(unknown)}'; known: {', '.join(OPTIONS)}")
            if not any(text.startswith("# ") for text in comment):
                raise MechrefusalError(f"{where}: list '{section.name}' has no comment; say above it what it is for")
        elif section is None:
            raise MechrefusalError(f"{where}: {line!r:.60} stands in no list; begin one with [its name]")
        else:
            section.lines.append((where, line))
    if section:
        yield section


def _alternatives(line: str) -> list[str]:
    """What "|" parts outside of brackets."""
    parts = [""]
    depth = 0
    for piece in _PIECE.findall(line):
        depth += {"(": 1, ")": -1}.get(piece, 0)
        if piece == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


@cache
def word_lists(name: str) -> WordLists:
    """The lists of `words/<name>.txt`, read once."""
    return WordLists(FOLDER / f"{name}.txt")


def occurs(sentences: Iterable[str], *patterns: re.Pattern[str]) -> bool:
    """Whether any of the patterns is found in any of the sentences."""
    return any(pattern.search(sentence) for sentence in sentences for pattern in patterns)
