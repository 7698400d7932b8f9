"""The word lists of the refusal rules; those that are not of any case read answers in lower case."""

from pathlib import Path

from mechrefusal.prompts.word_lists import WordLists

FOLDER = Path(__file__).parent / "words"
WORDS = WordLists(*sorted(FOLDER.glob("*.txt")))
"""All lists: `WORDS.declines` is the list `declines`, whichever file of `words/` it stands in."""
