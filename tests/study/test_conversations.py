import json
import shutil

import pandas as pd
import pytest

from mechrefusal import models
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PromptSet
from mechrefusal.prompts.conversations import read_conversations
from mechrefusal.study.own_answers import own_answers


def _jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "system", "content": " "}, {"role": "user", "content": "Q?"},
                      {"role": "assistant", "content": "A."}]},
        {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."},
                      {"role": "user", "content": "B?"}, {"role": "user", "content": "C?"}]},
        {"messages": [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Q?"},
                      {"role": "assistant", "content": "A."}]},
        {"messages": json.dumps([{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}])},
        {"messages": {"role": ["user", "assistant"], "content": ["Q?", "A."]}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "text", "text": "?"}]},
                      {"role": "model", "content": [{"type": "text", "text": "A."}]}]},
        {"prompt": [{"role": "user", "content": "Q?"}], "completion": [{"role": "assistant", "content": "A."}]},
        {"prompt": [{"role": "user", "content": "Q?"}], "completion": "A."},
        {"question": "Q?", "response": "A.", "system_prompt": None, "history": []},
        {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]},
        {"prompt": "Q?", "answer": "A."},
        {"instruction": "Q?", "output": "A."},
        {"instruction": "Q?", "input": "", "output": "A."},
    ],
)  # fmt: skip
def test_the_usual_forms_of_chat_datasets(tmp_path, row):
    assert read_conversations(_jsonl(tmp_path / "c.jsonl", [row, row]), at_most=1) == [{"prompt": "Q?", "answer": "A."}]


SYSTEM = {"role": "system", "content": "Answer like a pirate."}
USER, SAID = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [SYSTEM, USER, SAID]}, "a system turn before the answer"),
        ({"messages": [USER, SYSTEM, SAID]}, "a system turn before the answer"),
        ({"prompt": [SYSTEM, USER], "completion": [SAID]}, "a system turn before the answer"),
        ({"prompt": "Q?", "answer": "A.", "system": "Answer like a pirate."}, "a system turn before the answer"),
        ({"prompt": "Q?", "answer": "A.", "history": [["B?", "B."]]}, "earlier turns before the question"),
        ({"prompt": [USER, SAID, USER], "completion": [SAID]}, "earlier turns before the question"),
        ({"messages": [USER, USER, SAID]}, "two turns of the user in a row"),
        ({"messages": [USER, SAID, SAID]}, "two turns of the assistant in a row"),
        ({"messages": [USER, {"role": "tool", "content": "4"}, SAID]}, "a turn of 'tool' before the answer"),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}, "a call of a tool"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAID]},
         "a message with a part that is no text (image)"),
        ({"messages": [SAID]}, "no question"),
        ({"messages": [USER]}, "no answer"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "no answer"),
        ({"prompt": None, "answer": "A."}, "no question"),
        ({"prompt": "Q?", "answer": float("nan")}, "no answer"),
    ],
)  # fmt: skip
def test_rows_whose_answer_is_to_something_else_are_left_out_and_counted(tmp_path, row, reason):
    path = _jsonl(
        tmp_path / "c.jsonl", [row, {"prompt": "Q?", "answer": "None"}, row, {"prompt": "B?", "answer": "B."}]
    )
    with pytest.warns(UserWarning, match=r"2 rows were left out: 2 with .* \(row 1, 3\)"):
        found = read_conversations(path, at_most=2)
    assert found == [{"prompt": "Q?", "answer": "None"}, {"prompt": "B?", "answer": "B."}]
    assert found.left_out.values.tolist() == [[1, reason], [3, reason]]
    with pytest.raises(MechrefusalError, match="hold no question with an answer") as caught:
        read_conversations(_jsonl(tmp_path / "none.jsonl", [row]), at_most=2)
    assert f"1 with {reason} (row 1)" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": "user: Q?"}, "row 2: column 'messages' holds text that is no JSON"),
        ({"messages": ["Q?", "A."]}, "row 2: column 'messages' holds no messages"),
        ({"prompt": ["Q?"], "answer": "A."}, r"row 2: column 'prompt' holds a list \(\['Q\?'\]\)"),
        ({"prompt": "Q?", "answer": {"text": "A."}}, "row 2: column 'answer' holds an object"),
    ],
)
def test_values_that_are_no_text_are_named_with_row_and_column(tmp_path, row, said):
    path = _jsonl(tmp_path / "c.jsonl", [{"prompt": "Q?", "answer": "A."}, row])
    with pytest.raises(MechrefusalError, match=said) as caught:
        read_conversations(path, at_most=5)
    assert "c.jsonl" in str(caught.value)


