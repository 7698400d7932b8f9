"""What a chat server that speaks OpenAI's protocol says in one response."""

import json
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from mechrefusal.evaluation.judges.chat_address import masked


@dataclass(frozen=True)
class Answer:
    """What the server said to one request.

    text: its message; None where it gave none, and then `problem` says why. finish_reason: "stop", "length", ...
    tokens_in, tokens_out: what the server counted; None where it did not say.
    """

    text: str | None
    problem: str = ""
    finish_reason: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None


def read_completion(content: bytes, *, key: str | None = None) -> Answer:
    """The answer in a response's body, or the problem that it is no chat completion.

    Args:
        key: what is not shown of a body that is none.
    """
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        text, finish_reason = choice["message"].get("content"), choice.get("finish_reason")
        if not (text is None or isinstance(text, str)):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        shown = " ".join(masked(content.decode("utf-8", "replace"), key).split())[:120]
        return Answer(None, problem=f"the server's answer is no chat completion: {shown!r}")
    usage = body.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    tokens_in, tokens_out = (n if isinstance(n, int) and n >= 0 else None for n in counts)
    return Answer(text, "", str(finish_reason or ""), tokens_in, tokens_out)


def retry_after(header: str | None) -> float | None:
    """Seconds that a server asks to wait: a number, or the time until a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
