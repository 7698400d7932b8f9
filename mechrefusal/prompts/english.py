"""Whether texts are English, as far as script and common words tell: for warnings, not for measurements."""

import re
import unicodedata
from collections.abc import Iterable

from mechrefusal.prompts.plain_text import plain
from mechrefusal.prompts.thoughts import after_thought

CRITERION = (
    "more than half of their letters are not Latin, or of 8 or more words fewer than 1 in 16 is common in English"
)
_COMMON = frozenset(
    re.split(
        " ",
        "the of and to is that for it with be by not this are or his from which but had they you were there we can has "
        "would she my your what when who how their them its than these about it's don't can't i'm been because some "
        "into more should could",
    )
)
"""Words that other languages in Latin letters hardly have."""
_WORDS, _SHARE = 8, 1 / 16


def is_english(text: str) -> bool | None:
    """Whether a text seems English; None where it has no letters. What is thought before an answer does not count.

    It is not where more than half of its letters are of another script than Latin, or where, of at least 8 words, fewer
    than 1 in 16 is among those common in English. Short texts in Latin letters pass.
    """
    spelled = plain(after_thought(text) or "").lower()
    letters = [character for character in spelled if character.isalpha()]
    if not letters:
        return None
    latin = sum(character.isascii() or unicodedata.name(character, "").startswith("LATIN") for character in letters)
    if 2 * latin < len(letters):
        return False
    words = [word for part in spelled.split() if (word := part.strip('.,;:!?()[]"*_#-')) and word[0].isalpha()]
    return len(words) < _WORDS or sum(word in _COMMON for word in words) >= _SHARE * len(words)


def share_not_english(texts: Iterable[str]) -> tuple[int, int]:
    """How many of the texts with letters are not English, and how many there are."""
    verdicts = [english for text in texts if (english := is_english(text)) is not None]
    return verdicts.count(False), len(verdicts)
