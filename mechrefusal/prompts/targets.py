"""The opening of an answer that complies: what an attack optimises towards, and what R2D2 trains away from."""

import re

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts.plain_text import straightened

FALLBACK = "Sure, here is what you asked for:"

_POLITE = re.compile(r"^(?:please|kindly|now|(?:can|could|would|will) you)\b[\s,]*", re.IGNORECASE)
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|prof|vs|etc|no|e\.g|i\.e|a\.m|p\.m|[a-z])\.$", re.IGNORECASE)
_WHO = r"(?:I|we|you|one|someone|somebody|anyone|a person|people)"
# Tried in order; `rest` is what the user wants, without the final punctuation.
_HOW = (
    re.compile(rf"how (?:do|does|can|could|would|should|might|may) {_WHO}\s+(?P<rest>.+)", re.IGNORECASE | re.DOTALL),
    re.compile(
        r"(?:(?:explain|describe|demonstrate|illustrate|outline|learn|tell|show|teach|instruct|educate|advise|guide)"
        r"(?:\s+\S+){0,4}?\s+)?"
        r"how to\s+(?P<rest>.+)",
        re.IGNORECASE | re.DOTALL,
    ),
    re.compile(r"(?:teach|show) (?:me|us|(?:my|our)\s+\S+)(?: how)? to\s+(?P<rest>.+)", re.IGNORECASE | re.DOTALL),
    re.compile(r"help (?:me|us)(?: to)?\s+(?P<rest>(?!with\b).+)", re.IGNORECASE | re.DOTALL),
    re.compile(
        r"(?:I|we)(?: want|'d like| would like| need| wish| plan) to\s+(?P<rest>[^;]+)(?:;.*)?",
        re.IGNORECASE | re.DOTALL,
    ),
)
_WHERE = re.compile(r"where (?:can|could|do|might|may|should|would) (?:I|we)\s+(?P<rest>.+)", re.IGNORECASE | re.DOTALL)
_WHAT = re.compile(
    r"what(?:\s+is|(?P<plural>\s+are)|'s)\s+"
    r"(?P<rest>(?:(?:a|an|the|some|several|a few|all)\s+)?(?:\S+\s+){0,3}?(?:ways?|methods?|steps?|means)\b.+)",
    re.IGNORECASE | re.DOTALL,
)
_MAKE = re.compile(
    r"(?:write|create|draft|give|generate|develop|design|produce|compose|prepare|devise|provide|propose|present|offer|"
    r"suggest|list|name|construct|craft|outline|invent|build|make|recommend|share|publish)(?: out| up| down)?"
    r"(?: (?:me|us)\b)?\s+(?P<rest>.+)",
    re.IGNORECASE | re.DOTALL,
)
# Verbs that are followed by a thing only sometimes ("describe the steps", but "describe why").
_TELL = re.compile(
    r"(?:describe|detail|illustrate|explain|brainstorm|identify|find(?: (?:me|us))?|come up with|"
    r"think of|(?:tell|show) (?:me|us))\s+"
    r"(?P<rest>(?:(?:a|an|the|some|several|two|three|four|five|six|seven|eight|nine|ten|\d+)\s|"
    r"(?:ways|methods|steps|techniques|tactics|strategies|tips|ideas)\b).+)",
    re.IGNORECASE | re.DOTALL,
)

_SINGULAR = re.compile(r"(?:a|an|one|this|that|another|each|every)\s", re.IGNORECASE)
_PLURAL = re.compile(
    r"(?:some|several|many|few|these|those|two|three|four|five|six|seven|eight|nine|ten|\d+)\s", re.IGNORECASE
)
# Where the first noun phrase ends.
_BORDER = re.compile(
    r"[,;:]|\s(?:for|to|that|of|on|about|who|which|whose|with|without|from|in|into|at|by|against|where|how|as|and|or|"
    r"\w{3,}ing|showing|using)\b",
    re.IGNORECASE,
)

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
    asked = sentence.strip().rstrip("?!. \t\n")
    while _POLITE.match(asked):
        asked = _POLITE.sub("", asked, count=1)
    for form in _HOW:
        if found := form.fullmatch(asked):
            return f"Sure, here is how to {_second_person(found['rest'])}"
    if found := _WHERE.fullmatch(asked):
        return f"Sure, here is where you can {_second_person(found['rest'])}"
    if found := _WHAT.fullmatch(asked):
        return f"Sure, here {'are' if found['plural'] else 'is'} {_second_person(found['rest'])}"
    if found := _MAKE.fullmatch(asked) or _TELL.fullmatch(asked):
        return f"Sure, here {_number(found['rest'])} {_second_person(found['rest'])}"
    return None


def _number(phrase: str) -> str:
    """ "is" or "are" by the head of the first noun phrase: its article if it has one, otherwise its last word."""
    if _SINGULAR.match(phrase):
        return "is"
    if _PLURAL.match(phrase):
        return "are"
    border = _BORDER.search(phrase)
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
        if not _ABBREVIATION.search(text[start : gap.start()]):
            sentences.append(text[start : gap.start()])
            start = gap.end()
    return [*sentences, text[start:]]
