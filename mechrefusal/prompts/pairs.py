"""Pairs of prompts that differ in what they ask and in little else, for patching one's activations into the other."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts.prompt_set import PromptSet
from mechrefusal.prompts.splits import Split
from mechrefusal.prompts.templates import segments
from mechrefusal.prompts.values import whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pair:
    """A harmful request and a harmless one in the same words where possible."""

    id: str
    category: str
    harmful: str
    harmless: str

    def __post_init__(self) -> None:
        if not self.harmful.strip() or not self.harmless.strip():
            raise MechrefusalError(f"pair '{self.id}' has a blank side: give it both a harmful and a harmless text")
        for side in ("harmful", "harmless"):
            object.__setattr__(self, side, whole(getattr(self, side)))


@dataclass(frozen=True)
class PairSet:
    """Pairs in a fixed order.

    `left_out` names the pairs that `equal_length` could not keep, each with the number of tokens of its two prompts.
    """

    pairs: tuple[Pair, ...]
    left_out: tuple[tuple[Pair, int, int], ...] = ()

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, str]]) -> "PairSet":
        """Pairs of rows with id, category, harmful and harmless."""
        return cls(tuple(Pair(row["id"], row["category"], row["harmful"], row["harmless"]) for row in rows))

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    @overload
    def __getitem__(self, key: int) -> Pair: ...
    @overload
    def __getitem__(self, key: slice) -> "PairSet": ...
    def __getitem__(self, key: int | slice) -> "Pair | PairSet":
        return PairSet(self.pairs[key], self.left_out) if isinstance(key, slice) else self.pairs[key]

    @property
    def harmful(self) -> PromptSet:
        """The harmful sides as a prompt set, in the order of the pairs."""
        return self._side("harmful")

    @property
    def harmless(self) -> PromptSet:
        """The harmless sides as a prompt set, in the order of the pairs."""
        return self._side("harmless")

    def equal_length(self, tokenizer: "PreTrainedTokenizerBase", *, system: str | None = None) -> "PairSet":
        """The pairs whose two prompts have the same number of tokens in the chat template, segment by segment.

        Only these can be patched position by position. The others are kept in `left_out` with both numbers of tokens
        (of the whole prompt), after those that had been left out before.
        """
        equal: list[Pair] = []
        left_out = list(self.left_out)
        for pair in self.pairs:
            harmful = segments(tokenizer, pair.harmful, system=system)
            harmless = segments(tokenizer, pair.harmless, system=system)
            if harmful.lengths == harmless.lengths:
                equal.append(pair)
            else:
                left_out.append((pair, len(harmful.prompt_ids), len(harmless.prompt_ids)))
        return PairSet(tuple(equal), tuple(left_out))

    @classmethod
    def matched(cls, sides: Split, tokenizer: "PreTrainedTokenizerBase") -> "PairSet":
        """Pairs of equal token length among prompts that were not written as pairs, each prompt in one at most.

        A prompt goes with its twin (the column `twin` names both) where that has its length, segment by segment, else
        with the first harmless one of that length that has no other. They share a form only as far as twins do: what
        patching finds on others is of the whole prompt, not of the word that makes it harmful.
        """
        lengths = [
            [segments(tokenizer, text).lengths for text in side.texts] for side in (sides.harmful, sides.harmless)
        ]
        place = {twin: row for row, twin in enumerate(_twins(sides.harmless)) if twin is not None}
        twins = [place.get(twin) if twin is not None else None for twin in _twins(sides.harmful)]
        taken = {
            row: other for row, other in enumerate(twins) if other is not None and lengths[0][row] == lengths[1][other]
        }
        free = [row for row in range(len(lengths[1])) if row not in taken.values()]
        for row, length in enumerate(lengths[0]):
            other = next((each for each in free if lengths[1][each] == length), None)
            if row not in taken and other is not None:
                taken[row] = other
                free.remove(other)
        harmful, harmless = sides.harmful, sides.harmless
        categories = harmful.table["category"].tolist()
        return cls(
            tuple(
                Pair(harmful.ids[row], categories[row], harmful[row], harmless[other])
                for row, other in sorted(taken.items())
            )
        )

    def _side(self, side: str) -> PromptSet:
        rows = [(f"{pair.id}-{side}", getattr(pair, side), pair.category, pair.id) for pair in self.pairs]
        return PromptSet.of_rows(f"pairs_{side}", rows, ("id", "text", "category", "pair"))


def _twins(prompts: PromptSet) -> list[str | None]:
    if "twin" not in prompts.table:
        return [None] * len(prompts)
    return [None if pd.isna(twin) else str(twin) for twin in prompts.table["twin"]]
