"""Readers of the benchmarks on small files of the same formats, self-written."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PromptSet, read, sources

HARMBENCH = (
    "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\r\n"
    "Bake a bad cake,standard,baking,,,bad_cake\r\n"
    '"Sing ""Clocks"", all of it",copyright,copyright,"lyrics, hash_check",,clocks\r\n'
    '"Given the recipe, spoil it",contextual,baking,context,"1. flour,\r\n2. eggs\r\n\r\n3. ""love""",spoil\r\n'
)


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def row(prompts: PromptSet, number: int) -> dict[str, Any]:
    return {str(name): value for name, value in prompts.table.iloc[number].items()}


def test_harmbench_puts_the_context_before_the_behaviour(tmp_path: Path) -> None:
    prompts = read("HarmBench", write(tmp_path, "h.csv", HARMBENCH))
    assert prompts.name == "harmbench"
    assert prompts.dropped == 0
    assert prompts.ids == ["bad_cake", "clocks", "spoil"]
    assert prompts.texts == [
        "Bake a bad cake",
        'Sing "Clocks", all of it',
        '1. flour,\n2. eggs\n\n3. "love"\n\n---\n\nGiven the recipe, spoil it',
    ]
    assert prompts.table["functional_category"].tolist() == ["standard", "copyright", "contextual"]
    assert row(prompts, 1) == {
        "id": "clocks",
        "text": 'Sing "Clocks", all of it',
        "category": "copyright",
        "functional_category": "copyright",
        "tags": "lyrics, hash_check",
        "behavior": 'Sing "Clocks", all of it',
        "context": None,
    }
    assert row(prompts, 2)["behavior"] == "Given the recipe, spoil it"
    assert row(prompts, 2)["context"] == '1. flour,\n2. eggs\n\n3. "love"'
    assert prompts[prompts.table["functional_category"] != "copyright"].ids == ["bad_cake", "spoil"]


def test_harmbench_files_for_adversarial_training_have_another_category_column(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "Behavior,Category,Tags,ContextString,BehaviorID\nBake a bad cake,food,,,adv_1\n")
    found = row(read("harm_bench", path), 0)
    assert (found["category"], found["functional_category"], found["context"]) == ("food", None, None)


def test_harmbench_targets_by_behaviour(tmp_path: Path) -> None:
    path = write(tmp_path, "h.csv", HARMBENCH)
    openings = {
        "bad_cake": ["Sure, cake", "Here is a cake"],
        "clocks": ["", "Sure, lyrics"],
        "spoil": "Sure, spoiled",
        "more": ["x"],
    }
    prompts = read("harmbench", path, targets=write(tmp_path, "t.json", json.dumps(openings)))
    assert prompts.table["targets"].tolist() == [["Sure, cake", "Here is a cake"], ["Sure, lyrics"], ["Sure, spoiled"]]
    assert prompts.table["target"].tolist() == ["Sure, cake", "Sure, lyrics", "Sure, spoiled"]
    assert read("harmbench", path, targets=openings).table["target"].tolist() == prompts.table["target"].tolist()
    assert "target" not in read("harmbench", path).table


@pytest.mark.parametrize(
    ("targets", "complaint"),
    [
        ('{"bad_cake": ["Sure"], "spoil": [" "]}', r"no target for 2 of 3 behaviours \(clocks, spoil\)"),
        ('{"bad_cake": [1], "clocks": ["x"], "spoil": ["y"]}', "no list of strings for 'bad_cake'"),
        ('["Sure"]', "does not map behaviour ids to targets"),
        ('{"bad_cake": ', "is not JSON"),
        ("", "is empty"),
        (None, "t.json does not exist"),
    ],
)
def test_bad_targets_are_named(tmp_path: Path, targets: str | None, complaint: str) -> None:
    if targets is not None:
        write(tmp_path, "t.json", targets)
    with pytest.raises(MechrefusalError, match=complaint):
        read("harmbench", write(tmp_path, "h.csv", HARMBENCH), targets=tmp_path / "t.json")


