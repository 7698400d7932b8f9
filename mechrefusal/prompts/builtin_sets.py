"""The project's own prompts: named, disjoint splits, so that a study needs no download."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from mechrefusal.prompts.pairs import PairSet
from mechrefusal.prompts.prompt_set import COLUMNS, PromptSet
from mechrefusal.prompts.sources import csv_rows
from mechrefusal.prompts.splits import TWINS, UTILITY, Split, member, text_hash

_TWIN_SPLITS = ("train", "pool", "direction", "validation", "evaluation")


@dataclass(frozen=True)
class Builtin:
    """Own prompts, each in one place only and ordered by hash, so that the first n of any set are an unbiased sample.

    train, pool, direction, validation, evaluation: twins, a harmful request (with an affirmative `target`) and a
    harmless one. overrefusal: safe requests that sound unsafe. contrast: unsafe ones that resemble them.
    utility_train, utility_evaluation: plain instructions. pairs: harmful and harmless requests in nearly the same
    words, for patching activations.
    """

    train: Split
    pool: Split
    direction: Split
    validation: Split
    evaluation: Split
    overrefusal: PromptSet
    contrast: PromptSet
    utility_train: PromptSet
    utility_evaluation: PromptSet
    pairs: PairSet

    def sets(self) -> dict[str, PromptSet]:
        """Every set by its name (`direction_harmful`, `overrefusal`, `pairs_harmless`), as `leakage` takes them."""
        twins = {
            prompts.name: prompts
            for name in _TWIN_SPLITS
            for prompts in (getattr(self, name).harmful, getattr(self, name).harmless)
        }
        others = (self.overrefusal, self.contrast, self.utility_train, self.utility_evaluation)
        pairs = (self.pairs.harmful, self.pairs.harmless)
        return twins | {prompts.name: prompts for prompts in others + pairs}


def builtin() -> Builtin:
    """The prompts that come with the package. Each call gives tables of its own, so that they may be changed."""
    return deepcopy(_builtin())


@cache
def _builtin() -> Builtin:
    twins = _rows("twins")
    by_split = {name: [row for row in twins if member(row["harmful"], TWINS) == name] for name in TWINS}
    # Added later, so that the other splits stay what they were.
    by_split["train"] = _ordered([*by_split["train"], *_rows("twins_train")], "harmful")
    plain_instructions = _rows("utility", text="prompt")
    resembling = _rows("overrefusal", text="prompt")

    def of_label(name: str, label: str) -> PromptSet:
        rows = [row for row in resembling if row["label"] == label]
        values = [(row["id"], row["prompt"], row["type"], row["type"], label) for row in rows]
        return PromptSet.of_rows(name, values, ("id", "text", "category", "type", "label"))

    def utility(part: str) -> PromptSet:
        rows = [row for row in plain_instructions if member(row["prompt"], UTILITY) == part]
        values = [(row["id"], row["prompt"], row["category"]) for row in rows]
        return PromptSet.of_rows(f"utility_{part}", values, COLUMNS)

    return Builtin(
        **{name: Split.of_twins(name, rows) for name, rows in by_split.items()},
        overrefusal=of_label("overrefusal", "safe"),
        contrast=of_label("contrast", "unsafe"),
        utility_train=utility("train"),
        utility_evaluation=utility("evaluation"),
        pairs=PairSet.of_rows(_rows("pairs")),
    )


def _rows(name: str, text: str = "harmful") -> list[Mapping[str, str]]:
    """The rows of a file of package data, ordered by the hash of their column `text`."""
    # Through the parent package: importing the data folder as a module would hide the function `builtin`.
    file = files("mechrefusal.prompts") / "builtin" / f"{name}.csv"
    table = csv_rows(file.read_text(encoding="utf-8").replace("\r\n", "\n"), f"builtin/{name}.csv")
    return _ordered([row for _, row in table.rows], text)


def _ordered(rows: list[Mapping[str, str]], text: str) -> list[Mapping[str, str]]:
    return sorted(rows, key=lambda row: text_hash(row[text]))
