"""What RLHF pays for: the arm's own rule, or a reward function or model in its place, checked before it is used.

A reward function is one of TRL's: called with `prompts`, `completions` (conversations, one message each),
`completion_ids` and the rows' column `kind` ("harmful" or "utility"), it returns one number a completion.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from typing import Any

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts.plain_text import plain

HARMFUL, UTILITY = "harmful", "utility"
KINDS = (HARMFUL, UTILITY)
"""What a prompt is: to be refused, or to be answered."""

RewardFunction = Callable[..., list[float]]

OPENING = 100
"""Characters of an answer in which a refusal shows."""
_REFUSAL = re.compile(
    r"\b(sorry|unfortunately|apologi[sz]e|i (?:can ?not|can't|could ?n[o']t|won't|will not|must decline|refuse)"
    r"|(?:i'm|i am) (?:unable|not able|not going to))\b"
)
_WORD = re.compile(r"\w+")
FEWEST = 4
"""Words, or tokens, from which on an answer may be a loop."""
_DOTTED = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


def refuses(answer: str) -> bool:
    """Whether an answer opens like a refusal.

    The rule is short, and deliberately not the judge's that evaluates: a model that learns to please this one is still
    judged by another.
    """
    return _REFUSAL.search(plain(answer[:OPENING]).lower()) is not None


def is_degenerate(answer: str, tokens: Sequence[int] = ()) -> bool:
    """Whether an answer says nothing: no word, the same token throughout, or one word more than half of the time."""
    words = _WORD.findall(answer.lower())
    if not words:
        return True
    repeats = len(words) >= FEWEST and 2 * Counter(words).most_common(1)[0][1] > len(words)
    return repeats or (len(tokens) >= FEWEST and len(set(tokens[:-1])) == 1)  # the last one may be the end


def refuse_or_answer(degenerate_reward: float) -> RewardFunction:
    """The arm's own reward: 1 for refusing what is harmful and for answering what is not, `degenerate_reward` for an
    answer that says nothing, else 0.
    """

    def refuse_or_answer(
        completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], kind: Sequence[str], **given: Any
    ) -> list[float]:
        return [
            degenerate_reward if is_degenerate(answer, tokens) else float(refuses(answer) == (asked == HARMFUL))
            for answer, tokens, asked in zip(map(text_of, completions), completion_ids, kind, strict=True)
        ]

    return refuse_or_answer


def text_of(completion: Any) -> str:
    """The text of a completion, as TRL gives it to reward functions."""
    return completion if isinstance(completion, str) else str(completion[0]["content"] or "")


def function_named(name: str) -> RewardFunction | None:
    """The function "module:function"; None where `name` is written otherwise.

    Raises:
        MechrefusalError: there is no such function.
    """
    dotted = _DOTTED.fullmatch(name)
    if dotted is None:
        return None
    module, function = dotted.groups()
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise MechrefusalError(
            f"rlhf reward '{name}' is not there ({error}): give the name of a function as module:function"
        ) from error
    if not callable(found):
        raise MechrefusalError(f"rlhf reward '{name}' is a {type(found).__name__}: give a function")
    return found


def checked(reward: RewardFunction) -> RewardFunction:
    """The same function; what it returns is one finite number a completion, or an error that says what it is."""
    name = getattr(reward, "__name__", type(reward).__name__)

    def checked_reward(*, completions: Sequence[Any], **given: Any) -> list[float]:
        found = reward(completions=completions, **given)
        listed = found.tolist() if hasattr(found, "tolist") else found
        if not isinstance(listed, list | tuple):
            raise MechrefusalError(
                f"reward '{name}' returned {type(found).__name__}: return a list of one number a completion"
            )
        if len(listed) != len(completions):
            raise MechrefusalError(
                f"reward '{name}' returned {len(listed)} rewards for {len(completions)} completions: return one each"
            )
        for number, value in enumerate(listed):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise MechrefusalError(
                    f"reward '{name}' is {value} for completion {number}, "
                    f"{text_of(completions[number])[:80]!r}: return a finite number"
                )
        return [float(value) for value in listed]

    return checked_reward if not hasattr(reward, "__name__") else wraps(reward)(checked_reward)