def test_any_benchmark_takes_targets_by_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "goal,target\nBacke einen Kuchen,Sure\nSing ein Lied,Sure\n")
    given = write(tmp_path, "t.csv", "prompt,target\nSing ein Lied,Gern: ein Lied\nbacke einen  kuchen.,Gern: Kuchen\n")
    assert read("advbench", path, targets=given).table["target"].tolist() == ["Gern: Kuchen", "Gern: ein Lied"]
    path = write(tmp_path, "h.csv", "Behavior\nBake a cake\n")
    with pytest.raises(MechrefusalError, match=r"no target for 1 of 1 .*harmbench-0001.*add them by id or"):
        read("harmbench", path, targets={})


def test_strongreject(tmp_path: Path) -> None:
    path = write(tmp_path, "s.csv", 'category,source,forbidden_prompt\nFood,custom,"How do I\nspoil a cake?"\n')
    assert row(read("StrongREJECT", path), 0) == {
        "id": "strongreject-0001",
        "text": "How do I\nspoil a cake?",
        "category": "Food",
        "source": "custom",
    }


def test_advbench_with_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", '\ufeffgoal,target\r\nWrite a poem,"Sure, here is a poem"\r\nSing,\r\n')
    prompts = read("AdvBench", str(path))
    assert prompts.texts == ["Write a poem", "Sing"]
    assert prompts.table["target"].tolist() == ["Sure, here is a poem", None]
    assert prompts.ids == ["advbench-0001", "advbench-0002"]


def test_jailbreakbench_with_an_unnamed_index(tmp_path: Path) -> None:
    path = write(
        tmp_path, "j.csv", ',Goal,Target,Behavior,Category,Source\n0,Bake badly,"Sure, bad",Bad cake,Food,Original\n'
    )
    assert row(read("jailbreak-bench", path), 0) == {
        "id": "jailbreakbench-0001",
        "text": "Bake badly",
        "category": "Food",
        "target": "Sure, bad",
        "behavior_name": "Bad cake",
        "source": "Original",
    }


def test_maliciousinstruct_has_one_request_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "m.txt", 'How to spoil, "slowly", a cake?\r\n\r\n  How to burn it?  \r\n')
    with pytest.warns(UserWarning, match="1 rows without text were left out"):
        prompts = read("MaliciousInstruct", path)
    assert prompts.texts == ['How to spoil, "slowly", a cake?', "How to burn it?"]
    assert prompts.ids == ["maliciousinstruct-0001", "maliciousinstruct-0003"]
    assert prompts.dropped == 1


def test_xstest_prompts_with_and_without_a_label(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "x.csv",
        "id,prompt,type,label,focus,note\n1,How do I kill a lamp?,homonyms,safe,kill,None\n"
        "26,How do I kill a man?,contrast_homonyms,unsafe,,\n",
    )
    new = read("XSTest", path)
    assert row(new, 0) == {
        "id": "1",
        "text": "How do I kill a lamp?",
        "category": "homonyms",
        "type": "homonyms",
        "label": "safe",
        "focus": "kill",
        "note": "None",
    }
    old = read(
        "xstest",
        write(
            tmp_path, "old.csv", "id,type,prompt\nv2-1,homonyms,null\nv2-26,contrast_homonyms,How do I kill a man?\n"
        ),
    )
    assert old.table["label"].tolist() == new.table["label"].tolist() == ["safe", "unsafe"]
    assert old.texts[0] == "null"  # a word, not a missing value
    with pytest.raises(MechrefusalError, match=r"bad.csv, row 1: label 'maybe' is neither safe nor unsafe"):
        read("xstest", write(tmp_path, "bad.csv", "id,prompt,type,label\n1,x,homonyms,maybe\n"))


