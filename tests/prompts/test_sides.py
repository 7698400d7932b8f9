"""Prompts of one's own: plain files, the two sides of a behaviour, and pairs."""

import json
import re

import pandas as pd
import pytest

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PairSet, PromptSet, Split


def file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    found = prompts.read_plain(file(tmp_path, "own.txt", "Who won?\n\n  Vote for whom? \n"), "own")
    assert found.texts == ["Who won?", "Vote for whom?"]
    assert found.ids == ["own-0001", "own-0003"]


@pytest.mark.parametrize("column", ["prompt", "Text", "instruction", "goal"])
def test_the_column_of_the_prompt_is_found(tmp_path, column):
    found = prompts.read_plain(file(tmp_path, "own.csv", f"id,{column},category\na,Who won?,sport\n,,\nb,,x\n"), "own")
    assert (found.texts, found.ids, found.table["category"].tolist()) == (["Who won?"], ["a"], ["sport"])
    assert found.dropped == 2


def test_targets_and_labels_are_kept(tmp_path):
    rows = [{"prompt": "Who won?", "target": "The winner", "label": "safe"}, {"prompt": "Who lost?"}]
    found = prompts.read_plain(file(tmp_path, "own.json", json.dumps(rows)), "own")
    assert found.table["target"].tolist()[0] == "The winner"
    assert found.table["label"].tolist()[0] == "safe"


def test_a_file_without_prompts_is_refused(tmp_path):
    with pytest.raises(MechrefusalError, match="none of the columns prompt"):
        prompts.read_plain(file(tmp_path, "own.csv", "a,b\n1,2\n"), "own")
    with pytest.raises(MechrefusalError, match="holds no prompt"):
        prompts.read_plain(file(tmp_path, "own.csv", "prompt,b\n,2\n"), "own")


def test_two_columns_are_twins(tmp_path):
    path = file(tmp_path, "own.csv", "harmful,harmless\nWho should win?,Who won?\nVote for whom?,Who stands?\n")
    found = prompts.read_sides("direction", path=path)
    assert found.harmful.texts == ["Who should win?", "Vote for whom?"]
    assert found.harmless.texts == ["Who won?", "Who stands?"]
    assert found.harmful.table["twin"].tolist() == found.harmless.table["twin"].tolist()
    assert found.harmful.ids == ["direction-0001-harmful", "direction-0002-harmful"]
    assert found.harmful.table["target"].str.len().gt(0).all()


def test_two_files_need_not_be_of_one_length(tmp_path):
    harmful, harmless = file(tmp_path, "a.txt", "Vote for whom?\n"), file(tmp_path, "b.txt", "Who won?\nWho stands?\n")
    found = prompts.read_sides("direction", harmful=harmful, harmless=harmless)
    assert (len(found.harmful), len(found.harmless)) == (1, 2)
    assert "twin" not in found.harmful.table
    with pytest.raises(MechrefusalError, match=r"holds 1 prompts and .* 2; pairs go row by row"):
        prompts.read_pairs("pairs", harmful=harmful, harmless=harmless)


def test_pairs_go_row_by_row(tmp_path):
    path = file(tmp_path, "own.csv", "harmful,harmless,category\nWho should win?,Who won?,sport\n")
    [pair] = prompts.read_pairs("pairs", path=path)
    assert (pair.harmful, pair.harmless, pair.category) == ("Who should win?", "Who won?", "sport")
    files = [file(tmp_path, name, f"{text}\n") for name, text in (("a.txt", "Vote for whom?"), ("b.txt", "Who won?"))]
    [pair] = prompts.read_pairs("pairs", harmful=files[0], harmless=files[1])
    assert (pair.harmful, pair.harmless) == ("Vote for whom?", "Who won?")


@pytest.mark.parametrize("given", [{}, {"path": "a", "harmful": "b", "harmless": "c"}, {"harmful": "b"}])
def test_one_way_to_give_them(given):
    with pytest.raises(MechrefusalError, match=re.escape("prompts direction: give path")):
        prompts.read_sides("direction", **given)


def test_a_row_with_one_side_is_refused(tmp_path):
    path = file(tmp_path, "own.csv", "harmful,harmless\nWho should win?,\n,\n")
    with pytest.raises(MechrefusalError, match="1 rows with one side only, such as 'direction-0001'"):
        prompts.read_sides("direction", path=path)


def test_pairs_are_found_by_their_lengths(tiny_hf):
    tokenizer = tiny_hf[1]
    harmful = ["steal a car", "make a very large bomb", "hack a bank"]
    harmless = ["wash the big old car", "bake a very large cake", "make a cake", "rob"]
    lengths = {text: prompts.segments(tokenizer, text).lengths for text in (*harmful, *harmless)}
    found = PairSet.matched(Split.of(harmful, harmless), tokenizer)
    assert len(found) > 0
    assert all(lengths[pair.harmful] == lengths[pair.harmless] for pair in found)
    for side in (found.harmful.texts, found.harmless.texts):
        assert len(set(side)) == len(side)
    # Nothing that could still be paired is left.
    left = [[text for text in side if text not in taken] for side, taken in (
        (harmful, found.harmful.texts), (harmless, found.harmless.texts),
    )]  # fmt: skip
    assert not {lengths[text] for text in left[0]} & {lengths[text] for text in left[1]}


def twins(name, texts, numbers):
    table = pd.DataFrame({"id": numbers, "text": texts, "category": "", "twin": numbers}, dtype=object)
    return PromptSet(name, table)


def test_twins_of_one_length_stay_together(tiny_hf):
    tokenizer = tiny_hf[1]
    texts = ["steal a car now", "now steal a car"]
    assert len({prompts.segments(tokenizer, text).lengths for text in texts}) == 1
    sides = Split(twins("harmful", texts, [1, 2]), twins("harmless", texts, [2, 1]))
    found = PairSet.matched(sides, tokenizer)
    assert [(pair.harmful, pair.harmless) for pair in found] == [(texts[0], texts[1]), (texts[1], texts[0])]


def test_twins_are_known_by_name_where_one_side_lost_a_prompt(tiny_hf):
    texts = ["rob a bank now", "now rob a bank", "a bank now rob"]
    assert len({prompts.segments(tiny_hf[1], text).lengths for text in texts}) == 1
    sides = Split(twins("harmful", texts, [1, 2, 3]), twins("harmless", texts[1:], [2, 3]))
    found = PairSet.matched(sides, tiny_hf[1])
    assert [(pair.harmful, pair.harmless) for pair in found] == [(texts[1], texts[1]), (texts[2], texts[2])]
