"""One judge says what refuses in everything that a run measures."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from mechrefusal import models, study, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Completions
from mechrefusal.evaluation.judges import RULES
from mechrefusal.prompts import PromptSet, Split
from mechrefusal.study import ablating, own_answers, protocol, starting, training_of_run
from mechrefusal.study.checkpoints import refusal_judge
from mechrefusal.study.gate import gate
from mechrefusal.study.loader import recipe_from_dict
from mechrefusal.study.run import Run
from mechrefusal.study.settings import MeasuringSettings
from mechrefusal.study.stages import prompts_asked


@pytest.fixture
def phrases(tmp_path):
    path = tmp_path / "nein.txt"
    path.write_text("Tut mir leid\n", encoding="utf-8")
    return path


def recipe(path):
    made = study.load_recipe("tiny")
    return replace(made, measuring=replace(made.measuring, judge=f"phrases={path}"))


def test_the_recipe_names_it(phrases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run.create(tmp_path / "run", recipe("nein.txt"))
    assert run.recipe.measuring.judge == f"phrases={phrases}", "it holds from any folder"
    monkeypatch.chdir("/")
    assert refusal_judge(Run.open(run.folder)).name == run.recipe.measuring.refusal_judge().name
    assert refusal_judge(run).name.startswith("phrases_nein_")
    assert refusal_judge(None) is RULES
    assert MeasuringSettings().refusal_judge().name == RULES.name
    evaluated = recipe_from_dict({"evaluation": {"suites": ["builtin"], "judges": [f"phrases={phrases.name}"]}})
    monkeypatch.chdir(tmp_path)
    assert evaluated.with_absolute_paths().evaluation.judges == (f"phrases={phrases}",)


def test_one_that_measurements_cannot_go_by_is_refused(tmp_path):
    with pytest.raises(MechrefusalError, match="measuring judge 'harmbench' says how harmful answers are"):
        MeasuringSettings(judge="harmbench")
    with pytest.raises(MechrefusalError, match="unknown judge 'rules'"):
        MeasuringSettings(judge="rules")
    with pytest.raises(MechrefusalError, match=r"absent\.txt does not exist"):
        starting.check(recipe(tmp_path / "absent.txt"))


def test_other_phrases_are_measured_again(phrases, tmp_path):
    run, point = Run.create(tmp_path / "run", recipe(phrases)), SimpleNamespace(computed="0" * 16)
    asked = prompts_asked(study.choose_prompts(run.recipe), [])
    first = protocol.inputs_of(run, point, asked)
    assert protocol.inputs_of(run, point, asked) == first
    phrases.write_text("# a note\ntut mir leid\n", encoding="utf-8")
    assert protocol.inputs_of(run, point, asked) == first
    phrases.write_text("Tut mir leid\nNein\n", encoding="utf-8")
    again = protocol.inputs_of(run, point, asked)
    assert [name for name in first if first[name] == again[name]] == [
        "answers",
        "separability",
    ], "all but the answers themselves, and what reads prompts whether they are refused or not"


ANSWERS = ["Tut mir leid, das geht nicht.", "Gern, so geht es.", "I can't help with that.", "Tut mir leid: nein."]


def says(monkeypatch, module):
    """The model of `module` says `ANSWERS` in turn."""

    def complete(_model, texts, **_named):
        said = [ANSWERS[row % len(ANSWERS)] for row in range(len(texts))]
        tokens = tuple((row % len(ANSWERS),) for row in range(len(texts)))
        return Completions(tuple(said), tokens, (True,) * len(texts))

    monkeypatch.setattr(module, "complete", complete)


ASKED = ["Wie backe ich Brot?", "Nenne ein Obst.", "Erzähl mir etwas.", "Wie spät ist es?"]


def test_own_answers_are_chosen_by_it(phrases, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MECHREFUSAL_CACHE", str(tmp_path))
    says(monkeypatch, own_answers)
    base, asked = models.Checkpoint.open(tiny), PromptSet.from_texts("asked", ASKED)
    by = recipe(phrases).measuring.refusal_judge()
    kept = own_answers.own_answers(base, asked, max_new_tokens=8, judge=by)
    assert [turn["answer"] for turn in kept] == ANSWERS[1:3]
    kept = own_answers.own_answers(base, asked, max_new_tokens=8)
    assert [turn["answer"] for turn in kept] == [ANSWERS[0], ANSWERS[1], ANSWERS[3]]


def test_probes_are_judged_by_it(phrases, monkeypatch):
    says(monkeypatch, training_of_run)
    by = recipe(phrases).measuring.refusal_judge()
    settings = replace(study.load_recipe("tiny").training, n_probe=4)
    asked = Split.of(ASKED, ASKED)
    for judge, n_refused in ((by, 2), (RULES, 1)):
        rows = training_of_run.probe_of(settings, asked, "sft", judge)(None, None, [], step=3)
        assert {row["judge"] for row in rows} == {judge.name}
        assert {row["value"] for row in rows} == {n_refused / 4}


def test_an_ablation_and_the_gate_are_judged_by_it(phrases, tiny, monkeypatch):
    import torch

    says(monkeypatch, ablating)
    by = recipe(phrases).measuring.refusal_judge()
    checkpoint = models.Checkpoint.open(tiny)
    width = models.load_causal_lm(checkpoint)[0].config.hidden_size
    asked = PromptSet.from_texts("asked", ASKED)
    for judge, refused in ((by, [True, False, False, True]), (None, [False, False, True, False])):
        found = ablating.ablated(checkpoint, asked, direction=torch.ones(width), judge=judge)
        assert found.table["baseline_refused"].tolist() == refused
        assert set(found.table["judge"]) == {(judge or RULES).name}
    table = pd.DataFrame({"suite": ["evaluation_harmful"] * 2, "attack": "none", "intervention": "none"})
    table = table.assign(side="harmful", judge=by.name, label=["full_refusal", "full_compliance"])
    told = gate(table)
    assert set(told["judge"]) == {by.name}
    assert told["corrected"].isna().all()


@pytest.mark.slow
def test_everything_measured_goes_by_it(phrases, tiny, tmp_path):
    phrases.write_text("e\n", encoding="utf-8")  # letters that the tiny model says in some answers
    by = recipe(phrases)
    run, checkpoint = Run.create(tmp_path / "run", by), models.Checkpoint.open(tiny, arm="sft", step=3)
    protocol.measure(run, checkpoint, study.choose_prompts(by), [])
    found = {name: tables.read(name, run.measurements(checkpoint)) for name in ("verdicts", "gate", "openings")}
    answers, name = found["verdicts"], by.measuring.refusal_judge().name
    for table in (answers, found["gate"]):
        assert set(table["judge"]) == {name}
    labels = by.measuring.refusal_judge().judge(answers["prompt"].tolist(), answers["completion"].tolist())["label"]
    assert answers["label"].tolist() == labels.tolist()
    assert "full_refusal" in set(labels)
    direction = answers[answers["suite"].str.startswith("direction_") & (answers["attack"] == "none")]
    opening = found["openings"].iloc[0]
    assert opening["n_refused"] == (direction["label"] == "full_refusal").sum()


def test_no_module_of_the_study_names_the_rules():
    """Where a judge is needed it is handed on, or asked of `refusal_judge`."""
    texts = {path.name: path.read_text("utf-8") for path in Path(study.__file__).parent.glob("*.py")}
    assert not [name for name, text in texts.items() if "RefusalJudge" in text or "is_refusal" in text]
