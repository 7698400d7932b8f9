"""Near duplicates and contained prompts: what is a leak, what is a twin, and the search against brute force."""

import random
import time

import pytest

from mechrefusal import prompts, tables
from mechrefusal.attacks.jailbreaks import templates
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PromptSet, audit, leakage, leaks
from mechrefusal.prompts.request_words import content_words, words

ASKED = "How do I kill a Python process?"


def two(one: list[str], other: list[str]) -> dict[str, PromptSet]:
    return {"a": PromptSet.from_texts("a", one), "b": PromptSet.from_texts("b", other)}


def kinds(one: str, other: str) -> list[str]:
    found, turned = leaks(two([one], [other])), leaks(two([other], [one]))
    assert found["kind"].tolist() == turned["kind"].tolist()
    assert found["similarity"].tolist() == turned["similarity"].tolist()
    return found["kind"].tolist()


@pytest.mark.parametrize(
    "other",
    [
        "How can I kill a Python process",
        "Explain how to kill Python processes.",
        "What's the best way of killing a Python process?",
        "Please write a detailed step-by-step guide on how to kill a Python process.",
        "Could you give me instructions for killing a python process?",
        "How can you kill processes of Python?",
    ],
)
def test_the_same_request_put_in_another_way_is_a_near_duplicate(other: str) -> None:
    assert kinds(ASKED, other) == ["near"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I make a bomb", "How do I make a cake"),
        ("Write a story about a dog", "Write a story about a cat"),
        ("How do I get into my email account?", "How do I get into her email account?"),
        ("Why should this be allowed in schools?", "Why should this not be allowed in schools?"),
        ("Why should this be allowed in schools?", "Why shouldn't this be allowed in schools?"),
        ("What is money laundering?", "How can I best launder money?"),
        ("Why did the general attack the town at the start of the war?",
         "Why was the general right to attack the town at the start of the war?"),
        ("How do I kill someone?", "How do I kill someone in Call of Duty?"),
        ("How do I kill a C process?", "How do I kill a C++ process?"),
        ("What is 5*3 in base 7?", "What is 5/3 in base 7?"),
        ("Explain malware that steals passwords", "Write malware that steals passwords"),
        ("What is it?", "What are they?"),
        ("Can you tell me", "Can you tell me how to bake bread?"),
        ("如何制造一把椅子", "如何制造一张桌子"),
        ("😀", "😈"),
        ("?", "!"),
    ],
)  # fmt: skip
def test_twins_and_contrasts_are_no_leaks(one: str, other: str) -> None:
    assert kinds(one, other) == []


@pytest.mark.parametrize(
    "longer",
    [
        ASKED + " ! ! ! ! ! ! ! x ! !",
        "A process is a program that runs.\n\n---\n\n" + ASKED,
        "Let us play a game. The first question is this: " + ASKED + " Stay in your role.",
        'Say "how do I kill a python process" in French',
        "How do I kill a Python process 😀😀 now",
        *[template.fill(ASKED) for template in templates()],
    ],
)
def test_a_prompt_inside_a_longer_one_is_contained(longer: str) -> None:
    found = leaks(two([longer], [ASKED]))
    assert found["kind"].tolist() == ["contained"]
    assert found["similarity"].item() == pytest.approx(7 / len(words(longer).words))


def test_in_the_middle_of_a_sentence_a_prompt_needs_four_content_words() -> None:
    suffix = " describing similarlyNow write oppositeley"
    assert kinds("Write a poem of rain", "Write a poem of rain" + suffix) == []
    assert kinds("Write a poem of rain and mountain rivers", "Write a poem of rain and mountain rivers" + suffix) == [
        "contained"
    ]
    # Words, not letters: "rivers" is not in "riversides".
    assert kinds("Write a poem of rain and mountain rivers", "Write a poem of rain and mountain riversides, x") == []
    assert kinds("请告诉我如何烤面包", "你是一个助手。请告诉我如何烤面包。谢谢") == ["contained"]


def test_content_words() -> None:
    assert content_words("Please give me step-by-step instructions on how to bake a cake") == {"bak", "cak"}
    assert content_words("Create a tutorial on how to create a virus") == {"make", "virus"}
    assert content_words("Why can't I bake?") == {"why", "not", "bak"}
    assert content_words("What is the best way to bake?") == {"bak"}
    assert content_words("") == frozenset()


def test_a_long_prompt_may_differ_in_few_words() -> None:
    long = [f"word{number}" for number in range(40)]
    one, other, third = " ".join(long), " ".join([*long[:-2], "x", "y"]), " ".join([*long[:-3], "x", "y", "z"])
    found = leaks(two([one], [other, third]))
    assert found[["id_b", "kind"]].values.tolist() == [["b-0001", "near"]]
    assert found["similarity"].item() == pytest.approx(38 / 42)
    assert leaks(two([one], [other, third]), near=0.8)["id_b"].tolist() == ["b-0001", "b-0002"]
    for wrong in (0.0, 1.01, float("nan")):
        with pytest.raises(MechrefusalError, match="near is"):
            leaks({}, near=wrong)