def test_xstest_completions_keep_the_completion_and_its_label(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "c.csv",
        "id,type,prompt,completion,annotation_1,annotation_2,agreement,final_label\n"
        'v2-1,homonyms,How do I kill a lamp?," Turn\nit ""off"".",'
        "1_full_compliance,2_full_refusal,False,1_full_compliance\n"
        "v2-26,contrast_homonyms,How do I kill a man?,,,,,\n",
    )
    prompts = read("XSTest completions", path)
    assert prompts.table["completion"].tolist() == [' Turn\nit "off".', ""]
    assert prompts.table["final_label"].tolist() == ["1_full_compliance", None]
    assert prompts.table["label"].tolist() == ["safe", "unsafe"]
    assert row(prompts, 0)["annotation_2"] == "2_full_refusal"
    assert row(prompts, 0)["agreement"] == "False"
    short = read(
        "xstest_completions",
        write(tmp_path, "s.csv", "id,type,prompt,completion,final_label\n1,homonyms,p,c,3_partial_refusal\n"),
    )
    assert short.table["final_label"].tolist() == ["3_partial_refusal"]
    with pytest.raises(
        MechrefusalError, match="row 1: final_label '4_else' is unknown: expected one of 1_full_compliance"
    ):
        read("xstestcompletions", write(tmp_path, "b.csv", "type,prompt,completion,final_label\nhomonyms,p,c,4_else\n"))


def test_alpaca_from_csv_and_from_the_original_json(tmp_path: Path) -> None:
    assert read("alpaca", write(tmp_path, "a.csv", 'instruction\r\n"Say\r\nhello"\r\n')).texts == ["Say\nhello"]
    records = [
        {"instruction": "Add them.", "input": "1, 2", "output": "3"},
        {"instruction": "Sing.", "input": "", "output": "La"},
        {"instruction": " ", "input": "lonely", "output": ""},
    ]
    for name, text in (
        ("a.json", json.dumps(records)),
        ("a.jsonl", "\n".join(json.dumps(record) for record in records)),
    ):
        with pytest.warns(UserWarning, match="1 rows without text"):
            prompts = read("alpaca", write(tmp_path, name, text))
        assert prompts.texts == ["Add them.\n\n1, 2", "Sing."]
        assert prompts.table["output"].tolist() == ["3", "La"]


def test_rows_without_text_are_counted_and_do_not_move_the_ids_of_others(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'goal,target\nfirst,a\n"  ",b\n\n,\nfifth,e\n')
    with pytest.warns(UserWarning, match="a.csv: 3 rows without text were left out"):
        prompts = read("advbench", path)
    assert prompts.ids == ["advbench-0001", "advbench-0005"]
    assert prompts.dropped == 3
    assert prompts[:1].dropped == 3


def test_duplicates_are_kept_under_ids_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path, "h.csv", "Behavior,BehaviorID\nsame,a\nsame,a\nother,a-2\nthird,\nsame,a\n")
    prompts = read("harmbench", path)
    assert prompts.texts == ["same", "same", "other", "third", "same"]
    assert prompts.ids == ["a", "a-2", "a-2-2", "harmbench-0004", "a-3"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"a.csv does not exist: give the path of a file"),
        (b"", r"a.csv is empty"),
        (b"\xef\xbb\xbf \r\n\n", r"a.csv is empty"),
        (b"goal,target\n", r"a.csv has no rows"),
        (b"goal,target\n ,x\n", r"a.csv has no prompt in its 1 rows: fill the column 'goal'"),
        (b"goal,target\ncaf\xe9,x\n", r"a.csv is not UTF-8 \(byte 15\): save it as UTF-8"),
        ("goal,target\nx,y\n".encode("utf-16"), r"a.csv is not UTF-8"),
        (b"goal,answer\nx,y\n", r"a.csv has no column 'target': found 'goal', 'answer'"),
        (b"goal,target\nx,y,z\n", r"a.csv has 3 fields in the row that ends on line 2, for 2 columns"),
        (b'goal,target\n"x,y\nz,w\n', r"a.csv is not well-formed CSV at line 3"),
        (b"goal,target,Goal\nx,y,z\n", r"a.csv has the column 'goal' twice"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MechrefusalError, match=complaint) as caught:
        read("advbench", path)
    assert "\n" not in str(caught.value)


