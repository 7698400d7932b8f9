"""The evaluation that a run's recipe asks for."""

import dataclasses
import shutil

import pandas as pd
import pytest

from mechrefusal import MechrefusalError, cli, models, study, tables
from mechrefusal.evaluation import answering
from mechrefusal.evaluation.settings import EvaluationSettings
from mechrefusal.study import suite_answers
from mechrefusal.study.suite_answers import Asking

pytestmark = pytest.mark.slow

ASKED = EvaluationSettings(
    suites=("builtin-xstest", "builtin"), intervene=("ablate:random",), n=2, max_new_tokens=4,
    attack=("gcg",), n_attacked=1, attack_steps=1,
)  # fmt: skip


def recipe(asked=ASKED):
    return dataclasses.replace(study.load_recipe("tiny"), evaluation=asked)


@pytest.fixture
def run(tmp_path):
    """Two checkpoints of different weights, not measured."""
    made = study.Run.create(tmp_path / "run", recipe())
    base = models.Checkpoint.open(models.tiny.make(tmp_path / "base", seed=1))
    path = models.tiny.make(made.folder / "sft" / "step-00003", seed=2)
    made.record(base, models.Checkpoint.open(path, arm="sft", step=3))
    return made


@pytest.fixture
def n_answered(monkeypatch):
    """How many prompts were answered so far."""
    seen, complete = [], answering.complete

    def counting(model, texts, **named):
        seen.extend(texts)
        return complete(model, texts, **named)

    monkeypatch.setattr(answering, "complete", counting)
    return lambda: len(seen)


def test_every_checkpoint_is_evaluated_once(run, n_answered):
    study.evaluate_run(run)
    rates = tables.read("rates", run.measurements())
    assert set(zip(rates["arm"], rates["step"], strict=True)) == {("base", 0), ("sft", 3)}
    assert set(rates["suite"]) == {"builtin-xstest", "builtin"}
    assert set(rates["intervention"]) == {"none", "ablate:random"}
    whole = rates[(rates["by"] == "all") & (rates["metric"] == "degenerate")]
    assert set(whole["n"] + whole["nulls"]) == {2}
    assert set(tables.read("verdicts", run.measurements())["max_new_tokens"]) == {4}
    assert set(tables.read("stress", run.measurements())["attack_step"].dropna()) == {0, 1}
    assert {"evaluate", "attack anew"} <= set(tables.read("stages", run.measurements())["stage"])
    before = n_answered()
    study.evaluate_run(run)
    assert n_answered() == before > 0


def test_other_weights_are_evaluated_anew(run, n_answered):
    study.evaluate_run(run)
    before = n_answered()
    path = models.tiny.make(run.folder / "sft" / "step-00006", seed=3)
    run.record(models.Checkpoint.open(path, arm="sft", step=6))
    study.evaluate_run(run)
    assert n_answered() > before
    assert set(tables.read("rates", run.measurements())["step"]) == {0, 3, 6}


def test_the_order_in_which_checkpoints_are_evaluated_does_not_matter(run, monkeypatch):
    """The base last: losses of its answers are taken when all are there, by opening the others once more."""
    run = study.Run(run.folder, recipe(dataclasses.replace(ASKED, suites=("builtin",), attack=())))
    other = study.Run(shutil.copytree(run.folder, run.folder.parent / "other"), run.recipe)
    study.evaluate_run(run)
    left, opened, load = Asking.left, [], suite_answers.load_causal_lm
    monkeypatch.setattr(Asking, "left", lambda self: dict(reversed(left(self).items())))
    monkeypatch.setattr(suite_answers, "load_causal_lm", lambda each: opened.append(each.id) or load(each))
    study.evaluate_run(other)
    assert opened == ["sft-step-00003", "base-step-00000", "sft-step-00003"]
    assert len(tables.read("answer_losses", other.measurements())) == 2
    for name in ("verdicts", "rates", "suite_differences", "answer_losses"):
        found, expected = (tables.read(name, each.measurements()) for each in (other, run))
        pd.testing.assert_frame_equal(found, expected, obj=name)


def test_without_suites_nothing_is_done(tmp_path):
    made = study.Run.create(tmp_path / "run", recipe(EvaluationSettings()))
    study.evaluate_run(made)
    assert not made.measurements().exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n": -1}, "evaluation n is -1: give 0 or more"),
        ({"max_new_tokens": 0}, "evaluation max_new_tokens is 0: give 1 or more"),
        ({"suites": ("builtin", "builtin")}, "evaluation suites are .*name each once"),
        ({"suites": ()}, "interventions or attacks, but no suites"),
    ],
)
def test_settings_that_ask_for_nothing_are_named(changes, said):
    with pytest.raises(MechrefusalError, match=said):
        dataclasses.replace(ASKED, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"suites": ("xtest=prompts.csv",)}, "unknown suite 'xtest'"),
        ({"suites": ("xstest=/no/such.csv",)}, "/no/such.csv"),
        ({"judges": ("refusals",)}, "unknown judge 'refusals'"),
        ({"judges": ("chat=model",)}, "give chat=MODEL@URL"),
        ({"intervene": ("ablate:carier",)}, "'carier' is neither"),
        ({"attack": ("templates",)}, "evaluation attack 'templates' is unknown: expected one of gcg, autodan"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(changes, said):
    with pytest.raises(MechrefusalError, match=said):
        study.check(recipe(dataclasses.replace(ASKED, **changes)))


def test_a_suites_file_holds_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "prompts.csv").write_text("id,prompt,type,label,focus,note\n1,Hi?,homonyms,safe,,\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    given = EvaluationSettings(suites=("xstest=prompts.csv", "builtin", "harmbench=owner/data"))
    kept = recipe(given).with_absolute_paths().evaluation.suites
    assert kept == (f"xstest={tmp_path / 'prompts.csv'}", "builtin", "harmbench=owner/data")


def test_run_on_the_command_line_evaluates_and_shows_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "train", lambda run: None, raising=False)
    monkeypatch.setattr(study, "measure", lambda run, *, workers: None, raising=False)
    out, options = tmp_path / "run", ["--evaluation.suites", "[builtin-xstest]", "--evaluation.n", "2"]
    run = study.Run.create(out, recipe(EvaluationSettings(suites=("builtin-xstest",), n=2, max_new_tokens=4)))
    run.record(models.Checkpoint.open(models.tiny.make(tmp_path / "base", seed=1)))
    words = ["run", "--recipe", "tiny", *options, "--evaluation.max_new_tokens", "4", "--out", str(out)]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "builtin-xstest" in shown
    assert (out / "report" / "evaluation.html").is_file()
