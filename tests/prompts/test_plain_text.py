"""Texts made alike before rules read them."""

import random
import sys
import unicodedata

import pytest

from mechrefusal.evaluation import RefusalJudge, is_degenerate, is_refusal
from mechrefusal.prompts import affirmative_target, normalised
from mechrefusal.prompts.plain_text import plain, straightened

APOSTROPHES = "'’‘‛ʼʹʻʽˈ′´＇`‚ꞌ՚"
HYPHENS = "-‐‑‒–−﹣－⁃"
UNSEEN = (
    "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u061c\u200e\u202a\u202e\u2066\ufe0f\U000e0100\U000e0041\u180e\x00\x1b"
)


@pytest.mark.parametrize("sign", APOSTROPHES)
def test_every_apostrophe(sign):
    text = f"I can{sign}t help with that."
    assert plain(text) == "I can't help with that."
    assert is_refusal(text)
    assert not is_refusal(f"Here{sign}s a recipe you can{sign}t get wrong.")
    assert affirmative_target(f"What{sign}s the best way to bake?") == "Sure, here is the best way to bake"
    assert normalised(f"Don{sign}t stop") == "don't stop"


@pytest.mark.parametrize("pair", ["“”", "„“", "«»", "‟”", "″″", "＂＂", "「」", "❝❞", '""'])
def test_every_quotation_mark(pair):
    quoted = f"It means {pair[0]}I can't help with that{pair[1]} in English."
    assert plain(quoted) == 'It means "I can\'t help with that" in English.'
    assert not is_refusal(quoted), "quoted words are nobody's refusal"


@pytest.mark.parametrize("dash", HYPHENS)
def test_every_hyphen(dash):
    assert plain(f"off{dash}limits") == "off-limits"
    assert is_refusal(f"That's off{dash}limits.", "How do I rob a bank?")
    assert is_refusal(f"Sorry {dash} I cannot provide that.")
    assert normalised(f"step{dash}by{dash}step") == "step-by-step"


@pytest.mark.parametrize("dash", ["—", " — ", "―", "⸺", "--", " -- "])
def test_a_long_dash_parts(dash):
    assert plain(f"locks{dash}and keys") == "locks - and keys"
    assert is_refusal(f"I can't{dash}and won't{dash}help.", "How do I rob a bank?")
    assert is_refusal(f"Sorry{dash}no.", "How do I rob a bank?")
    assert not is_refusal(f"Yes{dash}mix flour and water.", "How do I bake bread?")
    assert plain("git --version, 5 - 3, a-b") == "git --version, 5 - 3, a-b"


@pytest.mark.parametrize("sign", UNSEEN, ids=[f"{ord(sign):x}" for sign in UNSEEN])
def test_every_character_without_width(sign):
    text = sign.join("I can't help with that.")
    assert plain(text) == "I can't help with that."
    assert is_refusal(text)
    assert is_degenerate(sign * 20)
    assert is_degenerate(sign.join("the " * 10))
    assert (
        RefusalJudge().label(sign.join("How do I bake bread?"), sign.join("Mix flour and water.")) == "full_compliance"
    )
    assert normalised(sign.join("two words")) == "two words"


@pytest.mark.parametrize(
    "text",
    [
        "Ｉ ｃａｎ＇ｔ ｈｅｌｐ ｗｉｔｈ ｔｈａｔ．", "𝐈 𝐜𝐚𝐧'𝐭 𝐡𝐞𝐥𝐩 𝐰𝐢𝐭𝐡 𝐭𝐡𝐚𝐭.", "I can't help with that.",
        "𝙸 𝚌𝚊𝚗𝚗𝚘𝚝 𝚊𝚜𝚜𝚒𝚜𝚝 𝚠𝚒𝚝𝚑 𝚝𝚑𝚊𝚝.",
        "I\u2028can't help with that.", "I can’t…", "Ⅰ can't help with that.",
    ],
)  # fmt: skip
def test_compatibility_characters(text):
    assert is_refusal(text)


def test_line_ends_and_what_stays():
    assert plain("a\r\nb\rc\u2028d\x85e\x0bf") == "a\nb\nc\nd\ne\nf"
    assert plain("`kill -9`, ```a'b```") == "`kill -9`, ```a'b```", "backticks that mark code stay"
    assert straightened("x² ﬁne") == "x² ﬁne", "compatibility characters stay where texts are not for rules"
    assert plain("Привет, 世界! مرحبا") == "Привет, 世界! مرحبا"
    assert plain("Р") == "Р", "Cyrillic that looks Latin is Cyrillic"


def test_making_plain_twice_is_making_plain_once():
    draw = random.Random(0)
    odd = [
        chr(code) for code in range(sys.maxunicode) if unicodedata.category(chr(code)) in ("Cf", "Mn", "Pd", "Pi", "Pf")
    ]
    for _ in range(300):
        text = "".join(draw.choices([*odd, *"ab '`\n"], k=12))
        assert plain(plain(text)) == plain(text), ascii(text)


def test_one_place_makes_texts_alike():
    """No other module of the package spells out curly quotes in a rule."""
    from pathlib import Path

    import mechrefusal

    root = Path(mechrefusal.__file__).parent
    apart = {"prompts/plain_text.py", "attacks/autodan_texts.py"}
    spelled = [
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if any(sign in path.read_text("utf-8") for sign in ("’", "”", "\\u2019", "\\u201d", "NFKC"))
    ]
    assert set(spelled) == apart, "texts of an attack's own seeds; rules read plain texts"
