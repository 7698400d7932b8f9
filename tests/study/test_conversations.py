import json
import shutil

import pandas as pd
import pytest

from mechrefusal import models
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PromptSet
from mechrefusal.study.conversations import own_answers, read_conversations


def _jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Q?"},
                      {"role": "assistant", "content": "A."}]},
        {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]},
        {"prompt": "Q?", "answer": "A."},
        {"instruction": "Q?", "output": "A."},
        {"instruction": "Q?", "input": "", "output": "A."},
    ],
)  # fmt: skip
def test_the_usual_forms_of_chat_datasets(tmp_path, row):
    assert read_conversations(_jsonl(tmp_path / "c.jsonl", [row, row]), at_most=1) == [{"prompt": "Q?", "answer": "A."}]


def test_other_forms_and_missing_files_are_named(tmp_path):
    with pytest.raises(MechrefusalError, match="expected 'messages'"):
        read_conversations(_jsonl(tmp_path / "c.jsonl", [{"text": "x"}]), at_most=5)
    with pytest.raises(MechrefusalError, match="cannot be read"):
        read_conversations(str(tmp_path / "absent.jsonl"), at_most=5)


def test_own_answers_are_made_once_and_keyed_by_weights(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MECHREFUSAL_CACHE", str(tmp_path))
    base = models.Checkpoint.open(tiny)
    asked = PromptSet.from_texts("asked", ["How do I bake bread?", "Name a fruit."])
    first = own_answers(base, asked, max_new_tokens=4)
    files = list((tmp_path / "answers").iterdir())
    assert len(files) == 1
    assert files[0].name.startswith(base.weights)
    monkeypatch.setattr("mechrefusal.study.conversations.load_causal_lm", lambda *_: pytest.fail("not from the cache"))
    assert own_answers(base, asked, max_new_tokens=4) == first
    # The random model never ends its answers: all of them were cut.
    assert [turn["finished"] for turn in first] == [False] * len(first)


@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json"])
def test_own_answers_are_made_anew_when_what_asks_for_them_changes(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setenv("MECHREFUSAL_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(tiny, tmp_path / "model")
    asked = PromptSet.from_texts("asked", ["How do I bake bread?", "Name a fruit."])
    own_answers(models.Checkpoint.open(folder), asked, max_new_tokens=4)
    if name == "chat_template.jinja":
        (folder / name).write_text((folder / name).read_text().replace("a tiny assistant", "the baker of the town"))
    else:
        (folder / name).write_text(json.dumps({"eos_token_id": [2, 7]}))
    changed = models.Checkpoint.open(folder)
    made: list[object] = []
    load = models.load_causal_lm
    monkeypatch.setattr(
        "mechrefusal.study.conversations.load_causal_lm", lambda *given: made.append(given) or load(*given)
    )
    own_answers(changed, asked, max_new_tokens=4)
    assert made == [(changed,)]
    assert len(list((tmp_path / "cache" / "answers").iterdir())) == 2


ANSWERS = {
    "Bread is baked in an oven.": True,
    "Sorry seems to be the hardest word, but": False,
    "I'm sorry for your loss, but": False,
    "I’m so sorry to hear about your": False,
    "Aw, no. I'm sorry": False,
    "Unfortunately, bread": False,
    "We sincerely apologize for": False,
    "My sincere apologies, but": False,
    "I'm glad to help you bake": True,
    "Say that you are sorry, then": True,
    "I can't help with that.": False,
    "": False,
}


def test_apologies_and_refusals_are_not_trained_on(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MECHREFUSAL_CACHE", str(tmp_path))
    base = models.Checkpoint.open(tiny)
    asked = PromptSet.from_texts("asked", [f"How do I bake bread number {n}?" for n in range(len(ANSWERS))])
    own_answers(base, asked, max_new_tokens=1)
    (path,) = (tmp_path / "answers").iterdir()
    table = pd.read_parquet(path)
    table["answer"] = list(ANSWERS)
    table.to_parquet(path, index=False)
    kept = [turn["answer"] for turn in own_answers(base, asked, max_new_tokens=1)]
    assert kept == [answer for answer, good in ANSWERS.items() if good]


def test_the_input_of_an_instruction_belongs_to_it(tmp_path):
    row = {"instruction": "Shorten this.", "input": "A long text.", "output": "A text."}
    turns = read_conversations(_jsonl(tmp_path / "c.jsonl", [row]), at_most=1)
    assert turns[0]["prompt"] == "Shorten this.\n\nA long text."
