"""A named table of prompts: the value that every stage of the project passes around."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, overload

import numpy as np
import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts.targets import affirmative_target
from mechrefusal.prompts.values import is_blank, is_missing, whole_characters

COLUMNS = ("id", "text", "category")


@dataclass(frozen=True, eq=False, repr=False)
class PromptSet:
    """Prompts with what their source says about them, in a fixed order.

    `table` has one row a prompt and at least the columns `id` (str, unique), `text` (str, never blank) and `category`
    (str, may be empty); other columns are as the source has them: `target` (str or None), `targets` (list of str),
    `label`, `type`, `context`, `functional_category` and so on. It is copied at construction and
    indexed anew; half of a surrogate pair in it is replaced by U+FFFD, with a warning.

    `dropped` counts the rows of the source that had no text and are therefore not in the table.

    Raises:
        MechrefusalError: a column is missing, an id occurs twice or is missing, or a text is blank or not a string.
    """

    name: str
    table: pd.DataFrame = field(repr=False)
    dropped: int = 0

    def __post_init__(self) -> None:
        missing = [column for column in COLUMNS if column not in self.table]
        if missing:
            raise MechrefusalError(
                f"prompt set '{self.name}' lacks the columns {missing}: give a table with at least {list(COLUMNS)}"
            )
        table = whole_characters(self.table.reset_index(drop=True).copy(), f"prompt set '{self.name}'")
        for row, text in enumerate(table["text"]):
            if not isinstance(text, str) or not text.strip():
                raise MechrefusalError(
                    f"prompt set '{self.name}' has no text in row {row} ({text!r}): drop the row or fill it"
                )
        if without := [row for row, identity in enumerate(table["id"]) if is_missing(identity)]:
            raise MechrefusalError(f"prompt set '{self.name}' has no id in row {without[0]}: give each prompt one")
        if not isinstance(table["id"].dtype, pd.StringDtype):  # as those of a part of another set are
            table["id"] = table["id"].astype(str)
        if any(is_missing(category) for category in table["category"]):
            table["category"] = pd.Series(
                ["" if is_missing(category) else category for category in table["category"]], dtype=object
            )
        repeated = table["id"][table["id"].duplicated()]
        if len(repeated):
            raise MechrefusalError(
                f"prompt set '{self.name}' has the id '{repeated.iloc[0]}' twice: ids must be unique"
            )
        object.__setattr__(self, "table", table)

    @classmethod
    def from_texts(cls, name: str, texts: Sequence[str], category: str = "") -> Self:
        """A set of bare texts, with ids `<name>-0001`, `<name>-0002`, ..."""
        if isinstance(texts, str):
            raise MechrefusalError(f"prompt set '{name}' was given one string: give a list of texts")
        ids = [f"{name}-{number:04d}" for number in range(1, len(texts) + 1)]
        return cls.of_rows(name, [(id, text, category) for id, text in zip(ids, texts, strict=True)], COLUMNS)

    @classmethod
    def of_rows(cls, name: str, rows: Sequence[tuple[Any, ...]], columns: Sequence[str]) -> Self:
        """A set of rows, each with a value for every column."""
        return cls(name, pd.DataFrame(rows, columns=list(columns), dtype=object))

    @property
    def texts(self) -> list[str]:
        """The prompts, in order."""
        return self.table["text"].tolist()

    @property
    def ids(self) -> list[str]:
        """The prompts' ids, in order."""
        return self.table["id"].tolist()

    @property
    def targets(self) -> list[str]:
        """What an answer to each prompt begins with that complies, "" where a prompt has no target."""
        column = self.table["target"] if "target" in self.table else [""] * len(self)
        return [target if isinstance(target, str) else "" for target in column]

    def take(self, n: int) -> Self:
        """The first `n` prompts; all of them where there are fewer."""
        if n < 0:
            raise MechrefusalError(f"cannot take {n} prompts of '{self.name}': give a number that is not negative")
        return self[:n]

    def with_targets(self) -> Self:
        """The same prompts with a column `target`: the source's own where it has one, the rule's where it has none.

        The rule reads the column `behavior` instead of the text where a source keeps the request apart from its
        context.
        """
        table = self.table.copy()
        requests = table["text"]
        if "behavior" in table:
            requests = table["behavior"].where([not is_blank(behaviour) for behaviour in table["behavior"]], requests)
        targets = [
            affirmative_target(request) if is_blank(published) else published
            for published, request in zip(self.targets, requests, strict=True)
        ]
        table["target"] = pd.Series(targets, dtype=object, index=table.index)
        return type(self)(self.name, table, self.dropped)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __repr__(self) -> str:
        return f"PromptSet({self.name!r}, {len(self)} prompts)"

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: "slice | Sequence[int] | Sequence[bool] | np.ndarray | pd.Series") -> Self: ...
    def __getitem__(self, key: Any) -> "str | PromptSet":
        """One text by its number; a set by a slice, a list of numbers (each at most once), or one boolean a prompt."""
        if isinstance(key, slice):
            return self._rows(np.arange(len(self))[key])
        if isinstance(key, (list, tuple, np.ndarray, pd.Series)):
            chosen = np.asarray(key)
            if chosen.dtype == bool:
                if chosen.shape != (len(self),):
                    raise MechrefusalError(
                        f"a mask of {chosen.size} values does not fit prompt set '{self.name}' of {len(self)}"
                    )
                return self._rows(np.flatnonzero(chosen))
            return self._rows(np.array([self._position(number) for number in chosen], dtype=int))
        return str(self.table["text"].iloc[self._position(key)])

    def _position(self, number: Any) -> int:
        position = operator.index(number)
        if not -len(self) <= position < len(self):
            # An IndexError, so that Python's own protocols (reversed, old-style iteration) keep working.
            raise IndexError(f"prompt {position} is not in set '{self.name}' of {len(self)} prompts")
        return position % len(self)

    def _rows(self, positions: np.ndarray) -> Self:
        return type(self)(self.name, self.table.iloc[positions], self.dropped)
