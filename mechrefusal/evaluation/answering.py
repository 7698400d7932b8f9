"""Answers that are kept as they come: a killed run continues with the first batch that is not on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.generation import Completions, complete
from mechrefusal.files import whole_file

COLUMNS = ("completion", "token_ids", "ended")
CHUNK = 64


def answers(
    model,
    texts: Sequence[str],
    path: Path | str,
    *,
    stamp: str,
    max_new_tokens: int = 64,
    tokenizer=None,
    chunk: int = CHUNK,
    description: str = "answers",
) -> pd.DataFrame:
    """Greedy answers to `texts`, from `path` where they were given before, otherwise generated and kept there.

    While they are made, each finished batch is appended to `<path>.partial`; the file itself is written whole at the
    end. In float32 an answer does not depend on its batch, so a continued run gives the same text as one in one piece.

    Args:
        path: parquet file.
        stamp: what the answers hang on (weights, prompts, settings). Answers of another stamp are made again.
        chunk: prompts in one batch at most.

    Returns:
        One row a text: completion (str), token_ids (list of int, without the end token), ended (whether the model ended
        its turn before its tokens were spent).

    Raises:
        MechrefusalError: no text, or a file at `path` that is not such a table.
    """
    if not len(texts):
        raise MechrefusalError(f"there is nothing to answer for '{path}'; give a prompt at least")
    path = Path(path)
    if path.is_file() and (known := _read(path, stamp, len(texts))) is not None:
        return known
    draft = path.with_name(f"{path.name}.partial")
    done = _continued(draft, stamp, len(texts))
    left = [row for row in range(len(texts)) if row not in done]
    if left:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("a", encoding="utf-8") as file:
            if not done:
                file.truncate(0)
                file.write(json.dumps({"stamp": stamp, "n": len(texts)}) + "\n")

            def keep(rows: list[int], completions: Completions) -> None:
                for row, *values in zip(rows, completions.texts, completions.token_ids, completions.ended, strict=True):
                    done[left[row]] = dict(zip(COLUMNS, values, strict=True))
                    file.write(json.dumps({"row": left[row], **done[left[row]]}) + "\n")
                file.flush()

            complete(
                model,
                [texts[row] for row in left],
                tokenizer=tokenizer,
                max_new_tokens=max_new_tokens,
                chunk=chunk,
                description=description,
                on_batch=keep,
            )
    table = pd.DataFrame([done[row] for row in range(len(texts))], columns=list(COLUMNS))
    table["token_ids"] = [list(ids) for ids in table["token_ids"]]
    with whole_file(path) as whole:
        table.assign(stamp=stamp).to_parquet(whole, index=False)
    draft.unlink(missing_ok=True)
    return table


def _read(path: Path, stamp: str, n: int) -> pd.DataFrame | None:
    """The answers at `path`; None where they are of another stamp."""
    try:
        table = pd.read_parquet(path)
    except Exception as error:
        raise MechrefusalError(f"{path} cannot be read as parquet ({error}); delete it to answer anew") from error
    if missing := [name for name in (*COLUMNS, "stamp") if name not in table]:
        raise MechrefusalError(f"{path} is no table of answers (it lacks {', '.join(missing)}); give another folder")
    if len(table) != n or set(table["stamp"]) != {stamp}:
        return None
    table["token_ids"] = [[int(token) for token in ids] for ids in table["token_ids"]]
    return table[list(COLUMNS)]


def _continued(draft: Path, stamp: str, n: int) -> dict[int, dict[str, Any]]:
    """What a killed run left, by row; a line that was cut off is not there."""
    if not draft.is_file():
        return {}
    lines, _, cut = draft.read_bytes().rpartition(b"\n")
    try:
        head, *entries = map(json.loads, lines.split(b"\n"))
        done = {int(entry["row"]): {name: entry[name] for name in COLUMNS} for entry in entries}
    except (KeyError, TypeError, ValueError):
        return {}
    if head != {"stamp": stamp, "n": n}:
        return {}
    if cut:  # The cut line goes, so that what is appended starts on a line of its own.
        draft.write_bytes(lines + b"\n")
    return done
