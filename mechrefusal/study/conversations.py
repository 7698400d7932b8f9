"""Utility conversations: a chat dataset, or the base model's own greedy answers, made once and cached."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import complete, is_refusal
from mechrefusal.files import whole_file
from mechrefusal.models import Checkpoint, cache_folder, load_causal_lm
from mechrefusal.prompts import PromptSet, after_thought, turn

Conversation = dict[str, Any]
"""{"prompt", "answer", "finished"}; finished is False where the answer was cut short."""

_APOLOGY = re.compile(
    r"\W*(?:(?:aw|oh|oops|no|well|hi|hello)\b\W*)*"
    r"(?:(?:i['\u2019]?m|i am|we['\u2019]?re|we are) (?:\w+ ){0,2}(?:sorry|afraid)|sorry|unfortunately|"
    r"(?:i|we) (?:\w+ ){0,2}apologi[sz]e|(?:(?:my|our) )?(?:\w+ )?apologies)\b",
    re.IGNORECASE,
)
"""How an answer opens that is about to refuse, or reads as if it were."""


def own_answers(base: Checkpoint, instructions: PromptSet, *, max_new_tokens: int) -> list[Conversation]:
    """Greedy answers of the base model to `instructions`; empty ones, refusals and apologies are left out.

    An answer that opens with an apology is left out whether or not a refusal follows: what follows may have been cut
    off, and trained on it a model learns to open harmless answers nearly as it is to open refusals. What the model
    thinks before it answers is no part of an answer. Answers are made once and cached under the hash of the weights,
    the instructions and the length.
    """
    told = ["as said", instructions.texts, max_new_tokens]
    asked = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    path = cache_folder() / "answers" / f"{base.weights}-{asked}.parquet"
    if path.is_file():
        table = pd.read_parquet(path)
    else:
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
                "answer": [_answer(text, turn(tokenizer).between) for text in answers.texts],
                "finished": list(answers.ended),
            }
        )
        with whole_file(path) as draft:
            table.to_parquet(draft, index=False)
    kept = [
        row
        for row in table.to_dict("records")
        if row["answer"].strip() and not _APOLOGY.match(row["answer"]) and not is_refusal(row["answer"], row["prompt"])
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


def read_conversations(source: str, *, at_most: int) -> list[Conversation]:
    """First turns of a chat dataset, as {"prompt", "answer"}.

    Args:
        source: .jsonl, .json or .parquet file, or hub name, whose rows have `messages` (or `conversations`), or
            `prompt` and `answer` (or `completion`, `response`, `output`).
        at_most: conversations to read.

    Raises:
        MechrefusalError: no such dataset, or rows of another form.
    """
    import datasets

    path = Path(source)
    try:
        if path.is_file():
            kind = "parquet" if path.suffix == ".parquet" else "json"
            table = datasets.load_dataset(kind, data_files=str(path), split="train")
        else:
            table = datasets.load_dataset(source, split="train")
    except Exception as error:
        raise MechrefusalError(
            f"conversations '{source}' cannot be read ({' '.join(str(error).split())[:200]}); "
            "give a .jsonl, .json or .parquet file, or a hub dataset"
        ) from error
    found = [_first_turn(row, source) for row in table.select(range(min(at_most, len(table))))]
    kept = [turn for turn in found if turn["prompt"].strip() and turn["answer"].strip()]
    if not kept:
        raise MechrefusalError(f"conversations '{source}' hold no question with an answer; give another dataset")
    return kept


def _first_turn(row: dict[str, Any], source: str) -> Conversation:
    messages = row.get("messages") or row.get("conversations")
    if messages:
        said: dict[str, str] = {}
        for message in messages:
            role = message.get("role") or {"human": "user", "gpt": "assistant"}.get(message.get("from", ""), "")
            said.setdefault(role, message.get("content") or message.get("value") or "")
        return {"prompt": said.get("user", ""), "answer": said.get("assistant", "")}
    answer = next((row[key] for key in ("answer", "completion", "response", "output") if row.get(key)), None)
    question = row.get("prompt") or row.get("instruction")
    if isinstance(question, str) and row.get("input"):
        question = f"{question}\n\n{row['input']}"
    if isinstance(question, str) and isinstance(answer, str):
        return {"prompt": question, "answer": answer}
    raise MechrefusalError(
        f"conversations '{source}' have columns {sorted(row)}; expected 'messages', or 'prompt' and 'answer'"
    )
