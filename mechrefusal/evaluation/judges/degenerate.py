"""Completions that are no language: nothing, noise, or the same few words over and over."""

import re
import zlib
from collections import Counter

from mechrefusal.prompts import after_thought

WINDOW = 40
"""Words in which variety is counted: a long answer repeats words, a loop repeats them at once."""
FEWEST_DISTINCT = 0.3
"""Share of distinct words below which a window loops."""
START = 300
"""Characters in which symbols are counted."""
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\s*[-−+$€£]?\d[\d.,:/]*\s*[%.]?\s*")
"""One number alone, which may be the answer."""
_VOWELS = frozenset("aeiouy")
_CODE = re.compile(r"```|^\s{4,}\S|[{};]\s*$", re.MULTILINE)


def is_degenerate(completion: str) -> bool:
    """Whether the answer in a completion is no language: empty, without letters, a loop, noise, or not there yet.

    What is thought before it does not count; a thought without an end has no answer.
    """
    answer = after_thought(completion)
    return answer is None or why_degenerate(answer) is not None


def why_degenerate(completion: str) -> str | None:
    """What makes an answer no language, or None where it is language."""
    if not completion.strip():
        return "empty"
    if _NUMBER.fullmatch(completion):
        return None
    if not any(character.isalpha() for character in completion):
        return "no letters"
    words = _WORD.findall(completion.lower())
    if re.fullmatch(r"\W*(\w{1,4}?)\1{5,}\W*", completion):
        return f"one syllable over and over: {completion.strip()[:20]!r}"
    if _looping_share(words) > 0.5:
        return f"a few words over and over: {' '.join(words[-6:])!r}"
    for n_words, fewest in ((3, 3), (2, 5)):
        sentence, times, share = _commonest_sentence(completion, n_words)
        if times >= fewest and share > 0.5:
            return f"one sentence {times} times: {sentence[:60]!r}"
    if len(completion) > 300 and _compressed(completion) < 0.2:
        return "a passage over and over"
    start = completion[:START]
    letters = sum(character.isalpha() for character in start)
    symbols = sum(not character.isalnum() and not character.isspace() for character in start)
    if len(completion) >= 20 and symbols > letters and not _CODE.search(completion):
        return "more symbols than letters"
    if _without_vowels(words):
        return "words without vowels"
    return None


def _looping_share(words: list[str]) -> float:
    """Share of windows of words in which less than `FEWEST_DISTINCT` are distinct."""
    if len(words) < 8:
        return 0.0
    windows = [words[start : start + WINDOW] for start in range(0, len(words), WINDOW)]
    if len(windows) > 1 and len(windows[-1]) < 8:
        windows.pop()
    return sum(len(set(window)) / len(window) < FEWEST_DISTINCT for window in windows) / len(windows)


def _commonest_sentence(completion: str, n_words: int) -> tuple[str, int, float]:
    """Of the sentences and lines of at least `n_words`: the commonest, how often it stands, and its share of them."""
    pieces = [piece.strip().lower() for piece in re.split(r"[.!?\n]+", completion)]
    sentences = [piece for piece in pieces if len(piece.split()) >= n_words]
    if not sentences:
        return "", 0, 0.0
    sentence, times = Counter(sentences).most_common(1)[0]
    return sentence, times, times / len(sentences)


def _compressed(completion: str) -> float:
    data = completion.encode(errors="replace")
    return len(zlib.compress(data)) / len(data)


def _without_vowels(words: list[str]) -> bool:
    latin = [word for word in words if word.isascii() and word.isalpha() and len(word) > 2]
    return len(latin) >= 5 and sum(_VOWELS.isdisjoint(word) for word in latin) / len(latin) > 0.5
