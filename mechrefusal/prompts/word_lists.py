"""Lists of words and phrases that rules look for, in text files with a comment and examples for each.

A file holds lists in this form, where a line that begins with "#" is a comment:

    # What a model says that does not do what it was asked.
    #+ i'm sorry, but i can't help with that
    #- you can help with that
    [declines]
    \\bi {cannot} {act}
    ^no can do\\b|\\bcount me out\\b

The lines of a list are alternatives of one regular expression, in this order; "|" parts alternatives within a line, and
`{cannot}` stands for a list further up. `#+` and `#-` are texts in which the list finds something or nothing (in
quotation marks where spaces begin or end them), which the tests try. After the name, `whole words` puts the
alternatives between word boundaries, `at the start` finds them where a text begins, `whole text` where they are all of
it, and `any case` finds capitals too.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mechrefusal.errors import MechrefusalError

OPTIONS = {"whole words": r"\b{}\b", "at the start": "^{}", "whole text": r"^{}\Z", "any case": "{}"}
"""What may stand after the name of a list, and what it makes of the list's expression."""
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
    """The lists of some files; each is an attribute, the pattern that rules search with.

    Attributes:
        lists: by name, in the order of the files.

    Raises:
        MechrefusalError: a file is not in form: a list without name, comment or alternative, an unknown option, a list
            or an alternative that is there twice, an empty one, or one that is no regular expression. The message names
            file and line.
    """

    def __init__(self, *paths: Path) -> None:
        self.lists: dict[str, WordList] = {}
        for section in (section for path in paths for section in sections(path)):
            if section.name in (*self.lists, "lists"):
                raise MechrefusalError(
                    f"{section.where}: the name '{section.name}' is taken above; join the two, or give another"
                )
            self.lists[section.name] = _word_list(section, self.lists)
        vars(self).update({name: each.pattern for name, each in self.lists.items()})

    def __getattr__(self, name: str) -> re.Pattern[str]:
        """Called where there is no such attribute, so no such list."""
        raise AttributeError(f"no word list '{name}'")


@dataclass(frozen=True)
class Section:
    """One named part of a file: its options, the comment above it, and its lines, each with where it stands."""

    where: str
    name: str
    options: tuple[str, ...]
    comment: tuple[str, ...]
    lines: list[tuple[str, str]]

    def examples(self, mark: str) -> tuple[str, ...]:
        """The texts in the comment behind a mark, "#+" or "#-"."""
        texts = [line.removeprefix(f"{mark} ") for line in self.comment if line.startswith(f"{mark} ")]
        return tuple(text[1:-1] if text[:1] == text[-1:] == '"' else text for text in texts)


def sections(path: Path) -> Iterator[Section]:
    """The sections of a file: a name in square brackets, a comment above it, lines under it.

    Raises:
        MechrefusalError: a line outside of a section, or a section without a comment or with an unknown option.
    """
    comment: list[str] = []
    section: Section | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path.name}, line {number}"
        if not line.strip():
            comment = []
        elif line.startswith("#"):
            comment.append(line)
        elif header := _HEADER.fullmatch(line):
            if section:
                yield section
            section = Section(where, header[1], tuple(header[2].split(", ")[1:]), tuple(comment), [])
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


def _word_list(section: Section, above: Mapping[str, WordList]) -> WordList:
    """The list, in which those above stand for their names."""
    alternatives: list[str] = []
    for where, line in section.lines:
        for alternative in _alternatives(line):
            if not alternative.strip() or alternative != alternative.strip():
                raise MechrefusalError(
                    f"{where}: an alternative is empty, or a space begins or ends it: {line!r:.60}; write '[ ]' "
                    "for such a space"
                )
            if missing := set(_REFERENCE.findall(alternative)) - set(above):
                raise MechrefusalError(f"{where}: no list '{min(missing)}' stands above; put it there")
            expanded = _REFERENCE.sub(lambda reference: above[reference[1]].expression, alternative)
            if expanded in alternatives:
                raise MechrefusalError(f"{where}: {alternative!r:.60} is in list '{section.name}' twice; leave one out")
            alternatives.append(expanded)
    if not alternatives:
        raise MechrefusalError(f"{section.where}: list '{section.name}' is empty; give one alternative a line")
    expression = f"(?:{'|'.join(alternatives)})"
    for option in section.options:
        expression = OPTIONS[option].format(expression)
    try:
        pattern = re.compile(expression, re.IGNORECASE if "any case" in section.options else 0)
    except (re.error, OverflowError) as error:
        raise MechrefusalError(
            f"{section.where}: list '{section.name}' is no regular expression ({error}); mend it"
        ) from error
    return WordList(section.name, expression, pattern, section.examples("#+"), section.examples("#-"))


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
