"""What a model without a chat dataset is trained on: the base model's own greedy answers, made once and cached."""

import re

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, complete
from mechrefusal.evaluation.judges import RULES, refuses
from mechrefusal.files import whole_file
from mechrefusal.models import Checkpoint, cache_folder, load_causal_lm, load_tokenizer
from mechrefusal.prompts import PromptSet, after_thought
from mechrefusal.prompts.conversations import Conversation
from mechrefusal.prompts.plain_text import plain
from mechrefusal.prompts.turns import turn as turn_of
from mechrefusal.study.caching import fingerprint
from mechrefusal.study.checkpoints import require_room

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
    texts = instructions.texts
    stamp = fingerprint(["as said", texts, max_new_tokens])
    path = cache_folder() / "answers" / f"{base.computed}-{stamp}.parquet"
    if path.is_file():
        table = pd.read_parquet(path)
    else:
        require_room(base.path, load_tokenizer(base), instructions, max_new_tokens=max_new_tokens)
        model, tokenizer = load_causal_lm(base)
        what = "base model's own answers"
        replies = complete(model, texts, tokenizer=tokenizer, max_new_tokens=max_new_tokens, description=what)
        answers = [_answer(text, turn_of(tokenizer).between) for text in replies.texts]
        table = pd.DataFrame({"prompt": texts, "answer": answers, "finished": list(replies.ended)})
        with whole_file(path) as draft:
            table.to_parquet(draft, index=False)
    labels = judge.judge(table["prompt"].tolist(), table["answer"].tolist())["label"]
    rows = [
        row
        for row, label in zip(table.to_dict("records"), labels, strict=True)
        if row["answer"].strip() and not _APOLOGY.match(plain(row["answer"])) and not refuses(label)
    ]
    if not rows:
        raise MechrefusalError(
            f"the base model '{base.path}' answers none of {len(instructions)} instructions; "
            "give a chat dataset with prompts.conversations"
        )
    return [{"prompt": row["prompt"], "answer": row["answer"], "finished": bool(row["finished"])} for row in rows]


def _answer(completion: str, between: str) -> str:
    """The answer in a completion, as an assistant's message holds it: without what the template puts before it."""
    answer = after_thought(completion) or ""
    return (answer.removeprefix(between) if answer is completion else answer).rstrip()