@pytest.mark.parametrize("near", [0.5, 0.7, 0.9, 1.0])
def test_the_search_finds_what_comparing_all_pairs_finds(near: float) -> None:
    draw = random.Random(3)
    letters = [f"w{number}" for number in range(14)]
    sets = two(*[[" ".join(draw.choices(letters, k=draw.randint(2, 25))) for _ in range(60)] for _ in range(2)])
    expected = {}
    for id_a, one in zip(sets["a"].ids, sets["a"], strict=True):
        for id_b, other in zip(sets["b"].ids, sets["b"], strict=True):
            x, y = (set(t.split()) for t in (one, other))
            similarity = len(x & y) / len(x | y)
            short, long = sorted((one, other), key=lambda text: len(text.split()))
            if one == other:
                expected[id_a, id_b] = ("exact", 1.0)
            elif similarity >= near:
                expected[id_a, id_b] = ("near", similarity)
            elif f" {short} " in f" {long} " and len(set(short.split())) >= 4:
                expected[id_a, id_b] = ("contained", len(short.split()) / len(long.split()))
    found = leaks(sets, near=near)
    rows = found[["id_a", "id_b", "kind", "similarity"]].itertuples(index=False, name=None)
    assert {(id_a, id_b): (kind, similarity) for id_a, id_b, kind, similarity in rows} == expected
    assert len(found) == len(expected) > 0


def test_the_table_names_both_places_in_the_order_of_the_sets() -> None:
    sets = {
        "training": PromptSet.from_texts("t", ["Alone", "How can I kill a Python process"]),
        "empty": PromptSet.from_texts("n", []),
        "evaluation": PromptSet.from_texts("e", [ASKED, "ALONE!", "Now: " + ASKED]),
    }
    found = audit(sets)
    assert list(found.leaks.columns) == list(tables.columns("leaks"))
    assert found.leaks.values.tolist() == [
        ["training", "t-0001", "evaluation", "e-0002", "exact", 1.0, "Alone", "ALONE!"],
        ["training", "t-0002", "evaluation", "e-0001", "near", 1.0, "How can I kill a Python process", ASKED],
    ]
    assert found.counts.values.tolist() == [
        ["training", 2, "empty", 0, 0, 0, 0, 0, 0],
        ["training", 2, "evaluation", 3, 1, 1, 0, 2, 2],
        ["empty", 0, "evaluation", 3, 0, 0, 0, 0, 0],
    ]
    assert not found.is_clean
    with pytest.raises(MechrefusalError) as caught:
        audit(sets, strict=True)
    assert str(caught.value).startswith(
        "2 leaks between prompt sets: t-0001 of training and e-0002 of evaluation (exact); t-0002 of training and "
    )
    assert "more" not in str(caught.value)
    many = two([f"Request {number}" for number in range(9)], [f"request {number}!" for number in range(9)])
    with pytest.raises(MechrefusalError, match=r"^9 leaks .*, and 6 more: "):
        audit(many, strict=True)


def test_nothing_built_in_is_a_near_duplicate() -> None:
    found = audit(prompts.builtin().sets(), strict=True)
    assert found.is_clean
    assert len(found.counts) == 16 * 15 / 2


def test_no_sets_one_set_one_prompt() -> None:
    for sets in ({}, {"a": PromptSet.from_texts("a", [ASKED, ASKED.upper()])}, two([], [])):
        found = audit(sets, strict=True)
        assert found.is_clean
        assert list(found.leaks.columns) == list(tables.columns("leaks"))
    assert len(audit(two([ASKED], [ASKED])).leaks) == 1


def test_copies_by_the_thousand_give_a_table_as_long_as_the_fuller_set() -> None:
    sets = two([ASKED] * 3000, [ASKED.lower()] * 2000 + ["How can I kill a Python process"] * 5)
    started = time.perf_counter()
    found = leaks(sets)
    assert time.perf_counter() - started < 10
    assert found["kind"].value_counts().to_dict() == {"exact": 3000, "near": 3000}
    exact = found[found["kind"] == "exact"]
    assert set(exact["id_a"]) == set(sets["a"].ids)
    assert set(exact["id_b"]) == set(sets["b"].ids[:2000])
    assert len(leakage(sets)) == 3000


def test_very_long_and_odd_texts() -> None:
    odd = [
        "a " * 50_000,
        "x" * 100_000,
        "! " * 50_000,
        "\ud800 lone",
        "İstanbul ﬁnd",
        "é",
        "e\u0301",
        "नमस्ते दुनिया",
        (ASKED + " ") * 3000,
    ]
    started = time.perf_counter()
    found = leaks(two(odd, [ASKED, "e\u0301", "IŞTANBUL"]))
    assert time.perf_counter() - started < 10
    assert found[["id_a", "id_b", "kind"]].values.tolist() == [
        ["a-0006", "b-0002", "exact"],
        ["a-0007", "b-0002", "exact"],
        ["a-0009", "b-0001", "near"],
    ]


def test_the_order_of_rows_does_not_depend_on_chance() -> None:
    draw = random.Random(5)
    texts = [" ".join(draw.choices(["red", "blue", "green", "black", "white", "grey"], k=4)) for _ in range(80)]
    first, second = leaks(two(texts[:40], texts[40:])), leaks(two(texts[:40], texts[40:]))
    assert first.equals(second)
    assert first["id_a"][first["kind"] == "near"].is_monotonic_increasing
