"""A run goes on with the prompts that it was started with, from wherever it stands."""

import dataclasses
import json
import shutil

import pytest

from mechrefusal import models, study
from mechrefusal.errors import MechrefusalError
from mechrefusal.models import Checkpoint
from mechrefusal.study import starting, training_of_run
from mechrefusal.study.settings import PromptSources, Source


def _recipe(path, **changes):
    tiny = study.load_recipe("tiny")
    return dataclasses.replace(tiny, prompts=PromptSources(harmful=Source("maliciousinstruct", str(path))), **changes)


def test_changed_prompts_are_refused(tmp_path):
    path = tmp_path / "asked.txt"
    path.write_text("How do I pick a lock?\nHow do I forge a pass?\n", encoding="utf-8")
    run = study.Run.create(tmp_path / "run", _recipe(path))
    starting.lock(run, study.check(run.recipe))
    starting.lock(run, study.check(run.recipe))  # the same prompts again
    path.write_text("How do I pick a lock?\nHow do I forge a ticket?\n", encoding="utf-8")
    with pytest.raises(MechrefusalError, match=r"have changed since it was started \(evaluation_harmful\)"):
        starting.lock(run, study.check(run.recipe))


def test_paths_of_a_recipe_hold_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "asked.txt").write_text("How do I pick a lock?\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run = study.Run.create("run", _recipe("asked.txt"))
    monkeypatch.chdir("/")
    assert study.open(tmp_path / "run").recipe.prompts.harmful.path == str(tmp_path / "asked.txt")
    assert study.check(run.recipe).harmful.texts == ["How do I pick a lock?"]


def test_a_run_finds_its_base_model_again_when_the_cache_has_moved(tmp_path, tiny):
    model = shutil.copytree(tiny, tmp_path / "model")
    run = study.Run.create(tmp_path / "run", dataclasses.replace(study.load_recipe("tiny"), model=str(model)))
    elsewhere = shutil.copytree(tiny, tmp_path / "elsewhere")
    run.record(Checkpoint.open(elsewhere))
    shutil.rmtree(elsewhere)
    assert run.checkpoint("base", step=0).path == model
    models.tiny.make(model, seed=5)  # not the weights that the run was started with
    with pytest.raises(MechrefusalError, match="was changed after training"):
        run.checkpoint("base", step=0)


def test_the_first_prompts_of_a_file_are_not_its_first_lines(tmp_path):
    lines = [f"How do I do the forbidden thing number {n}?" for n in range(60)]
    path = tmp_path / "asked.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    chosen = study.choose_prompts(_recipe(path)).harmful.texts
    assert len(chosen) == 6
    assert chosen != lines[:6]
    path.write_text("\n".join(reversed(lines)), encoding="utf-8")
    assert study.choose_prompts(_recipe(path)).harmful.texts == chosen


def test_a_behaviour_that_does_not_fit_is_named_before_anything_is_written(tmp_path):
    path = tmp_path / "asked.txt"
    path.write_text("How do I " + "really " * 400 + "do it?\n", encoding="utf-8")
    sources = PromptSources(behaviours=Source("maliciousinstruct", str(path)))
    tiny = study.load_recipe("tiny")
    recipe = dataclasses.replace(tiny, prompts=sources, training=dataclasses.replace(tiny.training, n_behaviours=0))
    with pytest.raises(
        MechrefusalError,
        match=r"1 of \d+ prompts of 'behaviours' leave no room for 1 more tokens in training max_length of 128",
    ):
        study.check(recipe)


def test_conversations_are_in_the_leakage_audit(tmp_path):
    own = study.choose_prompts(study.load_recipe("tiny")).harmless[0]
    path = tmp_path / "chat.jsonl"
    path.write_text('{"prompt": "' + own + '", "answer": "So."}\n{"prompt": "Hi?", "answer": "Hello."}\n')
    recipe = dataclasses.replace(study.load_recipe("tiny"), prompts=PromptSources(conversations=str(path)))
    chosen = study.choose_prompts(recipe)
    assert own not in chosen.harmless.texts
    assert [turn["prompt"] for turn in chosen.conversations] == [own, "Hi?"]
    assert "evaluation_harmless" in set(chosen.dropped["set_b"])


def test_conversations_that_were_left_out_stand_in_the_manifest(tmp_path):
    path = tmp_path / "chat.jsonl"
    rows = [{"prompt": f"What is number {n}?", "answer": "" if n == 1 else f"It is {n}."} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tiny = study.load_recipe("tiny")
    sources = PromptSources(conversations=str(path), n_conversations=0)
    run = study.Run.create(tmp_path / "run", dataclasses.replace(tiny, prompts=sources))
    with pytest.warns(UserWarning, match=r"1 rows were left out: 1 with no answer \(row 2\)"):
        starting.lock(run, study.check(run.recipe))
    assert run.manifest["left_out_conversations"] == [{"row": 2, "reason": "no answer"}]
    assert run.manifest["prompts"]["instructions"]["n"] == 2


def test_own_answers_to_all_instructions(tmp_path, tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(training_of_run, "own_answers", lambda base, given, **_: asked.append(len(given)) or [])
    recipe = study.load_recipe("tiny")
    for n in (0, 5):
        changed = dataclasses.replace(recipe, prompts=dataclasses.replace(recipe.prompts, n_conversations=n))
        chosen = study.check(changed)
        training_of_run._conversations(changed, Checkpoint.open(tiny), chosen)
    assert asked == [len(chosen.instructions), 5]
