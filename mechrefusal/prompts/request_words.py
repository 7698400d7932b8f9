"""What a short request asks, as words, apart from how it is put: the reading behind near duplicates.

Requests that were made to differ in one word (a harmful one and its harmless twin, the contrast prompts of
over-refusal benchmarks) have nearly all of their letters in common, and two wordings of one request may have few: no
share of common letters tells the two apart. The words that carry content do.
"""

import re
import unicodedata
from dataclasses import dataclass

from mechrefusal.prompts.splits import folded

# Negations (not, never, without), possessives (my, her) and question words but "how" are content: they turn a request.
_SMALL = """
a an the this that these those some any such i you we they he she it one me us them him
is are was were be been being am do does did done doing have has had having
can could will would shall should may might must
to of in on at for from by with about into onto as and or so if then than there here how
please also just very really actually best good great better most more effective effectively easily easy quick quickly
quickest way ways method methods s d ll re ve m
"""
# Words that ask to be told, as stems: "explain how to", "give step-by-step instructions for", "write a guide on".
_TELL = """
explain describ tell teach show instruct instruction giv provid guid guidance tutorial manual outlin demonstrat
illustrat detail step
"""
_GUIDE = "guid guidance tutorial manual instruction step"
_MAKE = "writ creat generat develop design produc draft mak compos build construct"
SMALL, TELL, GUIDE, MAKE = (frozenset(listed.split()) for listed in (_SMALL, _TELL, _GUIDE, _MAKE))
ENDS_OBJECT = frozenset({"how", "on", "for", "to", "about", "with", "that", "of"})
"""Where what is to be made ends: "write a short guide | on how to"."""

# Scripts without spaces (Thai, Lao, Burmese, Khmer, kana, Han): each character is a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"\d+(?:[.,:/*^-]\d+)+|[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W_])+|[^\w\s]")
_SIGNS = "#%&@"
_JOINERS = frozenset("'-./_\\")
_LINE_ENDS = frozenset("\n\r\x0b\x0c\x85\u2028\u2029")


@dataclass(frozen=True)
class Words:
    """The words of a text, in order. `breaks[i]`: whether a sentence, line or quotation ends before word i.

    Signs such as "+" and emoji are words; punctuation is not. `breaks` has one more entry, for the end.
    """

    words: tuple[str, ...]
    breaks: tuple[bool, ...]


def words(text: str) -> Words:
    """The words of `text`, folded: compatibility characters, case and kinds of quotes do not count."""
    text_folded = folded(text)
    spelled: list[str] = []
    breaks = [True]
    end, after_sign = 0, False
    for match in _WORD.finditer(text_folded):
        word = match.group()
        is_sign = not word[0].isalnum()
        if is_sign and word not in _SIGNS and unicodedata.category(word)[0] in "PCZ":
            continue
        if spelled:
            gap = text_folded[end : match.start()]
            breaks.append(_breaks(gap) or ((is_sign or after_sign) and gap != ""))
        spelled.append(word)
        end, after_sign = match.end(), is_sign
    return Words(tuple(spelled), (*breaks, True) if spelled else (True,))


def content_words(text: str) -> frozenset[str]:
    """The words that say what `text` asks for, as stems; English.

    Words that only put the request ("how do I", "please", "the best way to", "give detailed instructions for", "write a
    guide on") are left out, inflection is taken off, and verbs of making (write, create, build) are one. In texts of
    other languages nearly every word is content.
    """
    spelled = re.sub(r"\bcannot\b", "can not", folded(text)).replace("can't", "can not").replace("won't", "will not")
    listed = words(re.sub(r"n't\b", " not", spelled)).words
    asks_how = listed[:1] == ("what",) and any(word in ("way", "ways", "method", "methods") for word in listed[1:7])
    stems = [_stem(word) for word in listed]
    content = set()
    for place, (word, stem) in enumerate(zip(listed, stems, strict=True)):
        if word in SMALL or stem in TELL or (asks_how and place == 0):
            continue
        if stem in MAKE and not word.startswith("building"):
            if _makes_a_guide(stems[place + 1 : place + 7]):
                continue
            stem = "make"
        content.add(stem)
    return frozenset(content)


def _makes_a_guide(following: list[str]) -> bool:
    for stem in following:
        if stem in GUIDE:
            return True
        if stem in ENDS_OBJECT:
            return False
    return False


def _stem(word: str) -> str:
    """English inflection taken off, roughly: what is left only has to be the same for forms of one word."""
    if not word.isalpha():
        return word
    for suffix, rest in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", "e"), ("s", "")):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and word[-2:] not in ("ss", "us"):
            word = word[: -len(suffix)] + rest
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "sl":
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def _breaks(gap: str) -> bool:
    marks = {character for character in gap if not character.isspace()} - {","}
    if not _LINE_ENDS.isdisjoint(gap) or not marks <= _JOINERS:
        return True
    return bool(marks) and len(gap) > len(marks)  # a joiner that joins nothing: a full stop, a dash, a closing quote
