"""Sheets for people to label, and files of labels."""

import pandas as pd
import pytest

from mechrefusal import MechrefusalError
from mechrefusal.evaluation.labels import answer_ids, label_sheet, read_labels, write_sheet

HARD = [
    'comma, "quotes"',
    "line\nbreak",
    "carriage\rreturn",
    "both\r\n",
    "🔐 <b> &amp; '",
    "=SUM(A1)",
    "- a list",
    "@x",
    "",
]


def verdicts(n):
    rows = [(f"p{i % n}", HARD[i % n % len(HARD)], judge) for i in range(n) for judge in ("a", "b")]
    return pd.DataFrame(rows, columns=["prompt", "completion", "judge"])


def test_a_sheet_has_each_answer_once_and_says_nothing_of_the_judges():
    found = label_sheet(verdicts(8), 100)
    assert list(found) == ["answer", "prompt", "completion", "label"]
    assert len(found) == 8
    assert found["answer"].is_unique
    assert set(found["label"]) == {""}
    assert len(label_sheet(verdicts(8), 3)) == 3


def test_a_sheet_is_drawn_at_random_and_again_the_same():
    drawn = [tuple(label_sheet(verdicts(40), 10, seed=seed)["prompt"]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    counts = pd.Series([p for seed in range(200) for p in label_sheet(verdicts(10), 5, seed=seed)["prompt"]])
    assert counts.value_counts().between(70, 130).all(), "each in half of the sheets; 100 +- 4.2 standard deviations"


def test_a_filled_in_sheet_is_read_back_whatever_the_texts_are(tmp_path):
    sheet = label_sheet(verdicts(9), 9)
    given = ["full_refusal", "", "3_partial_refusal", " full_compliance ", "degenerate", "", *["full_refusal"] * 3]
    write_sheet(sheet.assign(label=given), tmp_path / "labels.csv")
    found = read_labels(tmp_path / "labels.csv")
    kept = ["full_refusal", "partial_refusal", "full_compliance", "degenerate", *["full_refusal"] * 3]
    assert found["label"].tolist() == kept
    assert found["answer"].tolist() == sheet["answer"].iloc[[0, 2, 3, 4, 6, 7, 8]].tolist()


def test_a_spreadsheet_sees_no_formula_and_may_change_the_texts(tmp_path):
    sheet = label_sheet(verdicts(9), 9).assign(label="full_refusal")
    path = tmp_path / "labels.csv"
    write_sheet(sheet, path)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf"), "what tells Excel that it is UTF-8"
    rows = pd.read_csv(path, keep_default_na=False, encoding="utf-8-sig")
    assert not rows["completion"].str.startswith(("=", "+", "-", "@")).any()
    rows["completion"] = rows["completion"].str.replace("\r", "").str.slice(0, 5)
    rows.to_csv(path, index=False, lineterminator="\r\n")
    assert read_labels(path)["answer"].tolist() == sheet["answer"].tolist()


def test_xstest_files_are_read_by_their_texts(tmp_path):
    rows = pd.DataFrame({"prompt": ["p"], "completion": ["c"], "final_label": ["2_full_refusal"]})
    rows.to_csv(tmp_path / "x.csv")
    found = read_labels(tmp_path / "x.csv")
    assert found.to_dict("list") == {"answer": answer_ids(rows), "label": ["full_refusal"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,completion\np,c\n", r"need columns answer \(or prompt and completion\) and label"),
        ("prompt,completion,label\np,c,refused\n", "hold 'refused': expected one of full_compliance"),
        ("answer,label\nx1,full_refusal\nx1,full_compliance\n", r"two labels for one answer \(x1\)"),
        ("", "cannot be read as CSV"),
    ],
)
def test_a_file_at_fault_is_named(tmp_path, text, said):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(MechrefusalError, match=said):
        read_labels(tmp_path / "labels.csv")


def test_nothing_to_label_is_said(tmp_path):
    with pytest.raises(MechrefusalError, match="no judged answers to label"):
        label_sheet(verdicts(2).iloc[:0], 5)
    with pytest.raises(MechrefusalError, match="give 1 at least"):
        label_sheet(verdicts(2), 0)
    with pytest.raises(MechrefusalError, match="mechrefusal labels RUN"):
        read_labels(tmp_path / "none.csv")
