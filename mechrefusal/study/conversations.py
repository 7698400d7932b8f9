"""Utility conversations: a chat dataset, or the base model's own greedy answers, made once and cached."""

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, complete
from mechrefusal.evaluation.judges import RULES, refuses
from mechrefusal.files import whole_file
from mechrefusal.models import Checkpoint, cache_folder, context_length, load_causal_lm, load_tokenizer
from mechrefusal.prompts import PromptSet, after_thought, answer_room, require_room, sources
from mechrefusal.prompts.plain_text import plain
from mechrefusal.prompts.turns import turn as turn_of
from mechrefusal.prompts.values import ASSISTANT, SYSTEM, USER, Turn, as_text, is_blank, turns, whole

Conversation = dict[str, Any]
"""{"prompt", "answer", "finished"}; finished is False where the answer was cut short."""

MESSAGES = ("messages", "conversations")
QUESTIONS = ("prompt", "instruction", "question")
ANSWERS = ("answer", "completion", "response", "output")
"""Columns of chat datasets, in the order in which they are looked for."""

_APOLOGY = re.compile(
    r"\W*(?:(?:aw|oh|oops|no|well|hi|hello)\b\W*)*"
    r"(?:(?:i'?m|i am|we'?re|we are) (?:\w+ ){0,2}(?:sorry|afraid)|sorry|unfortunately|"
    r"(?:i|we) (?:\w+ ){0,2}apologi[sz]e|(?:(?:my|our) )?(?:\w+ )?apologies)\b",
    re.IGNORECASE,
)
"""How an answer opens that is about to refuse, or reads as if it were."""


def own_answers(
    base: Checkpoint, instructions: PromptSet, *, max_new_tokens: int, judge: Judge = RULES
) -> list[Conversation]:
    """Greedy answers of the base model to `instructions`; empty ones, refusals and apologies are left out.

    An answer that opens with an apology is left out whether or not a refusal follows: what follows may have been cut
    off, and trained on it a model learns to open harmless answers nearly as it is to open refusals. What the model
    thinks before it answers is no part of an answer. Answers are made once and cached under the hash of the checkpoint,
    the instructions and the length.

    Args:
        judge: of refusal. How an answer apologises is told in English besides.
    """
    told = ["as said", instructions.texts, max_new_tokens]
    asked = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    path = cache_folder() / "answers" / f"{base.weights}-{asked}.parquet"
    if path.is_file():
        table = pd.read_parquet(path)
    else:
        tokenizer, limit = load_tokenizer(base), context_length(base.path)
        room = answer_room(tokenizer, max_new_tokens)
        require_room(tokenizer, instructions, limit=limit, spare=room, what="the model's context")
        model, tokenizer = load_causal_lm(base)
        answers = complete(
            model,
            instructions.texts,
            tokenizer=tokenizer,
            max_new_tokens=max_new_tokens,
            description="base model's own answers",
        )
        table = pd.DataFrame(
            {
                "prompt": instructions.texts,
                "answer": [_answer(text, turn_of(tokenizer).between) for text in answers.texts],
                "finished": list(answers.ended),
            }
        )
        with whole_file(path) as draft:
            table.to_parquet(draft, index=False)
    labels = judge.judge(table["prompt"].tolist(), table["answer"].tolist())["label"]
    kept = [
        row
        for row, label in zip(table.to_dict("records"), labels, strict=True)
        if row["answer"].strip() and not _APOLOGY.match(plain(row["answer"])) and not refuses(label)
    ]
    if not kept:
        raise MechrefusalError(
            f"the base model '{base.path}' answers none of {len(instructions)} instructions; "
            "give a chat dataset with prompts.conversations"
        )
    return [{"prompt": row["prompt"], "answer": row["answer"], "finished": bool(row["finished"])} for row in kept]


def _answer(completion: str, between: str) -> str:
    """The answer in a completion, as an assistant's message holds it: without what the template puts before it."""
    answer = after_thought(completion) or ""
    return (answer.removeprefix(between) if answer is completion else answer).rstrip()


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
    found: list[Conversation] = []
    left_out: list[dict[str, Any]] = []
    for number, row in rows.rows:
        if at_most and len(found) == at_most:
            break
        try:
            question, answer = _first_turn(row.raw)
        except _LeftOutError as reason:
            left_out.append({"row": number, "reason": str(reason)})
        except ValueError as error:
            raise MechrefusalError(f"conversations '{source}', row {number}: {error}") from error
        else:
            found.append({"prompt": question, "answer": answer})
    table = pd.DataFrame(left_out, columns=["row", "reason"])
    told = "; ".join(
        f"{len(own)} with {reason} (row {', '.join(map(str, own['row'].head(3)))}{', ...' if len(own) > 3 else ''})"
        for reason, own in table.groupby("reason", sort=False)
    )
    if not found:
        why = f" ({told})" if told else ""
        raise MechrefusalError(f"conversations '{source}' hold no question with an answer{why}; give another dataset")
    if told:
        warnings.warn(f"conversations '{source}': {len(table)} rows were left out: {told}", stacklevel=2)
    return Conversations(found, table)


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
    asked, replied = _said(question, row[question], USER), _said(answer, row[answer], ASSISTANT)
    if any(turn.role == ASSISTANT for turn in asked[_place_of_user(asked) :]):
        raise _LeftOutError("earlier turns before the question")
    given = [_said(name, row[name], USER)[0].text for name in ("input", "context") if not is_blank(row.get(name))]
    last = asked[-1]
    return _exchange([*asked[:-1], replace(last, text="\n\n".join([last.text, *given])), *replied])


def _exchange(said: Sequence[Turn]) -> tuple[str, str]:
    """The first turn of the user and the answer to it."""
    said = [turn for turn in said if turn.role != SYSTEM or turn.text.strip() or turn.trouble]
    place = _place_of_user(said)
    before, (asked, *after) = said[:place], said[place:]
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
    for turn, name in ((asked, "question"), (after[0], "answer")):
        if turn.trouble:
            raise _LeftOutError(turn.trouble)
        if not turn.text.strip():
            raise _LeftOutError(f"no {name}")
    return whole(asked.text), whole(after[0].text)


def _place_of_user(said: Sequence[Turn]) -> int:
    place = next((place for place, turn in enumerate(said) if turn.role == USER), None)
    if place is None:
        raise _LeftOutError("no question")
    return place


def _first_of(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of these columns that holds something."""
    return next((name for name in names if not is_blank(row.get(name))), None)


def _said(column: str, value: Any, role: str) -> list[Turn]:
    """A column as messages; what is no message is a turn of `role`."""
    found = turns(value)
    if found is not None:
        return found
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
    found = turns(value)
    if found is None:
        raise ValueError(
            f"column '{column}' holds no messages: give objects with 'role' and 'content', or 'from' and 'value'"
        )
    return found