def test_other_bad_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        MechrefusalError, match="unknown benchmark 'mmlu': expected one of harmbench, strongreject, xstest"
    ):
        read("mmlu", tmp_path)
    with pytest.raises(MechrefusalError, match="is a folder: give the path of a file"):
        read("advbench", tmp_path)
    with pytest.raises(MechrefusalError, match="does not hold a list of objects"):
        read("alpaca", write(tmp_path, "a.json", '{"instruction": "x"}'))
    for missing in ("./somewhere/else", "data/alpaca.json", "two words/there"):
        with pytest.raises(MechrefusalError, match="does not exist"):
            read("alpaca", missing)


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[Any, ...]]:
    """Put `answer` (a value, or an error to raise) in the place of the hub; the calls come back."""
    calls = []

    def load_dataset(path: str, name: str | None = None, *, split: str | None = None) -> Any:
        calls.append((path, name, split))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict(
        {"Index": [0, 1], "Goal": ["Bake", None], "Target": ["Sure, bake", ""], "Category": ["Food", "Food"]}
    )
    calls = hub(monkeypatch, datasets.DatasetDict({"harmful": rows}))
    with pytest.warns(UserWarning, match="hub data set 'owner/bench:behaviors': 1 rows"):
        prompts = read("jailbreakbench", "owner/bench:behaviors")
    assert prompts.texts == ["Bake"]
    assert row(prompts, 0)["target"] == "Sure, bake"
    assert row(prompts, 0)["index"] == "0"
    assert calls == [("owner/bench", "behaviors", None)]


def test_splits_of_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"goal": ["x"], "target": ["y"]})
    hub(monkeypatch, datasets.DatasetDict({"harmful": rows, "benign": rows}))
    with pytest.raises(
        MechrefusalError, match="has the splits harmful, benign: choose one, as in 'owner/bench::harmful'"
    ):
        read("advbench", "owner/bench")
    calls = hub(monkeypatch, rows)
    assert read("advbench", "owner/bench::harmful").texts == ["x"]
    assert read("advbench", "owner/bench:all:harmful").texts == ["x"]
    assert calls == [("owner/bench", None, "harmful"), ("owner/bench", "all", "harmful")]


@pytest.mark.parametrize(
    "error", [ConnectionError("no route\nto host"), FileNotFoundError("no such thing"), RuntimeError()]
)
def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    hub(monkeypatch, error)
    with pytest.raises(
        MechrefusalError, match="'owner/bench' is neither a file here nor a data set that the hub gave"
    ) as caught:
        read("advbench", "owner/bench")
    assert type(error).__name__ in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_of_the_hub_without_the_column(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, datasets.Dataset.from_dict({"prompt": ["x"]}))
    with pytest.raises(MechrefusalError, match="hub data set 'owner/bench' has no column 'goal': found 'prompt'"):
        read("advbench", "owner/bench")


MISSING: dict[str, Any] = {
    "null": None, "NaN": float("nan"), "NaT": pd.NaT, "NA": pd.NA, "empty": "", "nothing": [],
    "numpy": np.float64("nan"), "date": np.datetime64("NaT"),
}  # fmt: skip
WORDS = ["None", "nan", "NA", "null", "NaN", "<NA>", "NaT", "N/A"]


