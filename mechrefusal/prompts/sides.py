"""Prompts of one's own: a file of them, or the two sides of a behaviour as two columns or two files."""

from pathlib import Path

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import sources
from mechrefusal.prompts.pairs import Pair, PairSet
from mechrefusal.prompts.prompt_set import PromptSet
from mechrefusal.prompts.splits import SIDES, Split

TEXT = ("prompt", "text", "instruction", "question", "goal", "behavior", "forbidden_prompt")
"""Columns that hold the prompt of a file, the first of them that there is."""


def read_plain(path: str | Path, name: str) -> PromptSet:
    """A text file with one prompt a line, or a CSV, JSON, JSONL or Parquet file with a column of `TEXT`.

    Columns `id`, `category`, `target` and `label` are kept. Rows without text are left out and counted in `dropped`.

    Raises:
        MechrefusalError: a file that cannot be read, has no such column, or holds no prompt.
    """
    rows = sources.load(path, one_a_line=True)
    column = next((each for each in TEXT if each in rows.lower_columns), None)
    if column is None:
        raise MechrefusalError(
            f"{rows.where} has none of the columns {', '.join(TEXT)} (found {', '.join(rows.columns)}): rename one"
        )
    prompts = [
        {
            "id": row.get("id", "").strip() or f"{name}-{number:04d}",
            "text": row[column],
            "category": row.get("category", ""),
            **{extra: row[extra] or None for extra in ("target", "label") if extra in row},
        }
        for number, row in rows.rows
        if row[column].strip()
    ]
    if not prompts:
        raise MechrefusalError(f"{rows.where} holds no prompt: fill the column '{column}'")
    return PromptSet(name, pd.DataFrame(prompts, dtype=object), rows.blank + len(rows.rows) - len(prompts))


def read_sides(name: str, *, path: str = "", harmful: str = "", harmless: str = "") -> Split:
    """The two sides of a behaviour, in the order of the file.

    Args:
        name: of the sets, `<name>_harmful` and `<name>_harmless`.
        path: a file with the columns `harmful` and `harmless`, whose rows are twins (of one prompt and its other
            side); or
        harmful, harmless: a file each, as `read_plain` reads them, of prompts that need not be twins.

    Raises:
        MechrefusalError: neither or both ways, a file that cannot be read, or a side without a prompt.
    """
    require_one_way(name, path=path, harmful=harmful, harmless=harmless)
    if not path:
        sides = [read_plain(file, f"{name}_{side}") for side, file in zip(SIDES, (harmful, harmless), strict=True)]
        return Split(sides[0].with_targets(), sides[1])
    return Split.of_twins(name, _twins(name, path))


def require_one_way(name: str, *, path: str, harmful: str, harmless: str) -> None:
    """Raise MechrefusalError unless either `path` is given, or `harmful` and `harmless` are."""
    if bool(path) == bool(harmful or harmless) or bool(harmful) != bool(harmless):
        raise MechrefusalError(
            f"prompts {name}: give path (a file with the columns harmful and harmless), or both of the others; they "
            f"have path '{path}', harmful '{harmful}', harmless '{harmless}'"
        )


def read_pairs(name: str, *, path: str = "", harmful: str = "", harmless: str = "") -> PairSet:
    """Pairs for patching, from the same files as `read_sides`: row i of one side goes with row i of the other.

    Raises:
        MechrefusalError: what `read_sides` raises, or two files of unequal length.
    """
    if path:
        return PairSet.of_rows(_twins(name, path))
    split = read_sides(name, harmful=harmful, harmless=harmless)
    if len(split.harmful) != len(split.harmless):
        raise MechrefusalError(
            f"prompts {name}: '{harmful}' holds {len(split.harmful)} prompts and '{harmless}' {len(split.harmless)}; "
            "pairs go row by row: give as many of each"
        )
    texts = zip(split.harmful.ids, split.harmful.table["category"], split.harmful, split.harmless, strict=True)
    return PairSet(tuple(Pair(*each) for each in texts))


def _twins(name: str, path: str) -> list[dict[str, str]]:
    rows = sources.load(path)
    rows.require(*SIDES)
    twins = [
        {
            "id": row.get("id", "").strip() or f"{name}-{number:04d}",
            "category": row.get("category", ""),
            **{side: row[side] for side in SIDES},
        }
        for number, row in rows.rows
        if any(row[side].strip() for side in SIDES)
    ]
    if half := [row for row in twins if not all(row[side].strip() for side in SIDES)]:
        raise MechrefusalError(
            f"{rows.where} has {len(half)} rows with one side only, such as '{half[0]['id']}': fill both columns, or "
            "give the sides as two files"
        )
    if not twins:
        raise MechrefusalError(f"{rows.where} holds no prompt: fill the columns harmful and harmless")
    return twins
