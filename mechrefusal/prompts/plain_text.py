"""The one way in which texts are made alike before rules read them: no rule knows curly quotes or unseen characters."""

import re
import unicodedata

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters without width (Unicode's Default_Ignorable_Code_Point, and annotation marks): soft hyphens, zero-width
spaces and joiners, marks of direction, variation selectors, byte order marks."""
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_APOSTROPHES = (
    "\u00b4\u02b9\u02bb\u02bc\u02bd\u02c8\u02ca\u02cb\u0384\u055a\u2018\u2019\u201a\u201b\u2032\u2035\u2039\u203a"
    "\u275b\u275c\ua78c\uff07\uff40"
)
_QUOTES = "\u00ab\u00bb\u02dd\u02ee\u201c\u201d\u201e\u201f\u2033\u2036\u275d\u275e\u300c-\u300f\u301d-\u301f\uff02"
_HYPHENS = "\u2010-\u2013\u2043\u2212\ufe58\ufe63\uff0d"
_LONG_DASHES = "\u2014\u2015\u2e3a\u2e3b"
_SIGNS = (
    (re.compile(f"[{_APOSTROPHES}]|(?<=[^\\W\\d_])`(?=[^\\W\\d_])"), "'"),
    (re.compile(f"[{_QUOTES}]"), '"'),
    (re.compile(f"[{_HYPHENS}]"), "-"),
    (re.compile(f"[ \\t]*[{_LONG_DASHES}][ \\t]*|(?<=[^\\W\\d_])(?:--| -- )(?=[^\\W\\d_])"), " - "),
)


def straightened(text: str) -> str:
    """`text` with straight apostrophes and quotes, "-" for every dash, "\\n" for every line end, nothing unseen.

    A long dash parts what stands beside it, so that spaces stand around its "-"; two hyphens between letters are one. A
    backtick between letters is an apostrophe; elsewhere it marks code and stays. Control characters other than tabs
    and line ends are unseen too.
    """
    text = _CONTROLS.sub("", _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)))
    for pattern, straight in _SIGNS:
        text = pattern.sub(straight, text)
    return text


def plain(text: str) -> str:
    """`text` as rules read it: `straightened`, with compatibility characters (NFKC: full width, ligatures) as usual.

    Signs are straightened before NFKC, which would take an acute accent for an accent on a space, and after it, where
    it makes new ones. Letters of other scripts that look Latin stay what they are.
    """
    return straightened(unicodedata.normalize("NFKC", straightened(text)))
