"""A plan counts what is run, needs no weights, and says what will not fit."""

import json
import shutil
from dataclasses import replace

import pytest

from mechrefusal import MechrefusalError, geometry, models, study, tables
from mechrefusal.cli import main
from mechrefusal.forward.tree_forward import TreeForward
from mechrefusal.study import calibrating, forecasts
from mechrefusal.study.calibrating import Speed
from mechrefusal.study.forecast_work import flops_of
from mechrefusal.study.forecasts import GIB, PROCESS
from mechrefusal.study.protocol import AT_A_CHECKPOINT
from mechrefusal.study.selection import choose_prompts
from mechrefusal.study.stages import LAST
from mechrefusal.study.units import BETWEEN

SPEED = Speed(packed=1e9, generated=1e9, passes=1e8, backward=5e8, copied=1e9, moved=1e9, hashed=1e9, decomposed=1e9)


@pytest.fixture
def outline(tiny, tmp_path):
    """The tiny model's folder without its weights."""
    return shutil.copytree(tiny, tmp_path / "outline", ignore=shutil.ignore_patterns("*.safetensors*"))


@pytest.fixture(autouse=True)
def timed(monkeypatch):
    """As if this machine had been timed."""
    monkeypatch.setattr(forecasts, "calibrated", lambda *_, **__: SPEED)


def test_a_plan_of_an_outline(outline, tiny, tiny_hf):
    table = study.plan("tiny", model=outline)
    assert list(table.columns) == list(tables.columns("plan"))
    n = sum(weight.numel() for weight in tiny_hf[0].parameters())
    assert set(table["parameters"]) == {n}
    by_stage = table.set_index("stage")
    assert by_stage.loc["load", "memory_gib"] * GIB == pytest.approx(models.bytes_to_hook(tiny) + PROCESS)
    assert {"train sft", "train r2d2", "answers", "carriers", "patching"} <= set(table["stage"])
    assert table["fits"].all()
    assert (table["seconds"] > 0).all()
    stages = {stage.name for stage in AT_A_CHECKPOINT if stage.name != LAST} | {stage.name for stage in BETWEEN}
    assert stages <= set(table["stage"]), "the recipe has every stage on, and the plan counts each"
    assert by_stage.loc["train r2d2", "seconds"] > by_stage.loc["train sft", "seconds"], "it attacks beside"
    assert (
        by_stage.loc["answers", "times"]
        == by_stage.loc["load", "times"]
        == 1 + 2 * len(study.load_recipe("tiny").training.arm_anchors)
    )


def test_forward_tokens_of_directions_are_those_that_are_run(outline, tiny_hooked, monkeypatch):
    ran, run = [], TreeForward.run_tree
    monkeypatch.setattr(
        TreeForward,
        "run_tree",
        lambda self, running, **how: ran.append(len(running.tree)) or run(self, running, **how),
    )
    geometry.difference_in_means(tiny_hooked, choose_prompts(study.load_recipe("tiny")).direction)
    row = study.plan("tiny", model=outline).set_index("stage").loc["directions"]
    through = 1 - 1 / tiny_hooked.cfg.n_layers  # what enters the last layer is the last that is read
    assert row["forward_tokens"] / row["times"] == pytest.approx(sum(ran) * through, rel=0.05)


def test_what_will_not_fit_is_said_and_more_devices_help(outline, capsys):
    asked = {"model": outline, "device_memory": "1MiB", "flops": 1e12}
    one, eight = study.plan("tiny", devices=1, **asked), study.plan("tiny", devices=8, **asked)
    assert not one["fits"].all()
    assert one.loc[~one["fits"], "note"].str.startswith("will not fit").all()
    training = one["stage"].str.startswith("train")
    assert (eight[training]["memory_gib"].to_numpy() < one[training]["memory_gib"].to_numpy()).all()
    assert eight["seconds"].sum() < one["seconds"].sum()
    line = ["plan", "tiny", "--model", str(outline), "--devices", "1", "--device_memory", "1MiB", "--flops", "1e12"]
    assert main([*line, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)[0]["stage"] == one["stage"][0]
    assert "warning: " in printed.err
    assert "will not fit" in printed.err
    assert main(line) == 0
    assert "Plan" in capsys.readouterr().out


def test_files_are_hashed_by_their_bytes_at_a_speed_that_is_given(outline):
    hashing = replace(SPEED, hashed=1e-3)  # all else takes nothing beside it
    seconds = study.plan("tiny", model=outline, speed=hashing).set_index("stage").loc["load"]
    assert seconds["seconds"] / seconds["times"] == pytest.approx(seconds["parameters"] * 1e3, rel=0.01)
    config = json.loads((outline / "config.json").read_text(encoding="utf-8"))
    (outline / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}), encoding="utf-8")
    half = study.plan("tiny", model=outline, speed=hashing).set_index("stage").loc["load"]
    assert half["seconds"] == pytest.approx(seconds["seconds"] / 2, rel=0.01)


def test_stages_that_a_recipe_leaves_out_take_nothing(outline):
    recipe = study.load_recipe("demo")
    left_out = {"subspaces", "dose-response", "knock-out", "circuit", "cross patching", "cost of removal"}
    planned = study.plan(recipe, model=outline, devices=1, device_memory="80GiB", flops=1e12)
    assert not left_out & set(planned["stage"])
    assert planned.set_index("stage").loc["transfer", "times"] == 1


@pytest.mark.parametrize("given", [{"devices": -1}, {"flops": 0.0}, {"device_memory": "lots"}])
def test_values_that_cannot_be(outline, given):
    with pytest.raises(MechrefusalError):
        study.plan("tiny", model=outline, **given)


def test_a_calibration_counts_what_a_model_multiplies(tiny, tiny_hf):
    model = tiny_hf[0]
    layers = sum(weight.numel() for name, weight in model.named_parameters() if "layers" in name and weight.ndim == 2)
    assert flops_of(model) == pytest.approx(2 * (layers + model.lm_head.weight.numel()), rel=0.02)
    speed = calibrating.calibrated(models.load_config(tiny), device=forecasts.machine.HOST, dtype=model.dtype)
    assert min(value for name, value in vars(speed).items() if name != "layer") > 0
    assert speed.packed > speed.passes, "a pass of one token reads the same weights"