@pytest.mark.parametrize("how", MISSING)
def test_missing_values_are_missing_whatever_the_source_calls_them(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    missing = MISSING[how]
    rows = [{"Goal": "Bake", "Target": missing, "Category": missing, "id": missing}, {"Goal": missing, "Target": "x"}]
    hub(monkeypatch, rows)
    with pytest.warns(UserWarning, match="1 rows without text were left out"):
        prompts = read("jailbreakbench", "owner/bench")
    assert prompts.texts == ["Bake"]
    assert row(prompts, 0) == {
        "id": "jailbreakbench-0001", "text": "Bake", "category": "", "target": None, "behavior_name": "",
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_words_for_nothing_are_words(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame({"goal": WORDS, "target": ["x", *WORDS[1:]], "note": WORDS})
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        table.to_csv(path, index=False)
    elif suffix == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=suffix == "jsonl")
    prompts = read("advbench", path)
    assert prompts.texts == WORDS
    assert prompts.table["target"].tolist() == ["x", *WORDS[1:]]
    assert prompts.table["note"].tolist() == WORDS


def test_numbers_and_nothing_in_one_parquet_column(tmp_path: Path) -> None:
    """pandas makes floats of integers where one is missing; parquet and JSON know better."""
    table = pd.DataFrame({"id": pd.array([7, None], dtype="Int64"), "goal": ["Bake", "Sing"], "target": ["x", None]})
    table.to_parquet(tmp_path / "a.parquet")
    prompts = read("advbench", tmp_path / "a.parquet")
    assert prompts.ids == ["7", "advbench-0002"]
    assert prompts.table["target"].tolist() == ["x", None]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ([{"role": "user", "content": "hi"}], "hi"),
        ([{"from": "human", "value": "hi"}], "hi"),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "hi"),
        ({"role": ["user"], "content": ["hi"]}, "hi"),
        ('[{"role": "user"}]', '[{"role": "user"}]'),
        (12, "12"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_a_prompt_as_a_conversation_of_one_turn_is_its_text(
    tmp_path: Path, prompt: Any, text: str, suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps([{"prompt": prompt, "type": "homonyms"}]), encoding="utf-8")
    else:
        pd.DataFrame({"prompt": [prompt], "type": ["homonyms"]}).to_parquet(path)
    assert read("xstest", path).texts == [text]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"goal": ["Bake"]}, r"column 'goal' holds a list \(\['Bake'\]\): give text"),
        ({"goal": {"text": "Bake"}}, "column 'goal' holds an object"),
        ({"goal": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
         r"column 'goal' holds a conversation \(of system, user\), not the one turn of the user"),
        ({"goal": [{"role": "user", "content": [{"type": "image"}]}]}, r"a part that is no text \(image\)"),
        ({"target": ["Sure, bake"]}, "column 'target' holds a list"),
        ({"target": {"a": 1}}, "column 'target' holds an object"),
        ({"id": [1]}, "column 'id' holds a list"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_named_with_file_row_and_column(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    good = {"goal": "Bake", "target": "Sure, bake", "id": "a"}
    path = write(tmp_path, "a.json", json.dumps([good, {**good, "id": "b", **values}]))
    with pytest.raises(MechrefusalError, match=rf"a\.json, row 2: .*{said}"):
        read("advbench", path)


def test_columns_that_nobody_is_asked_keep_lists_as_json(tmp_path: Path) -> None:
    rows = [{"Behavior": "Bake", "Tags": ["a", "ö"], "more": {"n": 1}}]
    found = row(read("harmbench", write(tmp_path, "h.json", json.dumps(rows))), 0)
    assert (found["tags"], found["more"]) == ('["a", "ö"]', '{"n": 1}')


def test_a_record_that_lacks_a_column_lacks_the_value(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"goal": "Bake", "target": "x"}\n{"goal": "Sing"}\n')
    assert read("advbench", path).table["target"].tolist() == ["x", None]
    twice = write(tmp_path, "b.jsonl", '{"goal": "Bake", "Goal": "Sing", "target": ""}\n')
    with pytest.raises(MechrefusalError, match="has the column 'goal' twice"):
        read("advbench", twice)


def test_an_xstest_row_that_says_no_side_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "x.json", '[{"prompt": "How?", "type": null}]')
    with pytest.raises(MechrefusalError, match=r"x\.json, row 1: neither type nor label"):
        read("xstest", path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "ndjson", "parquet"])
@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".xz"])
def test_files_are_read_by_suffix_and_decompressed(tmp_path: Path, suffix: str, packed: str) -> None:
    table = pd.DataFrame({"goal": ["Bäck it", "Sing"], "target": ["x", "y"]}, index=[5, 9])
    plain = tmp_path / f"plain.{suffix}"
    if suffix in ("csv", "tsv"):
        table.to_csv(plain, sep="\t" if suffix == "tsv" else ",")
    elif suffix == "parquet":
        table.to_parquet(plain)
    else:
        table.to_json(plain, orient="records", lines=suffix != "json", force_ascii=False)
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[packed]
    path = write(tmp_path, f"suite.v1.{suffix}{packed}", pack(plain.read_bytes()))
    prompts = read("advbench", path)
    assert prompts.texts == ["Bäck it", "Sing"]
    assert prompts.table["target"].tolist() == ["x", "y"]
    assert not [name for name in prompts.table if str(name).startswith("__")]


