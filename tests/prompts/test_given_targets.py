"""Targets from a file, by id or by text, for prompts of any source."""

import json

import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PromptSet
from mechrefusal.prompts.given_targets import with_given_targets
from mechrefusal.study.selection import behaviours
from mechrefusal.study.settings import Source

ASKED = PromptSet.from_texts("asked", ["Wie backe ich Brot?", "Расскажи сказку.", "Name “two” fruits"])
ROWS = [("Ja, so backt man Brot:", "asked-0001"), ("Конечно, вот сказка:", "asked-0002"), ("Sure:", "asked-0003")]


def _json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "id,target\n" + "".join(f'{id},"{target}"\n' for target, id in ROWS)),
        ("t.tsv", "target\tID\n" + "".join(f"{target}\t{id}\n" for target, id in ROWS)),
        ("t.jsonl", "".join(json.dumps({"id": id, "target": target}) + "\n" for target, id in ROWS)),
        ("t.json", json.dumps([{"behaviorid": id, "target": target, "text": ""} for target, id in ROWS])),
        ("t.json", json.dumps({id: target for target, id in ROWS})),
        ("t.json", json.dumps({id: [" ", target, "x"] for target, id in ROWS})),
        ("t.csv", "text,target\n" + "".join(f'"{t}","{r[0]}"\n' for t, r in zip(ASKED.texts, ROWS, strict=True))),
    ],
)
def test_every_form_of_a_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    found = with_given_targets(ASKED, path)
    assert found.table["target"].tolist() == [target for target, _ in ROWS]
    assert found.with_targets().table["target"].tolist() == [target for target, _ in ROWS]
    assert "target" not in ASKED.table


def test_kinds_of_quotes_case_and_white_space_do_not_count_in_texts(tmp_path):
    given = {"wie backe  ich brot": "a", "расскажи\u200b сказку": "b", 'name "two" fruits': ["c", "d"]}
    found = with_given_targets(ASKED, _json(tmp_path / "t.json", given))
    assert found.table["targets"].tolist() == [["a"], ["b"], ["c", "d"]]


def test_several_rows_of_a_table_are_several_targets(tmp_path):
    path = tmp_path / "t.csv"
    rows = "".join(f"{text.upper()},{k}\n" for k in "xy" for text in ASKED.texts)
    path.write_text(f"text,target\n{rows}", encoding="utf-8")
    assert with_given_targets(ASKED, path).table["targets"].tolist() == [["x", "y"]] * 3


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("t.csv", "id,goal2\na,b\n", "has no column 'target'"),
        ("t.csv", "target,language\na,b\n", "give a column 'id' or 'text' beside 'target'; found target, language"),
        ("t.csv", "id,target\nasked-0001,x\nasked-0002,\n", r"no target for 2 of 3 .*\(asked-0002, asked-0003\)"),
        ("t.json", '{"asked-0001": {"a": 1}}', "no list of strings for 'asked-0001'"),
        ("t.json", "3", "does not map behaviour ids to targets"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, text, complaint):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MechrefusalError, match=complaint):
        with_given_targets(ASKED, path)


def test_the_built_in_prompts_take_them_too(tmp_path):
    plain = behaviours(Source(), n=3)
    given = _json(tmp_path / "t.json", {text: f"Ja, {n}:" for n, text in enumerate(behaviours(Source()).texts)})
    found = behaviours(Source(targets=str(given)), n=3)
    assert found.texts == plain.texts
    assert found.table["target"].tolist() == ["Ja, 0:", "Ja, 1:", "Ja, 2:"]
