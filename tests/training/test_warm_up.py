"""A warm-up that all arms share: what of it is written, where arms start, and that it can be broken off anywhere.

It is trained with adapters: its end is a whole model, and the anchors of arms are adapters that belong to it.
"""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mechrefusal import MechrefusalError, study, tables, training
from mechrefusal.models import Checkpoint
from mechrefusal.training import WARM_UP, trainer

pytestmark = pytest.mark.slow

WARM, STEPS = 2, 5


def recipe(**changes):
    found = study.load_recipe("tiny")
    settings = replace(
        found.training, steps=STEPS, warm_up=WARM, anchors=(0, WARM, 4, STEPS), save_every=1, n_probe=1, probe_tokens=3,
        warm_up_learning_rate=0.002, warm_up_harmful_per_step=4, lora=training.LoraSettings(rank=2),
    )  # fmt: skip
    return replace(found, training=settings, prompts=replace(found.prompts, n_conversations=8), **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A trained run, and what `training.train` was given for each of its parts."""
    run, given = study.Run.create(tmp_path_factory.mktemp("runs") / "whole", recipe()), []
    original = training.train

    def noted(arm, **named):
        given.append({"arm": arm} | named)
        return original(arm, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mechrefusal.training.train", noted)
        found = study.train(run)
    assert found == run.checkpoints()
    return run, given


def test_checkpoints_are_in_order(finished):
    run, _ = finished
    ids = ["base-step-00000", "warm-up-step-00002"]
    ids += [f"{arm}-step-{step:05d}" for arm in ("sft", "r2d2") for step in (4, STEPS)]
    assert [point.id for point in run.checkpoints()] == ids
    assert len({point.weights for point in run.checkpoints()}) == len(ids)
    assert not (run.folder / "sft" / "step-00002").exists(), "the warm-up's end is written once"


def test_a_shared_step_is_the_same_checkpoint_in_every_arm(finished):
    run, _ = finished
    for arm in ("sft", "r2d2", WARM_UP):
        assert run.checkpoint(arm, step=WARM).id == "warm-up-step-00002"
        assert run.checkpoint(arm, step=0).id == "base-step-00000"
    assert run.checkpoint("sft", step=4).id == "sft-step-00004"
    with pytest.raises(MechrefusalError, match="no checkpoint 'sft-step-00003'; it has base-step-00000, warm-up-step"):
        run.checkpoint("sft", step=3)


def test_arms_start_from_the_end_of_the_warm_up(finished):
    run, given = finished
    end = run.folder / "warm-up" / "step-00002"
    assert [(each["arm"].name, each["name"], each["start"]) for each in given] == [
        ("sft", "warm-up", 0), ("sft", "sft", WARM), ("r2d2", "r2d2", WARM),
    ]  # fmt: skip
    warm, *arms = given
    assert warm["base"].id == "base-step-00000"
    assert (warm["settings"].steps, warm["settings"].anchors) == (WARM, (WARM,))
    assert (warm["settings"].learning_rate, warm["settings"].harmful_per_step) == (0.002, 4)
    assert len(warm["behaviours"]) == len(study.choose_prompts(run.recipe).behaviours) > 100
    for arm in arms:
        assert arm["base"].path == end
        assert arm["base"].weights == Checkpoint.open(end).weights
        assert (arm["settings"].steps, arm["settings"].anchors) == (STEPS - WARM, (2, 3))
        assert (arm["settings"].learning_rate, arm["settings"].harmful_per_step) == (0.003, 8)
        assert len(arm["behaviours"]) == run.recipe.training.n_behaviours
        assert arm["utility"] == warm["utility"]


def test_a_run_that_was_moved_still_opens(finished, tmp_path, monkeypatch):
    run, _ = finished
    decoy = tmp_path / "another" / "sft" / "step"
    decoy.mkdir(parents=True)
    shutil.copytree(run.checkpoint("base", step=0).path, tmp_path / "another" / "warm-up" / "step-00002")
    moved = study.Run.open(shutil.copytree(run.folder, tmp_path / "moved"))
    monkeypatch.chdir(decoy)  # from which the name of the base leads to another model
    assert moved.checkpoints() == [
        replace(point, path=moved.folder / point.path.relative_to(run.folder)) if point.step else point
        for point in run.checkpoints()
    ]
    shutil.rmtree(moved.folder / "warm-up")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MechrefusalError, match=r"adapter '.*sft/step-00004' needs its base .*warm-up/step-00002'"):
        moved.checkpoint("sft", step=4)


def test_steps_count_on(finished):
    run, _ = finished
    expected = {WARM_UP: [1, 2], "sft": [3, 4, 5], "r2d2": [3, 4, 5]}
    log = tables.read("training", run.measurements())
    assert log.groupby("arm")["step"].apply(list).to_dict() == expected
    first = log[log["step"] == 3].set_index("arm")["utility"]
    assert first["sft"] == pytest.approx(first["r2d2"], rel=1e-4), "the same rows and the same weights"
    assert set(log.loc[log["arm"] == "sft", "learning_rate"]) == set(log.loc[log["arm"] == "r2d2", "learning_rate"])
    terms = tables.read("terms", run.measurements())
    assert terms.groupby("arm")["step"].apply(lambda steps: sorted(set(steps))).to_dict() == expected
    refreshes = tables.read("refreshes", run.measurements())
    assert refreshes.groupby("arm")["step"].apply(lambda steps: sorted(set(steps))).to_dict() == {"r2d2": [3, 4, 5]}
    probes = tables.read("probes", run.measurements())
    probed = probes.groupby("arm")["step"].apply(lambda steps: sorted(set(steps))).to_dict()
    assert probed == {WARM_UP: [0, 2], "sft": [2, 4, 5], "r2d2": [2, 4, 5]}
    for table in (log, terms, refreshes, probes):
        assert table["step"].notna().all()


def test_it_is_not_trained_again(finished, monkeypatch):
    monkeypatch.setattr("mechrefusal.training.train", lambda *_, **__: pytest.fail("trained again"))
    study.train(study.open(finished[0].folder))


@pytest.mark.parametrize(("which", "step"), [("warm-up", 1), ("sft", 2)])
def test_what_was_broken_off_goes_on_to_the_same_weights(finished, tmp_path, monkeypatch, which, step):
    whole, _ = finished
    run, original = study.Run.create(tmp_path / "run", recipe(arms=("sft",))), trainer.ArmTrainer.training_step

    def stopping(self, *args, **kwargs):
        if which in str(self.args.output_dir) and self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.ArmTrainer, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            study.train(run)
    assert (run.folder / which / "unfinished" / f"checkpoint-{step}").is_dir()
    assert [point.arm for point in run.checkpoints()] == ["base", *([WARM_UP] if which == "sft" else [])]
    again = study.open(run.folder)
    study.train(again)
    assert not list(run.folder.rglob("unfinished"))
    for arm, at in ((WARM_UP, WARM), ("sft", 4), ("sft", STEPS)):
        one, other = (each.checkpoint(arm, step=at) for each in (again, whole))
        assert one.weights == other.weights
        kind = "model.safetensors" if arm == WARM_UP else "adapter_model.safetensors"
        found, expected = (load_file(each.path / kind) for each in (one, other))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), (arm, at)
    log = tables.read("training", again.measurements())
    assert log.groupby("arm")["step"].apply(list).to_dict() == {WARM_UP: [1, 2], "sft": [3, 4, 5]}


def test_an_arm_is_not_given_the_whole_settings(finished, tmp_path):
    _, given = finished
    told = {name: value for name, value in given[1].items() if name not in ("probe", "out", "settings")}
    with pytest.raises(MechrefusalError, match=r"given a warm_up of 2 steps.*of_warm_up\(\) first.*of_arm\(\)"):
        training.train(**told, out=tmp_path, settings=recipe().training)
    assert not list(tmp_path.iterdir())