def test_the_context_of_an_instruction_belongs_to_it(tmp_path):
    """Dolly's column: without it the answer is to a question that nobody could answer."""
    row = {"instruction": "Who won?", "context": "Ann beat Ben.", "response": "Ann.", "category": "closed_qa"}
    [turn] = read_conversations(_jsonl(tmp_path / "c.jsonl", [row]), at_most=1)
    assert turn == {"prompt": "Who won?\n\nAnn beat Ben.", "answer": "Ann."}


@pytest.mark.parametrize("name", ["c[1].jsonl", "a*b.json", "c.parquet", "c.jsonl.gz", "c.csv", "c?.json"])
def test_files_are_taken_by_their_very_names_from_the_home_folder_too(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    table = pd.DataFrame({"prompt": ["Q?", "B?"], "answer": ["A.", "B."]})
    if name.endswith("parquet"):
        table.to_parquet(tmp_path / name)
    elif name.endswith("csv"):
        table.to_csv(tmp_path / name)
    else:
        table.to_json(tmp_path / name, orient="records", lines="jsonl" in name)
    (tmp_path / "c1.jsonl").write_text("{}", encoding="utf-8")  # which the pattern c[1].jsonl would take
    for source in (f"~/{name}", str(tmp_path / name)):
        assert [turn["answer"] for turn in read_conversations(source, at_most=0)] == ["A.", "B."]


def test_nought_is_all_of_them_and_less_is_an_error(tmp_path):
    from mechrefusal.study.settings import PromptSources

    path = _jsonl(tmp_path / "c.jsonl", [{"prompt": f"Q{n}?", "answer": "A."} for n in range(3)])
    assert [len(read_conversations(path, at_most=n)) for n in (0, 2, 9)] == [3, 2, 3]
    assert PromptSources(n_conversations=0).n_conversations == 0
    with pytest.raises(MechrefusalError, match="n_conversations is -1: give 0 for all, or more"):
        PromptSources(n_conversations=-1)
    with pytest.raises(MechrefusalError, match="give 0 for all, or more"):
        read_conversations(path, at_most=-1)


def test_own_answers_that_leave_the_context_are_found_before_the_model_is_loaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MECHREFUSAL_CACHE", str(tmp_path))
    monkeypatch.setattr("mechrefusal.study.own_answers.load_causal_lm", lambda *_: pytest.fail("loaded"))
    with pytest.raises(MechrefusalError, match="leave no room for 510 more tokens in the model's context"):
        own_answers(models.Checkpoint.open(tiny), PromptSet.from_texts("a", ["Name a fruit."]), max_new_tokens=510)


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
    monkeypatch.setattr("mechrefusal.study.own_answers.load_causal_lm", lambda *_: pytest.fail("not from the cache"))
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
        "mechrefusal.study.own_answers.load_causal_lm", lambda *given: made.append(given) or load(*given)
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


def test_a_dataset_of_the_hub_gives_its_training_split(monkeypatch):
    import datasets

    calls = []
    rows = datasets.Dataset.from_dict({"messages": [[USER, SAID]]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: calls.append((given, named)) or rows)
    for source in ("owner/chat", "owner/chat:config", "owner/chat::other"):
        assert read_conversations(source, at_most=0) == [{"prompt": "Q?", "answer": "A."}]
    assert [(given[1], named["split"]) for given, named in calls] == [
        (None, "train"), ("config", "train"), (None, "other"),
    ]  # fmt: skip
