"""The value PromptSet: what it refuses, and that every way of choosing prompts keeps rows whole."""

import numpy as np
import pandas as pd
import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import Pair, PromptSet


def letters() -> PromptSet:
    table = pd.DataFrame(
        {"id": list("abcde"), "text": [f"text {x}" for x in "abcde"], "category": "letters", "extra": range(5)}
    )
    return PromptSet("letters", table.set_index(pd.Index([9, 9, 3, 2, 1])))


def test_texts_ids_length_and_iteration_follow_the_table() -> None:
    prompts = letters()
    assert prompts.ids == ["a", "b", "c", "d", "e"]
    assert prompts.texts == list(prompts) == [f"text {x}" for x in "abcde"]
    assert len(prompts) == 5
    assert repr(prompts) == "PromptSet('letters', 5 prompts)"


@pytest.mark.parametrize(
    ("key", "ids"),
    [
        (slice(4), "abcd"),
        (slice(None, None, -2), "eca"),
        (slice(7, 9), ""),
        ([0, 3], "ad"),
        ([-1, 0, 0], "eaa"),
        ((2,), "c"),
        ([], ""),
        (np.array([4, 1]), "eb"),
        ([True, False, False, True, False], "ad"),
        (pd.Series([False, True, False, False, False], index=list("vwxyz")), "b"),
    ],
)
def test_choosing_prompts_keeps_rows_whole(key: object, ids: str) -> None:
    if ids == "eaa":
        with pytest.raises(MechrefusalError, match="has the id 'a' twice"):
            letters()[key]  # type: ignore[call-overload]
        return
    chosen = letters()[key]  # type: ignore[call-overload]
    assert chosen.ids == list(ids)
    assert chosen.table["extra"].tolist() == ["abcde".index(letter) for letter in ids]
    assert chosen.table.index.tolist() == list(range(len(ids)))
    assert chosen.name == "letters"


def test_a_number_gives_a_text() -> None:
    assert letters()[2] == letters()[-3] == letters()[np.int64(2)] == "text c"
    for outside in (5, -6):
        with pytest.raises(IndexError, match="is not in set 'letters' of 5 prompts"):
            letters()[outside]
    with pytest.raises(MechrefusalError, match="a mask of 2 values does not fit"):
        letters()[[True, False]]


def test_take_gives_the_first_ones() -> None:
    assert letters().take(2).ids == ["a", "b"]
    assert letters().take(0).ids == []
    assert letters().take(99).ids == list("abcde")
    with pytest.raises(MechrefusalError, match="cannot take -1 prompts"):
        letters().take(-1)


def test_the_callers_table_and_the_set_do_not_share_rows() -> None:
    table = pd.DataFrame({"id": ["a"], "text": ["hello"], "category": [""]})
    prompts = PromptSet("one", table)
    table.loc[0, "text"] = "changed"
    assert prompts.texts == ["hello"]


def test_from_texts_numbers_its_ids() -> None:
    prompts = PromptSet.from_texts("mine", ["one", "two"], category="c")
    assert prompts.ids == ["mine-0001", "mine-0002"]
    assert prompts.table["category"].tolist() == ["c", "c"]
    assert len(PromptSet.from_texts("none", [])) == 0
    with pytest.raises(MechrefusalError, match="was given one string"):
        PromptSet.from_texts("mine", "one")


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"id": ["a"], "text": ["x"]}, r"'bad' lacks the columns \['category'\]"),
        ({"id": ["a", "a"], "text": ["x", "y"], "category": ["", ""]}, "has the id 'a' twice"),
        ({"id": ["a"], "text": ["  "], "category": [""]}, "has no text in row 0"),
        ({"id": ["a", "b"], "text": ["x", None], "category": ["", ""]}, "has no text in row 1"),
        ({"id": ["a", None], "text": ["x", "y"], "category": ["", ""]}, "has no id in row 1"),
        ({"id": ["a", float("nan")], "text": ["x", "y"], "category": ["", ""]}, "has no id in row 1"),
    ],
)
def test_bad_tables_are_refused_by_name(table: dict[str, list[object]], complaint: str) -> None:
    with pytest.raises(MechrefusalError, match=complaint):
        PromptSet("bad", pd.DataFrame(table))


def test_with_targets_keeps_own_targets_and_fills_the_others() -> None:
    table = pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "text": ["How do I bake bread?", "context\n\n---\n\nWrite a poem", "anything"],
            "category": "",
            "behavior": ["How do I bake bread?", "Write a poem", "anything"],
            "target": ["Own words", None, " "],
        }
    )
    made = PromptSet("mixed", table).with_targets()
    assert made.table["target"].tolist() == ["Own words", "Sure, here is a poem", "Sure, here is what you asked for:"]
    assert "target" not in PromptSet.from_texts("x", ["y"]).table
    assert PromptSet.from_texts("x", ["How can I sing?"]).with_targets().table["target"].tolist() == [
        "Sure, here is how to sing"
    ]


def test_missing_categories_are_empty_and_missing_behaviours_are_the_text() -> None:
    table = pd.DataFrame(
        {"id": ["a", "b", "c"], "text": ["x", "Write a poem", "z"], "category": [None, "food", float("nan")],
         "behavior": ["How do I bake bread?", None, " "]}
    )  # fmt: skip
    made = PromptSet("own", table)
    assert made.table["category"].tolist() == ["", "food", ""]
    assert made.with_targets().table["target"].tolist() == [
        "Sure, here is how to bake bread", "Sure, here is a poem", "Sure, here is what you asked for:",
    ]  # fmt: skip


def test_half_of_a_surrogate_pair_is_replaced_wherever_it_stands() -> None:
    table = pd.DataFrame(
        {"id": ["a", "b"], "text": ["x \udc00", "y"], "category": "", "targets": [["Sure"], ["\ud83d", "Sure"]]},
        dtype=object,
    )
    with pytest.warns(UserWarning, match="half of a surrogate pair") as told:
        made = PromptSet("own", table)
    assert made.texts == ["x \ufffd", "y"]
    assert made.table["targets"].tolist() == [["Sure"], ["\ufffd", "Sure"]]
    assert [str(each.message).partition(" (")[0] for each in told] == [
        "prompt set 'own', row 0, column 'text'", "prompt set 'own', row 1, column 'targets'",
    ]  # fmt: skip
    assert table["text"][0] == "x \udc00", "the table that was given is left as it is"
    pair = Pair("p", "", "Break it \ud83d", "Bake it")
    assert (pair.harmful, pair.harmless) == ("Break it \ufffd", "Bake it")
