"""The one error that a user is meant to read: what is wrong, where, and what to do. It tells no secret."""

import difflib
import os
import re
from collections.abc import Collection
from typing import Any

_USER = re.compile(
    r"((?:[a-z][a-z0-9+.-]*://|(?:https?|ftp|s3|gs|hf|ssh):/)/*)(?:\S*@|[^'\"\n]*@)",  # a path has one of the slashes
    re.IGNORECASE,
)
"""What stands between the scheme of an address and its last "@": users and passwords hold any character."""
_PARAMETER = re.compile(r"([?&;][^=\s?&;]*(?:key|token|secret|passw|auth|sig)[^=\s?&;]*=)[^\s&;'\"]+", re.IGNORECASE)
_HEADER = re.compile(r"(\bbearer\s+|authorization\W+(?:\w+\s+)?)[^\s'\"]{6,}", re.IGNORECASE)
_KNOWN = re.compile(r"\b(?:hf|sk|ghp|gho|glpat|github_pat|xox[abps])[_-][A-Za-z0-9_-]{16,}")
"""Tokens that say by their beginning whose they are, wherever they stand: in the path of an address, too."""
_VARIABLE = re.compile(r"(?:API_?KEY|JUDGE_KEY|TOKEN|SECRET|PASSWORD)$")
"""Environment variables by whose names their values are secrets."""
FEWEST_CHARACTERS = 6
"""A shorter value, such as EMPTY, is no secret, and might be a word of any text."""


class MechrefusalError(ValueError):
    """Bad input or an unusable state on disk.

    The message is a single line that names the thing, its value and the remedy. The command line prints it
    without a traceback and exits with status 2. Secrets in it are replaced (see `without_secrets`).
    """

    def __init__(self, message: object = "", *rest: object) -> None:
        """Hold the message."""
        super().__init__(without_secrets(message) if isinstance(message, str) else message, *rest)


def without_secrets(text: str) -> str:
    """The text with `***` in place of users and passwords in addresses, keys in their queries, values of headers that
    authorise, and what environment variables hold that are named for keys or tokens.
    """
    for name, value in os.environ.items():
        if _VARIABLE.search(name.upper()) and len(value.strip()) >= FEWEST_CHARACTERS:
            text = text.replace(value.strip(), "***")
    return without_secrets_of_addresses(text)


def without_secrets_of_addresses(text: str) -> str:
    """As `without_secrets`, by the form alone: users and passwords, keys in queries, values of headers, tokens."""
    text = _KNOWN.sub("***", _HEADER.sub(r"\1***", text))
    return _PARAMETER.sub(r"\1***", _USER.sub(r"\1***@", text))


def unless_secret(error: Exception) -> Exception | None:
    """The error, to be named as the cause of another; None where its words, or those of its own causes, hold a secret:
    a traceback shows them all.
    """
    cause: BaseException | None = error
    while cause is not None:
        if without_secrets(str(cause)) != str(cause):
            return None
        cause = cause.__cause__ or cause.__context__
    return error


def what_was_meant(key: Any, known: Collection[str], prefix: str = "") -> str:
    """Of an unknown key, the known one that it resembles, or all that are known."""
    if close := difflib.get_close_matches(str(key), known, n=1):
        return f"did you mean '{prefix}{close[0]}'?"
    return f"known here: {', '.join(known) or 'none'}"
