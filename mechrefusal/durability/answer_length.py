"""Where in an answer the refusal comes: in its first words, or only after it has begun to answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechrefusal.durability.asking import judged
from mechrefusal.durability.judged_rates import Outcome, Rates, require_sides
from mechrefusal.durability.settings import AnswerLengthSettings
from mechrefusal.evaluation import complete
from mechrefusal.evaluation.judges import Judge
from mechrefusal.evaluation.judges.judge import refuses
from mechrefusal.prompts import PromptSet, after_thought, texts_of

AXES = ("side", "n_tokens", "measure")
DELAYED = "delayed"
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]*_]*\s+|\n+")

Ids = tuple[int, ...]


@dataclass(frozen=True)
class AnswerLengths(Rates):
    """`places`: one row a prompt, where its answer refuses first.

    Columns of `places`: side, prompt_id, n_tokens (of the answer, without a thought), ended (by the model itself),
    refused (the whole answer), sentence and token (of the first refusing sentence and of its first word, counted from
    0; no value where the answer does not refuse).
    """

    places: pd.DataFrame


@dataclass(frozen=True)
class Answer:
    """An answer as tokens: `ids` with a thought before it, which takes the first `n_thought` of them."""

    ids: Ids
    n_thought: int
    text: str

    @property
    def n_tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.n_thought


def answer_lengths(
    model,
    harmful: PromptSet,
    harmless: PromptSet,
    judge: Judge,
    *,
    settings: AnswerLengthSettings,
    tokenizer=None,
) -> AnswerLengths:
    """Share of answers that refuse when they are cut after 8, 16, 32, 64, 128 tokens, and where they refuse first.

    Answers are generated once, as long as the longest length, and cut: what a shorter `max_new_tokens` would have
    shown. A refusal that comes late (delayed) is missed by short answers, and by attacks that look at the first words;
    one that is taken back is refused when cut short only. A cut in the middle of a sentence may hide it from the judge,
    so that the first length is rather a floor.

    Measures: refused, degenerate (of the cut answer); at the longest length delayed, of the answers that refuse there:
    whether the first sentence does not. The first refusing sentence is the one at whose end the judge says of the
    answer so far that it refuses.

    Args:
        model: a hooked transformer, or a Hugging Face model together with its `tokenizer`.
        harmful, harmless: the first `settings.n_prompts` of each are asked; the harmless ones are the control.

    Returns:
        Rates with the axes side, n_tokens and measure, each compared with the longest length.

    Raises:
        MechrefusalError: no prompt on a side.
    """
    tokenizer = tokenizer if tokenizer is not None else model.tokenizer
    sides = require_sides("answer length", harmful.take(settings.n_prompts), harmless.take(settings.n_prompts))
    outcome, places = Outcome(sides, AXES), []
    longest = max(settings.lengths)
    for side, prompts in sides.items():
        completions = complete(
            model, prompts.texts, tokenizer=tokenizer, max_new_tokens=longest, description=f"long answers, {side}"
        )
        answers = [
            _answer(tokenizer, ids, text) for ids, text in zip(completions.token_ids, completions.texts, strict=True)
        ]
        for length in sorted({*settings.lengths}):
            cut = [cut_at(tokenizer, answer, length) for answer in answers]
            outcome.judged((side, length), judged(judge, prompts.texts, cut))
        of_side = _places(tokenizer, judge, prompts, answers, completions.ended)
        delayed = [float(row["sentence"] > 0) if row["refused"] else np.nan for row in of_side]
        why = "" if any(row["refused"] for row in of_side) else "no answer refuses"
        outcome.add((side, longest, DELAYED), delayed, reason=why)
        places += [{"side": side, **row} for row in of_side]
    rates = outcome.rates(lambda cell: {"n_tokens": longest})
    frame = pd.DataFrame(places).astype({"sentence": "Int64", "token": "Int64"})
    return AnswerLengths(rates.table, rates.observations, frame)


def cut_at(tokenizer, answer: Answer, n_tokens: int) -> str:
    """The text of an answer, its thought included, whose answer has no more than `n_tokens` tokens."""
    if n_tokens >= answer.n_tokens:
        return answer.text
    # A character may be several tokens: half of one is none.
    return texts_of(tokenizer, [answer.ids[: answer.n_thought + n_tokens]])[0].rstrip("\ufffd")


def first_refusal(judge: Judge, prompt: str, text: str) -> tuple[int, int] | None:
    """Number of the first refusing sentence of a text, and the place of its first character; None without one."""
    starts = [0, *(match.end() for match in _SENTENCE.finditer(text) if match.end() < len(text))]
    ends = [*starts[1:], len(text)]
    labels = judge.judge([prompt] * len(ends), [text[:end] for end in ends])["label"]
    found = next((number for number, label in enumerate(labels) if refuses(label)), None)
    return None if found is None else (found, starts[found])


def _places(
    tokenizer, judge: Judge, prompts: PromptSet, answers: Sequence[Answer], ended: Sequence[bool]
) -> list[dict[str, Any]]:
    refused = judged(judge, prompts.texts, [answer.text for answer in answers]).refused
    rows: list[dict[str, Any]] = []
    for name, prompt, answer, has_ended, refuses_whole in zip(
        prompts.ids, prompts.texts, answers, ended, refused, strict=True
    ):
        row = {"prompt_id": name, "n_tokens": answer.n_tokens, "ended": bool(has_ended)}
        row |= {"refused": bool(refuses_whole), "sentence": None, "token": None}
        if row["refused"]:
            words = after_thought(answer.text) or ""
            found = first_refusal(judge, prompt, words)
            assert found is not None, "an answer that refuses as a whole refuses at its last sentence"
            lead = len(answer.text) - len(words)
            row |= {"sentence": found[0], "token": _token_at(tokenizer, answer, lead + found[1])}
        rows.append(row)
    return rows


def _answer(tokenizer, ids: Ids, text: str) -> Answer:
    words = after_thought(text)
    if words is None or words == text:
        return Answer(ids, 0, text)
    whole = Answer(ids, 0, text)
    return Answer(ids, _token_at(tokenizer, whole, len(text) - len(words)), text)


def _token_at(tokenizer, answer: Answer, place: int) -> int:
    """Number of the token of the answer that holds the character at `place` of its text."""
    opened = len(answer.text) - len(texts_of(tokenizer, [answer.ids])[0])
    prefixes = texts_of(tokenizer, [answer.ids[:n] for n in range(1, len(answer.ids) + 1)])
    reached = (n for n, prefix in enumerate(prefixes) if opened + len(prefix) > place)
    return next(reached, len(answer.ids) - 1) - answer.n_thought