def test_lines_of_json_under_the_suffix_of_a_list(tmp_path: Path) -> None:
    lines = '{"instruction": "Sing."}\n\n{"instruction": "Dance."}\n'
    assert read("alpaca", write(tmp_path, "a.json", lines)).texts == ["Sing.", "Dance."]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv.gz", gzip.compress(b"goal,target\nx,y\n", mtime=0)[:-9], r"a\.csv\.gz is no whole \.gz file"),
        ("a.csv.gz", b"goal,target\nx,y\n", r"a\.csv\.gz is no whole \.gz file"),
        ("a.csv.xz", b"goal,target\nx,y\n", r"a\.csv\.xz is no whole \.xz file"),
        ("a.parquet", b"PAR1 and no more", r"a\.parquet cannot be read as parquet"),
        ("a.parquet", b"", r"a\.parquet cannot be read as parquet"),
        ("b.json", b'{"a": 1} and more', "is not JSON"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(MechrefusalError, match=said) as caught:
        read("advbench", write(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_no_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("absent.parquet", "absent.csv.gz", "absent.gz", "absent.ndjson"):
        with pytest.raises(MechrefusalError, match=f"{name} does not exist"):
            read("advbench", name)


def test_a_field_of_any_length_is_read_and_the_limit_of_the_process_stays(tmp_path: Path) -> None:
    import csv

    before, long = csv.field_size_limit(), "word " * 60_000
    assert read("advbench", write(tmp_path, "a.csv", f"goal,target\n{long},y\nshort,z\n")).texts == [long, "short"]
    with pytest.raises(MechrefusalError, match="has 3 fields"):
        read("advbench", write(tmp_path, "b.csv", "goal,target\nx,y,z\n"))
    assert csv.field_size_limit() == before


def test_half_of_a_surrogate_pair_is_replaced_and_said(tmp_path: Path) -> None:
    records = [{"goal": "Smile \ud83d", "target": "Sure \ude00"}, {"goal": "Whole \U0001f600", "target": "x"}]
    path = write(tmp_path, "a.json", json.dumps(records))
    with pytest.warns(
        UserWarning, match=r"row 0, column '(text|target)' \(1 rows in all\) held half of a surrogate pair"
    ):
        prompts = read("advbench", path)
    assert prompts.texts == ["Smile \ufffd", "Whole \U0001f600"]
    assert prompts.table["target"].tolist() == ["Sure \ufffd", "x"]
    for text in [*prompts.texts, *prompts.table["target"]]:
        text.encode("utf-8")


def test_missing_and_null_targets_of_a_mapping(tmp_path: Path) -> None:
    path = write(tmp_path, "h.csv", HARMBENCH)
    openings = {"bad_cake": [None, "Sure"], "clocks": "Sure", "spoil": None}
    with pytest.raises(MechrefusalError, match=r"no target for 1 of 3 behaviours \(spoil\)"):
        read("harmbench", path, targets=openings)  # type: ignore[arg-type]
    found = read("harmbench", path, targets={**openings, "spoil": ["Sure"]})  # type: ignore[dict-item]
    assert found.table["targets"].tolist() == [["Sure"], ["Sure"], ["Sure"]]


def test_rows_give_text_or_say_where_there_is_none(tmp_path: Path) -> None:
    """Whoever reads a source of its own gets the same: no list is ever turned into its Python text."""
    path = write(tmp_path, "own.json", json.dumps([{"Text": "a", "n": 3, "more": None}, {"Text": ["b"]}]))
    [(_, first), (_, second)] = sources.load(path).rows
    assert dict(first) == {"text": "a", "n": "3", "more": ""}
    assert (second["n"], second.get("more"), second.get("other", "none")) == ("", "", "none")
    assert second.raw["text"] == ["b"]
    for look in (second.__getitem__, second.get):
        with pytest.raises(MechrefusalError, match=r"own\.json, row 2: column 'text' holds a list"):
            look("text")
