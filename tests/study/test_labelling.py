"""Labels of a run's answers: a sheet that is never written over, and rates that it corrects."""

import pandas as pd
import pytest

from mechrefusal import MechrefusalError, cli, study, tables
from mechrefusal.evaluation import read_suite
from mechrefusal.evaluation.judges import LABELS

FULL, YES = "full_refusal", "full_compliance"


@pytest.fixture
def evaluated(tmp_path):
    """A folder whose judge misses 6 of 30 refusals."""
    said = [YES] * 6 + [FULL] * 24 + [YES] * 30
    ids = [f"p{i}" for i in range(60)]
    rows = pd.DataFrame({"prompt_id": ids, "prompt": [f"Say {i}" for i in ids], "completion": ids, "label": said})
    known = {"arm": "sft", "step": 10, "weights": "w", "suite": "own", "side": "harmful", "group": "", "category": ""}
    known |= {"attack": "none", "intervention": "none", "n_tokens": 2, "ended": True, "max_new_tokens": 8}
    known |= {"judge": "rules", "kind": "refusal", "score": float("nan"), "because": ""}
    tables.write(tables.frame("verdicts", rows.assign(**known)), "verdicts", tmp_path / "measurements")
    return tmp_path


def fill_in(folder):
    sheet = pd.read_csv(folder / "labels.csv", keep_default_na=False, encoding="utf-8-sig")
    sheet["label"] = [FULL if int(text[1:]) < 30 else YES for text in sheet["completion"]]
    sheet.to_csv(folder / "labels.csv", index=False)


def test_a_sheet_is_written_once_and_then_corrects_the_rates(evaluated):
    found = study.label(evaluated, n=60)
    assert (found.n, found.n_labelled, len(found.agreement)) == (60, 0, 0)
    fill_in(evaluated)
    found = study.label(evaluated, n=5)
    assert (found.n, found.n_labelled, found.n_elsewhere) == (60, 60, 0), "the sheet that stands is not written over"
    own = found.agreement.set_index("question").loc["any_refusal"]
    assert (own["share"], own["sensitivity"], own["specificity"], own["n"]) == (0.9, 0.8, 1.0, 60)
    kept = tables.read("rates", evaluated / "measurements").set_index("metric")
    assert kept.loc["any_refusal", "value"] == pytest.approx(0.4)
    assert kept.loc["any_refusal", "corrected"] == pytest.approx(0.5)
    assert kept.loc["any_refusal", "corrected_by"] == "60 labels of these answers"


def test_the_command_says_what_to_do_and_then_what_was_found(evaluated, capsys):
    assert cli.main(["labels", str(evaluated), "--n", "60"]) == 0
    said = capsys.readouterr().out
    assert "60 answers; fill in the column label" in said
    assert all(f"  {name}: " in said for name in LABELS)
    fill_in(evaluated)
    assert cli.main(["labels", str(evaluated)]) == 0
    said = capsys.readouterr().out
    assert "60 of 60 answers are labelled" in said
    assert ["rules", "any", "refusal", "0.90", "0.80", "60", "0.80", "1.00"] in [
        line.split() for line in said.splitlines()
    ]
    assert "corrected" in said
    assert "0.50" in said


def test_without_answers_there_is_nothing_to_label(tmp_path):
    with pytest.raises(MechrefusalError, match="no judged answers; measure or evaluate first"):
        study.label(tmp_path)
    assert not (tmp_path / "labels.csv").exists()


def test_labels_of_answers_that_are_gone_are_counted_or_refused(evaluated):
    study.label(evaluated, n=60)
    fill_in(evaluated)
    verdicts = tables.read("verdicts", evaluated / "measurements")
    changed = verdicts.assign(
        completion=[f"{text} more" if i < 10 else text for i, text in enumerate(verdicts["completion"])]
    )
    tables.write(changed, "verdicts", evaluated / "measurements")
    found = study.label(evaluated)
    assert (found.n_labelled, found.n_elsewhere) == (50, 10)
    tables.write(verdicts.assign(completion="all other"), "verdicts", evaluated / "measurements")
    with pytest.raises(MechrefusalError, match=r"none of the 60 labels .* give the file another name"):
        study.label(evaluated)


def test_an_evaluation_names_a_faulty_sheet_before_it_asks_anything(evaluated, monkeypatch):
    from mechrefusal.study import evaluating

    (evaluated / "labels.csv").write_text("answer,label\nx,refused\n")
    monkeypatch.setattr(evaluating, "run_units", lambda *_, **__: pytest.fail("it was asked"))
    monkeypatch.setattr(evaluating, "checkpoints_of", lambda *_, **__: (None, []))
    with pytest.raises(MechrefusalError, match="hold 'refused'"):
        study.evaluate("any", [read_suite("builtin-utility", n=2)], out=evaluated)
