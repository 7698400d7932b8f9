"""Where a chat server is, and what it is told to keep secret."""

import html
import json
import os
import re
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlsplit

from mechrefusal.errors import FEWEST_CHARACTERS, MechrefusalError

_LAST_URL = re.compile(r"(?P<model>.*)@(?P<url>https?://.*)", re.DOTALL | re.IGNORECASE)


def model_and_url(source: str) -> tuple[str, str]:
    """Model and address of MODEL@URL. The address begins at the last "@http": names of models hold "@" too.

    Raises:
        MechrefusalError: one of the two is missing, or the address carries a user, password or query. The message
            shows nothing of what was given: there may be a secret in it.
    """
    parts = _LAST_URL.fullmatch(source)
    if parts is None or not parts["model"].strip():
        raise MechrefusalError(
            "judge 'chat': give chat=MODEL@URL, such as chat=llama3@http://localhost:8000/v1; the URL begins at the "
            "last '@http'"
        )
    if "://" in parts["model"]:
        raise MechrefusalError(
            "judge 'chat': there are two addresses in it, or a user in one; give chat=MODEL@URL, and put a key into an "
            "environment variable"
        )
    return parts["model"], checked_url(parts["url"])


def checked_url(base_url: str) -> str:
    """The address without a slash at its end.

    Raises:
        MechrefusalError: it is none, or carries a user, password or query, of which the message shows nothing.
    """
    try:
        parts = urlsplit(base_url)
        host, named = parts.hostname, parts.username is not None
        known = parts.scheme in ("http", "https") and bool(host) and parts.port != -1
    except ValueError:  # a port or a host in brackets that is none
        host, named, known = None, False, False
    if any(character in base_url for character in "@?#"):
        # With one "@", behind a user, the host is one; with others it may be a part of the password.
        clear = known and (base_url.count("@") == 0 or (base_url.count("@") == 1 and named))
        where = f"base_url for '{host}'" if clear else "base_url"
        raise MechrefusalError(
            f"{where} carries a user, password or query; put the key into an environment variable and name it with "
            "key_variable="
        )
    if not known:
        raise MechrefusalError(
            f"base_url '{base_url}' is no address of a server; give one like 'http://localhost:8000/v1'"
        )
    return base_url.rstrip("/")


def key_of(variable: str | None) -> str | None:
    """The key in an environment variable; None without a variable.

    Raises:
        MechrefusalError: there is none, or one with a character that no header carries. The message does not show it.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise MechrefusalError(f"environment variable {variable} holds no key; set it, or leave key_variable out")
    if wrong := [place for place, character in enumerate(key, start=1) if not " " <= character <= "~"]:
        raise MechrefusalError(
            f"environment variable {variable} holds a key whose character {wrong[0]} of {len(key)} is none that a "
            "header can carry; set it anew, without line ends and quotation marks around it"
        )
    return key


def masked(text: str, key: str | None) -> str:
    """The text with `***` for the key, however it is written: as it is, in JSON, in an address, in HTML."""
    if key is None:
        return text
    in_json = json.dumps(key)[1:-1]
    written = {key, in_json, in_json.replace("/", "\\/"), html.escape(key), html.escape(key, quote=False)}
    written |= {coded(key) for coded in (quote, quote_plus)} | {quote(key, safe="")}
    for form in sorted(written, key=len, reverse=True):
        text = re.sub(re.escape(form), "***", text, flags=re.IGNORECASE if "%" in form else 0)
    unescaped = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), text)
    if any(key in read(unescaped) for read in (str, unquote, unquote_plus, html.unescape)):
        return "*** (it repeats the key)"
    return text


def masked_in_answer(text: str | None, key: str | None) -> str | None:
    """What a judge said, without the key; a key of a few characters, such as EMPTY, is none, and may be any word."""
    return text if text is None or key is None or len(key) < FEWEST_CHARACTERS else masked(text, key)
