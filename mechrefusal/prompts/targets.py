"""The opening of an answer that complies: what an attack optimises towards, and what R2D2 trains away from."""

import re
from pathlib import Path

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts.plain_text import straightened
from mechrefusal.prompts.word_lists import WordLists

FALLBACK = "Sure, here is what you asked for:"

FORMS = WordLists(Path(__file__).parent / "request_forms.txt")
"""The forms of requests, as patterns of the words that they open with."""
_HOW = (FORMS.how_one_does, FORMS.how_to, FORMS.taught_to, FORMS.helped_to, FORMS.wishes_to)
"""Tried in this order."""

_PERSONS = (
    (r"\bI am\b", "you are"),
    (r"\bam I\b", "are you"),
    (r"\bI was\b", "you were"),
    (r"\bI'(?=(?:ve|ll|d)\b)", "you'"),
    (r"\bI'm\b", "you're"),
    (r"(?<!War )\bI\b(?!['.\-])", "you"),
    (r"(?<!-)\b[Mm]yself\b", "yourself"),
    (r"(?<!-)\b[Mm]ine\b(?=\W*$| (?:and|or|is|was)\b)", "yours"),
    (r"(?<!-)\b[Mm]y\b", "your"),
    (r"(?<!-)\b[Mm]e\b(?!-)", "you"),
    (r"\b[Oo]urselves\b", "yourselves"),
    (r"\b[Oo]ur\b", "your"),
    (r"\bwe\b", "you"),
)


def affirmative_target(request: str) -> str:
    """The opening of an answer that does what is asked: "Tell me how to sing" -> "Sure, here is how to sing".

    A rule on the form of the request, after AdvBench's targets ("Sure, here is ...", 2307.15043, section 2.1). A
    request of several sentences is read by its first one that has a known form; one without any gets "Sure, here is
    what you asked for:". The user's own I, me and my become you and your, except between double quotes. The rule and
    its targets are English; `given_targets` reads others from a file.

    Raises:
        MechrefusalError: the request is blank.
    """
    if not request.strip():
        raise MechrefusalError("an affirmative target was asked for a blank request: give the text of a request")
    for sentence in _sentences(straightened(request).strip()):
        opening = _opening(sentence)
        if opening:
            return opening
    return FALLBACK


def _opening(sentence: str) -> str | None:
    request = sentence.strip().rstrip("?!. \t\n")
    while FORMS.polite.match(request):
        request = FORMS.polite.sub("", request, count=1)
    for form in _HOW:
        if form_match := form.fullmatch(request):
            return f"Sure, here is how to {_second_person(form_match['rest'])}"
    if form_match := FORMS.where.fullmatch(request):
        return f"Sure, here is where you can {_second_person(form_match['rest'])}"
    if form_match := FORMS.what.fullmatch(request):
        return f"Sure, here {'are' if form_match['plural'] else 'is'} {_second_person(form_match['rest'])}"
    if form_match := FORMS.make.fullmatch(request) or FORMS.tell.fullmatch(request):
        return f"Sure, here {_number(form_match['rest'])} {_second_person(form_match['rest'])}"
    return None


def _number(phrase: str) -> str:
    """ "is" or "are" by the head of the first noun phrase: its article if it has one, otherwise its last word."""
    if FORMS.singular.match(phrase):
        return "is"
    if FORMS.plural.match(phrase):
        return "are"
    border = FORMS.border.search(phrase)
    head = (phrase[: border.start()] if border else phrase).split()
    return "are" if head and re.search(r"(?<![sui])s$|people$|children$", head[-1]) else "is"


def _second_person(text: str) -> str:
    pieces = re.split(r'("[^"]*")', text)
    for place in range(0, len(pieces), 2):
        for pattern, word in _PERSONS:
            pieces[place] = re.sub(pattern, word, pieces[place])
    return "".join(pieces)


def _sentences(text: str) -> list[str]:
    sentences: list[str] = []
    start = 0
    for gap in re.finditer(r"(?<=[.?!])[\"']?\s+|\n\s*\n", text):
        if not FORMS.abbreviation.search(text[start : gap.start()]):
            sentences.append(text[start : gap.start()])
            start = gap.end()
    return [*sentences, text[start:]]
