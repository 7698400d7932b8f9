"""Harmful and harmless prompts as the geometry takes them: twins among them, the folds they are dealt to, positions."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal, Protocol

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError

FOLDS = 16
"""Prompt i of each class belongs to fold i % 16, or where prompts are twins, the i-th twins do (`Directions.paired`);
an even number, so that even folds are the even prompts."""

Side = Literal["harmful", "harmless"]
SIDES: tuple[Side, Side] = ("harmful", "harmless")
"""Order of the two wherever both stand in one array."""


class Texts(Protocol):
    """Prompts that can be counted and gone through: a list of strings, or a `prompts.PromptSet`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...


class Contrast(Protocol):
    """Anything with harmful and harmless prompts: a `prompts.Split`, or any object that holds two lists of strings."""

    @property
    def harmful(self) -> Texts:
        """Requests to be refused."""

    @property
    def harmless(self) -> Texts:
        """Requests to be answered."""


@dataclass(frozen=True)
class Lists:
    """A `Contrast` of plain texts."""

    harmful: Texts
    harmless: Texts


def dealt(contrast: Contrast) -> tuple[list[list[int]], bool]:
    """The fold of every harmful and every harmless prompt, and whether twins were kept together.

    Twins are dealt out in turn by the name that they share, then each class's prompts without a twin on the other side.
    """
    names = [twin_names(each) or [None] * len(each) for each in (contrast.harmful, contrast.harmless)]
    # By name, not by place: the audit of leaks may have dropped a prompt of one side only.
    both = set(names[0]) & set(names[1]) - {None}
    place = {name: number for number, name in enumerate(dict.fromkeys(name for name in names[0] if name in both))}
    folds = []
    for each in names:
        alone = count(len(place))
        folds.append([(place[name] if name in both else next(alone)) % FOLDS for name in each])
    return folds, bool(both)


def labels(contrast: Contrast) -> tuple[list[Hashable], list[Hashable]]:
    """A label of every harmful and of every harmless prompt: twins share theirs, other prompts have their own."""
    of_sides: list[list[Hashable]] = []
    for side, texts in (("harmful", contrast.harmful), ("harmless", contrast.harmless)):
        twins = twin_names(texts) or [None] * len(texts)
        ids = getattr(texts, "ids", range(len(texts)))
        of_sides.append([(side, name) if twin is None else twin for twin, name in zip(twins, ids, strict=True)])
    return of_sides[0], of_sides[1]


def twin_names(texts: Texts) -> list[str | None] | None:
    """What each prompt's column `twin` says, None in it where it says nothing; None where there is no such column."""
    if not isinstance(texts, prompts.PromptSet) or "twin" not in texts.table:
        return None
    column = texts.table["twin"]
    return [None if missing else str(name) for name, missing in zip(column, column.isna(), strict=True)]


def post_instruction_positions(tokenizer, texts: Texts) -> tuple[int, ...]:
    """Positions, from the end, of the chat template after the instruction (those that all `texts` share)."""
    return positions_after(segments_of(tokenizer, texts))


def last_instruction_position(tokenizer, texts: Texts) -> int:
    """Position, from the end, of the last token of the instruction: where harmfulness is read (2507.11878).

    It stands right before the first of `post_instruction_positions`.

    Raises:
        MechrefusalError: no texts; a template with nothing after the instruction; prompts that disagree; a prompt whose
            instruction has no token of its own.
    """
    segments = segments_of(tokenizer, texts)
    lengths = sorted({len(each.after) for each in segments})
    if len(lengths) != 1 or lengths[0] == 0:
        raise MechrefusalError(
            f"{len(segments)} prompts have {lengths} tokens of the chat template after the instruction; the last "
            "instruction token needs prompts that all have the same number, one at least"
        )
    for text, each in zip(texts, segments, strict=True):
        if not each.instruction + each.attack:
            raise MechrefusalError(
                f"the instruction {text!r} has no token of its own in this chat template; leave it out"
            )
    return -lengths[0] - 1


def positions_after(segments: Sequence[prompts.Segments]) -> tuple[int, ...]:
    """`post_instruction_positions` of prompts that are in their chat template already."""
    return tuple(range(-max(1, min(len(each.after) for each in segments)), 0))


def segments_of(tokenizer, texts: Texts) -> list[prompts.Segments]:
    """Each text in the chat template."""
    return [prompts.segments(tokenizer, text) for text in texts]
