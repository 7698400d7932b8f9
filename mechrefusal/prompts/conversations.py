"""Chat datasets: the first question of each conversation and the answer to it."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import sources
from mechrefusal.prompts.values import ASSISTANT, SYSTEM, USER, Turn, as_text, is_blank, turns, whole

Conversation = dict[str, Any]
"""{"prompt", "answer", "finished"}; finished is False where the answer was cut short."""

MESSAGES = ("messages", "conversations")
QUESTIONS = ("prompt", "instruction", "question")
ANSWERS = ("answer", "completion", "response", "output")
"""Columns of chat datasets, in the order in which they are looked for."""


class Conversations(list[Conversation]):
    """Conversations in the order of their source.

    `left_out`: rows that were read before the last of them and are not among them, columns `row` (number in the
    source, from 1) and `reason`.
    """

    def __init__(self, turns: Iterable[Conversation], left_out: pd.DataFrame) -> None:
        """Hold the turns, and what was left out."""
        super().__init__(turns)
        self.left_out = left_out


class _LeftOutError(Exception):
    """Why a row gives no conversation that could be learnt."""


def read_conversations(source: str, *, at_most: int) -> Conversations:
    """First questions of a chat dataset with their answers, as {"prompt", "answer"}.

    Rows have `messages` (or `conversations`): objects with `role` and `content` (or `from` and `value`), also as the
    text of a JSON list, content also as parts of the type `text`. Or they have a question (`prompt`, `instruction`,
    `question`; behind it, where there is one, the `input` or `context`) and an answer (`answer`, `completion`,
    `response`, `output`), each a text, or messages as TRL has them.

    The answer is what the assistant says right after the first turn of the user. A greeting of the assistant before it
    is left away. A row is left out, because the answer would be to something else than the question, or there is no
    answer, where

    - a system turn or a column `system` or `system_prompt` comes before the answer, or a `history`;
    - the user or the assistant has two turns in a row there, or a tool has one;
    - the question or the answer is missing, or is not all text.

    Rows that are left out are counted by reason in a warning, and stand in `left_out`.

    Args:
        source: .jsonl, .json, .parquet or .csv file, or hub name (as in `mechrefusal.prompts.read`; split train).
        at_most: conversations to read; 0 for all.

    Raises:
        MechrefusalError: no such dataset, rows of another form, or none that could be learnt.
    """
    if at_most < 0:
        raise MechrefusalError(f"at most {at_most} conversations: give 0 for all, or more")
    try:
        rows = sources.load(source, split="train")
    except MechrefusalError as error:
        raise MechrefusalError(f"conversations '{source}' cannot be read: {error}") from error
    there = {column.lower() for column in rows.columns}
    if not (there & set(MESSAGES) or (there & set(QUESTIONS) and there & set(ANSWERS))):
        raise MechrefusalError(
            f"conversations '{source}' have columns {sorted(rows.columns)}; expected 'messages', or 'prompt' and "
            "'answer'"
        )
    conversations: list[Conversation] = []
    left_out: list[dict[str, Any]] = []
    for number, row in rows.rows:
        if at_most and len(conversations) == at_most:
            break
        try:
            question, answer = _first_turn(row.raw)
        except _LeftOutError as reason:
            left_out.append({"row": number, "reason": str(reason)})
        except ValueError as error:
            raise MechrefusalError(f"conversations '{source}', row {number}: {error}") from error
        else:
            conversations.append({"prompt": question, "answer": answer})
    table = pd.DataFrame(left_out, columns=["row", "reason"])
    reasons = "; ".join(
        f"{len(part)} with {reason} (row {', '.join(map(str, part['row'].head(3)))}{', ...' if len(part) > 3 else ''})"
        for reason, part in table.groupby("reason", sort=False)
    )
    if not conversations:
        why = f" ({reasons})" if reasons else ""
        raise MechrefusalError(f"conversations '{source}' hold no question with an answer{why}; give another dataset")
    if reasons:
        warnings.warn(f"conversations '{source}': {len(table)} rows were left out: {reasons}", stacklevel=2)
    return Conversations(conversations, table)


def _first_turn(row: Mapping[str, Any]) -> tuple[str, str]:
    if _first_of(row, ("system", "system_prompt")):
        raise _LeftOutError("a system turn before the answer")
    if _first_of(row, ("history",)):
        raise _LeftOutError("earlier turns before the question")
    if column := _first_of(row, MESSAGES):
        return _exchange(_messages(column, row[column]))
    question, answer = _first_of(row, QUESTIONS), _first_of(row, ANSWERS)
    if question is None or answer is None:
        raise _LeftOutError("no question" if question is None else "no answer")
    question_turns, answer_turns = _turns_of(question, row[question], USER), _turns_of(answer, row[answer], ASSISTANT)
    if any(turn.role == ASSISTANT for turn in question_turns[_place_of_user(question_turns) :]):
        raise _LeftOutError("earlier turns before the question")
    given = [_turns_of(name, row[name], USER)[0].text for name in ("input", "context") if not is_blank(row.get(name))]
    last = question_turns[-1]
    return _exchange([*question_turns[:-1], replace(last, text="\n\n".join([last.text, *given])), *answer_turns])


def _exchange(messages: Sequence[Turn]) -> tuple[str, str]:
    """The first turn of the user and the answer to it."""
    messages = [turn for turn in messages if turn.role != SYSTEM or turn.text.strip() or turn.trouble]
    place = _place_of_user(messages)
    before, (request, *after) = messages[:place], messages[place:]
    for turn in [*before, *after[:1]]:
        if turn.role == SYSTEM:
            raise _LeftOutError("a system turn before the answer")
        if turn.role not in (USER, ASSISTANT):
            raise _LeftOutError(f"a turn of '{turn.role}' before the answer")
    if not after:
        raise _LeftOutError("no answer")
    if after[0].role != ASSISTANT:
        raise _LeftOutError("two turns of the user in a row")
    if len(after) > 1 and after[1].role == ASSISTANT:
        raise _LeftOutError("two turns of the assistant in a row")
    for turn, name in ((request, "question"), (after[0], "answer")):
        if turn.trouble:
            raise _LeftOutError(turn.trouble)
        if not turn.text.strip():
            raise _LeftOutError(f"no {name}")
    return whole(request.text), whole(after[0].text)


def _place_of_user(messages: Sequence[Turn]) -> int:
    place = next((place for place, turn in enumerate(messages) if turn.role == USER), None)
    if place is None:
        raise _LeftOutError("no question")
    return place


def _first_of(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of these columns that holds something."""
    return next((name for name in names if not is_blank(row.get(name))), None)


def _turns_of(column: str, value: Any, role: str) -> list[Turn]:
    """A column as messages; what is no message is a turn of `role`."""
    messages = turns(value)
    if messages is not None:
        return messages
    try:
        return [Turn(role, as_text(value))]
    except ValueError as error:
        raise ValueError(f"column '{column}' holds {error}") from None


def _messages(column: str, value: Any) -> list[Turn]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"column '{column}' holds text that is no JSON ({value[:40]!r}): give messages") from None
    messages = turns(value)
    if messages is None:
        raise ValueError(
            f"column '{column}' holds no messages: give objects with 'role' and 'content', or 'from' and 'value'"
        )
    return messages
