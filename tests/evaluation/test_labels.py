"""Sheets for people to label, and files of labels."""

import pandas as pd
import pytest

from mechrefusal import MechrefusalError
from mechrefusal.evaluation.labels import label_sheet, read_labels


def verdicts(n):
    rows = [(f"p{i % n}", f'answer, {i % n} "quoted"\nand 🔐 <b>', judge) for i in range(n) for judge in ("a", "b")]
    return pd.DataFrame(rows, columns=["prompt", "completion", "judge"])


def test_a_sheet_has_each_answer_once_and_says_nothing_of_the_judges():
    found = label_sheet(verdicts(8), 100)
    assert list(found) == ["prompt", "completion", "label"]
    assert len(found) == 8
    assert not found.duplicated().any()
    assert set(found["label"]) == {""}
    assert len(label_sheet(verdicts(8), 3)) == 3


def test_a_sheet_is_drawn_at_random_and_again_the_same():
    drawn = [tuple(label_sheet(verdicts(40), 10, seed=seed)["prompt"]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    counts = pd.Series([p for seed in range(200) for p in label_sheet(verdicts(10), 5, seed=seed)["prompt"]])
    assert counts.value_counts().between(70, 130).all(), "each in half of the sheets; 100 +- 4.2 standard deviations"


def test_a_filled_in_sheet_is_read_back(tmp_path):
    sheet = label_sheet(verdicts(6), 6)
    sheet["label"] = ["full_refusal", "", "3_partial_refusal", " full_compliance ", "degenerate", ""]
    sheet.to_csv(tmp_path / "labels.csv", index=False)
    found = read_labels(tmp_path / "labels.csv")
    assert found["label"].tolist() == ["full_refusal", "partial_refusal", "full_compliance", "degenerate"]
    assert found["completion"].tolist() == sheet["completion"].iloc[[0, 2, 3, 4]].tolist()


def test_xstest_files_are_read(tmp_path):
    rows = pd.DataFrame({"prompt": ["p"], "completion": ["c"], "final_label": ["2_full_refusal"]})
    rows.to_csv(tmp_path / "x.csv")
    assert read_labels(tmp_path / "x.csv")["label"].tolist() == ["full_refusal"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,completion\np,c\n", "need columns prompt, completion and label"),
        ("prompt,completion,label\np,c,refused\n", "hold 'refused': expected one of full_compliance"),
        ("prompt,completion,label\np,c,full_refusal\np,c,full_compliance\n", "two labels for one answer, to 'p'"),
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
