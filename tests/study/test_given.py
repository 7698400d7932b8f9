"""Checkpoints that others trained: which, of what arm, at which step."""

import json
import re

import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.study.given import arm_of, given
from mechrefusal.study.recipe import Recipe


def model(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def lines(found):
    return [(each.arm, each.step, each.source) for each in found]


def test_models_stand_in_the_order_given():
    found = given({"mine": ("zephyr", "owner/name"), "theirs": ("alone",)})
    assert lines(found) == [("mine", 1, "zephyr"), ("mine", 2, "owner/name"), ("theirs", 1, "alone")]


@pytest.mark.parametrize(
    ("sources", "steps"),
    [
        (("a/b@step1000", "a/b@step2000-tokens4B"), [1000, 2000]),
        (("a/b@step2000", "a/b@step1000"), [1, 2]),  # they do not rise
        (("a/b@main", "a/b@step1000"), [1, 2]),  # one tells none
        (("a/b@step1000",), [1000]),
        (("a/step-3d-model",), [1]),
    ],
)
def test_steps_of_revisions(sources, steps):
    assert [each.step for each in given({"arm": sources})] == steps


def test_steps_of_folders(tmp_path):
    folders = [str(model(tmp_path / name)) for name in ("checkpoint-20", "step-00100", "checkpoint_200")]
    assert [each.step for each in given({"arm": folders})] == [20, 100, 200]


def test_the_output_of_a_trainer_is_an_arm_with_its_steps(tmp_path):
    for step in (5, 100, 20):
        model(tmp_path / "run" / f"checkpoint-{step}")
    (tmp_path / "run" / "runs").mkdir()
    (tmp_path / "run" / "checkpoint-7.txt").write_text("a file")
    found = given({"run": (str(tmp_path / "run"),)})
    assert lines(found) == [("run", step, str(tmp_path / "run" / f"checkpoint-{step}")) for step in (5, 20, 100)]


@pytest.mark.parametrize(("state", "steps"), [(None, [5, 6]), (8, [5, 8]), (5, [5])])
def test_what_a_trainer_saved_at_the_end_is_its_last_step(tmp_path, state, steps):
    model(tmp_path / "run")
    model(tmp_path / "run" / "checkpoint-5")
    if state is not None:
        (tmp_path / "run" / "trainer_state.json").write_text(json.dumps({"global_step": state}))
    assert [each.step for each in given({"run": (str(tmp_path / "run"),)})] == steps


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("owner/Zephyr-7b", "Zephyr-7b"),
        ("owner/name@step1000", "name"),
        ("runs/dpo/checkpoint-100", "dpo"),
        ("runs/my model/", "my-model"),
        ("/checkpoint-100", "model"),
        ("../..hidden", "hidden"),
        ("somewhere/base", "model"),
        ("owner/warm-up@main", "model"),
    ],
)
def test_what_the_arm_of_a_single_model_is_called(source, name):
    assert arm_of(source) == name


def test_an_arm_is_named_by_a_folder_with_an_at_sign(tmp_path):
    assert arm_of(str(model(tmp_path / "me@home"))) == "me-home"


@pytest.mark.parametrize(
    ("checkpoints", "told"),
    [
        ({"base": ("a",)}, "'base' is the name of another arm"),
        ({"sft": ("a",)}, "'sft' is the name of another arm"),
        ({"warm-up": ("a",)}, "'warm-up' is the name of another arm"),
        ({"a/b": ("a",)}, "'a/b' cannot be the name of a file"),
        ({"": ("a",)}, "'' cannot be the name of a file"),
        ({"mine": ()}, "'mine' names no list of models"),
        ({"mine": "abc"}, "'mine' names no list of models"),
        ({"mine": (" ",)}, "'mine' names ' '"),
    ],
)
def test_arms_that_cannot_be(checkpoints, told):
    with pytest.raises(MechrefusalError, match=re.escape(told)):
        Recipe(checkpoints=checkpoints)


def test_there_is_something_to_measure():
    with pytest.raises(MechrefusalError, match="neither a model nor checkpoints"):
        Recipe(model="", arms=())
    with pytest.raises(MechrefusalError, match="model is empty"):
        Recipe(model="", checkpoints={"mine": ("a",)})
    assert Recipe(model="", arms=(), checkpoints={"mine": ("a",)}).checkpoints == {"mine": ("a",)}
