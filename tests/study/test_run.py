import dataclasses
import json

import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.models import Checkpoint, tiny
from mechrefusal.study import Run, load_recipe
from mechrefusal.study import open as open_run


def test_create_open_and_continue(tmp_path):
    recipe = load_recipe("tiny")
    run = Run.create(tmp_path / "run", recipe)
    assert open_run(tmp_path / "run") == run
    assert Run.create(tmp_path / "run", recipe) == run
    assert run.manifest["versions"]["torch"]


def test_a_run_of_another_recipe_is_refused_and_untouched(tmp_path):
    recipe = load_recipe("tiny")
    run = Run.create(tmp_path / "run", recipe)
    before = (run.folder / "recipe.yaml").read_bytes()
    other = dataclasses.replace(recipe, measuring=dataclasses.replace(recipe.measuring, n_pairs=5))
    with pytest.raises(MechrefusalError, match=r"another recipe .*measuring\.n_pairs"):
        Run.create(tmp_path / "run", other)
    assert (run.folder / "recipe.yaml").read_bytes() == before


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MechrefusalError, match="exists and is not a run"):
        Run.create(tmp_path, load_recipe("tiny"))
    with pytest.raises(MechrefusalError, match="is not a run"):
        open_run(tmp_path / "absent")


def test_checkpoints_are_in_order_and_changed_weights_are_refused(tmp_path):
    run = Run.create(tmp_path / "run", load_recipe("tiny"))
    places = {
        ("base", 0): tmp_path / "base",
        ("r2d2", 4): run.folder / "r2d2/step-00004",
        ("sft", 4): run.folder / "sft/step-00004",
    }
    made = [
        Checkpoint.open(tiny.make(path, seed=seed), arm=arm, step=step)
        for seed, ((arm, step), path) in enumerate(places.items())
    ]
    run.record(*made)
    assert [found.id for found in run.checkpoints()] == ["base-step-00000", "sft-step-00004", "r2d2-step-00004"]
    assert run.checkpoint("r2d2", step=0).arm == "base"
    assert not json.loads((run.folder / "manifest.json").read_text())["checkpoints"]["sft-step-00004"][
        "path"
    ].startswith("/")
    with pytest.raises(MechrefusalError, match="no checkpoint 'sft-step-00009'"):
        run.checkpoint("sft", step=9)
    template = run.folder / "sft/step-00004/chat_template.jinja"
    before = template.read_text()
    template.write_text(before.replace("tiny assistant", "large assistant"))
    with pytest.raises(MechrefusalError, match=r"sft-step-00004.* was changed after training \(weights, .*template\)"):
        run.checkpoint("sft", step=4)
    template.write_text(before)
    assert run.checkpoint("sft", step=4) == made[2]
    tiny.make(run.folder / "sft/step-00004", seed=99)
    with pytest.raises(MechrefusalError, match="was changed after training"):
        run.checkpoints()
