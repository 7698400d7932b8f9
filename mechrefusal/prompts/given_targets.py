"""Targets of one's own from a file: by the id or by the text of a prompt, in any language."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import sources
from mechrefusal.prompts.prompt_set import PromptSet
from mechrefusal.prompts.splits import normalised
from mechrefusal.prompts.values import is_blank, is_missing

TEXT_COLUMNS = ("text", "prompt", "behavior", "goal", "request")
ID_COLUMNS = ("id", "behaviorid")

Targets = str | Path | Mapping[str, str | list[str]]


def with_given_targets(prompts: PromptSet, targets: Targets) -> PromptSet:
    """The same prompts with the columns `targets` (list of str, without blank ones) and `target` (the first of them).

    Args:
        targets: a JSON object from an id or a text to a target or a list of them, such a mapping, or a table (CSV, TSV,
            JSONL or a JSON list) with a column `target` and a column `id` or `text` (or `prompt`). A prompt is found
            by its id, otherwise by its text, or by its request where the text has a context before it; case, white
            space and kind of quotes do not count in a text. Several rows of a table are several targets.

    Raises:
        MechrefusalError: a file that cannot be read or has another form, or a prompt without a target.
    """
    where, by_id, by_text = _openings(targets)
    requests = prompts.table["behavior"] if "behavior" in prompts.table else prompts.table["text"]
    openings = [
        by_id.get(id) or by_text.get(normalised(text)) or by_text.get(normalised(request)) or []
        for id, text, request in zip(prompts.ids, prompts.texts, requests, strict=True)
    ]
    if without := [id for id, listed in zip(prompts.ids, openings, strict=True) if not listed]:
        named = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
        raise MechrefusalError(
            f"{where} has no target for {len(without)} of {len(prompts)} behaviours ({named}): add them by id or by "
            "text, or read without targets= and use .with_targets(), whose rule is English"
        )
    index = prompts.table.index
    table = prompts.table.assign(
        targets=pd.Series(openings, dtype=object, index=index),
        target=pd.Series([listed[0] for listed in openings], dtype=object, index=index),
    )
    return PromptSet(prompts.name, table, prompts.dropped)


def _openings(targets: Targets) -> tuple[str, dict[str, list[str]], dict[str, list[str]]]:
    """Where targets come from, and they by id and by normalised text; a key of a mapping may be either."""
    if isinstance(targets, Mapping):
        where, value = "the mapping of targets", dict(targets)
        return where, *_of_mapping(value, where)
    path = Path(targets).expanduser()
    if path.suffix.lower() in (".json", ".jsonl"):
        value = sources.json_of(path)
        if isinstance(value, dict) and path.suffix.lower() == ".json":
            return str(path), *_of_mapping(value, str(path))
        if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
            raise MechrefusalError(
                f"{path} does not map behaviour ids to targets: give a JSON object, or a list of objects with target "
                "and id or text"
            )
    return str(path), *_of_table(sources.load(path))


def _of_mapping(value: Mapping[str, Any], where: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    by_id: dict[str, list[str]] = {}
    by_text: dict[str, list[str]] = {}
    for key, listed in value.items():
        openings = [] if is_missing(listed) else [listed] if isinstance(listed, str) else listed
        if not isinstance(openings, list) or not all(isinstance(text, str) or is_missing(text) for text in openings):
            raise MechrefusalError(f"{where} holds no list of strings for '{key}': give its targets as strings")
        openings = [opening for opening in openings if not is_blank(opening)]
        by_id[str(key)] = openings
        by_text.setdefault(normalised(str(key)), []).extend(openings)
    return by_id, by_text


def _of_table(rows: sources.Rows) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    rows.require("target")
    id_column, text_column = (
        next((name for name in names if name in rows.lower_columns), None) for names in (ID_COLUMNS, TEXT_COLUMNS)
    )
    if id_column is None and text_column is None:
        raise MechrefusalError(
            f"{rows.where} says of no target whose it is: give a column 'id' or 'text' beside 'target'; found "
            f"{', '.join(rows.columns)}"
        )
    by_id: dict[str, list[str]] = {}
    by_text: dict[str, list[str]] = {}
    for target, row in ((row["target"], row) for _, row in rows.rows if row["target"].strip()):
        if id_column is not None and row[id_column].strip():
            by_id.setdefault(row[id_column].strip(), []).append(target)
        if text_column is not None and row[text_column].strip():
            by_text.setdefault(normalised(row[text_column]), []).append(target)
    return by_id, by_text
