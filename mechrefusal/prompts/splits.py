"""Splits that are fixed by the text alone: adding a prompt never moves another one."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts.plain_text import plain
from mechrefusal.prompts.prompt_set import PromptSet

# Shares of the twins, in the order in which they lie on the hash. `direction` finds the direction, `validation`
# selects the carrier, `evaluation` is what rates are reported on, `pool` is what the arms learn to refuse; the harmless
# sides of `train` and `pool` are answered in utility training. With the built-in twins (280): train 43, pool 49,
# direction 75, validation 43, evaluation 70.
TWINS = {"train": 0.14, "pool": 0.18, "direction": 0.30, "validation": 0.14, "evaluation": 0.24}
# With the built-in instructions (100): train 59, evaluation 41.
UTILITY = {"train": 0.6, "evaluation": 0.4}


SIDES = ("harmful", "harmless")


@dataclass(frozen=True)
class Split:
    """The two sides of the same twins: row i of `harmful` and of `harmless` differ in what they ask, not in form."""

    harmful: PromptSet
    harmless: PromptSet

    @classmethod
    def of(cls, harmful: Sequence[str], harmless: Sequence[str]) -> "Split":
        """Two lists of strings of one's own; they need not be twins."""
        return cls(PromptSet.from_texts("harmful", harmful), PromptSet.from_texts("harmless", harmless))

    @classmethod
    def of_twins(cls, name: str, rows: Sequence[Mapping[str, str]]) -> "Split":
        """Sets `<name>_harmful` (with targets) and `<name>_harmless`, of rows with id, category and both sides."""
        sides = [
            PromptSet.of_rows(
                f"{name}_{side}",
                [(f"{row['id']}-{side}", row[side], row["category"], row["id"]) for row in rows],
                ("id", "text", "category", "twin"),
            )
            for side in SIDES
        ]
        return cls(sides[0].with_targets(), sides[1])

    def take(self, n: int) -> "Split":
        """The first `n` twins."""
        return Split(self.harmful.take(n), self.harmless.take(n))

    def __len__(self) -> int:
        return len(self.harmful)


def normalised(text: str) -> str:
    """What counts as the same prompt.

    Compatibility characters, case, white space, kind of quotes and dashes, and outer punctuation do not count.
    """
    line = " ".join(folded(text).split())
    return line.strip(" .,;:!?'\"-") or line


def folded(text: str) -> str:
    """`text` without differences of compatibility characters, case, kind of quotes and dashes, or unseen characters."""
    return plain(text).casefold()


def text_hash(text: str) -> str:
    """sha256 of the normalised text, as 64 hexadecimal digits. Prompts are kept in this order."""
    return hashlib.sha256(normalised(text).encode("utf-8", "surrogatepass")).hexdigest()


def member(text: str, shares: Mapping[str, float]) -> str:
    """The split that `text` belongs to: the one whose share of [0, 1) its hash falls into."""
    bounds = list(accumulate(shares.values()))
    if abs(bounds[-1] - 1) > 1e-9:
        raise MechrefusalError(f"the shares of the splits {list(shares)} sum to {bounds[-1]:g}: they must sum to 1")
    place = int(text_hash(text)[:13], 16) / 16**13  # 52 bits: exact as a float, and below 1
    return list(shares)[min(bisect_right(bounds, place), len(bounds) - 1)]
