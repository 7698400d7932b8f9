"""Models that others trained, measured as a run of their own."""

import dataclasses
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from mechrefusal import evaluation, report, study, tables
from mechrefusal.durability import DurabilitySettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.models import Checkpoint, tiny
from mechrefusal.study import checkpoints, kinds, outside
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.settings import PromptSources, Sides, Source


def small(**changes) -> Recipe:
    """The measuring of the recipe `tiny`, less what takes long."""
    own = study.load_recipe("tiny")
    return dataclasses.replace(
        own,
        arms=(),
        attack=dataclasses.replace(own.attack, methods=("templates",)),
        geometry=dataclasses.replace(own.geometry, largest_subspace=0, n_dosed=0, n_bootstrap=20),
        causal=dataclasses.replace(own.causal, n_nodes=0, n_knocked_out=0, n_finalists=0, sites=False, n_rotations=3),
        durability=DurabilitySettings(),
        **changes,
    )


def across(run: study.Run, name: str) -> pd.DataFrame:
    return tables.read(name, run.measurements())


def test_models_by_arm():
    assert outside.by_arm("owner/name") == {"name": ("owner/name",)}
    assert outside.by_arm(["a/run/checkpoint-1", "a/run/checkpoint-2"]) == {
        "run": ("a/run/checkpoint-1", "a/run/checkpoint-2")
    }
    assert outside.by_arm([Path("a"), "b"]) == {"models": ("a", "b")}
    assert outside.by_arm({"mine": "a", "theirs": ["b", Path("c")]}) == {"mine": ("a",), "theirs": ("b", "c")}
    with pytest.raises(MechrefusalError, match="no model to measure"):
        outside.by_arm([])


def test_a_recipe_for_models_takes_no_model_of_its_own():
    found = study.recipe_of("owner/name", base="owner/base", recipe="quick")
    assert (found.model, found.arms, found.checkpoints) == ("owner/base", {}, {"name": ("owner/name",)})
    assert found.measuring == study.load_recipe("quick").measuring


def test_what_is_given_is_checked_first(tmp_path, tiny):
    with pytest.raises(MechrefusalError, match="give its folder as out"):
        study.measure(tiny)
    with pytest.raises(MechrefusalError, match="absent"):
        study.measure(str(tmp_path / "absent"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = study.Run.create(tmp_path / "own", study.load_recipe("tiny"))
    with pytest.raises(MechrefusalError, match="give neither out nor base"):
        study.measure(run, out=tmp_path / "run")


def test_kinds(tiny, family, tmp_path):
    asked = study.choose_prompts(small()).direction.harmful
    own, other = (kinds.kind_of(Checkpoint.open(folder), asked) for folder in (tiny, family("gpt2").folder))
    assert kinds.why_apart(own, own) == ""
    assert kinds.why_apart(own, other) == "other architectures (llama and gpt2)"
    assert kinds.why_apart(own, dataclasses.replace(own, n_layers=9)) == "other sizes (layers: 4 and 9)"
    changed = kinds.kind_of(Checkpoint.open(other_template(tiny, tmp_path / "copy")), asked)
    assert "the same prompts are other tokens" in kinds.why_apart(own, changed)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, family):
    """A base, a Trainer's output of two checkpoints, and a model of another architecture."""
    folder = tmp_path_factory.mktemp("models")
    for number, name in enumerate(("base", "run/checkpoint-10", "run/checkpoint-20")):
        tiny.make(folder / name, seed=number)
    given = {"run": folder / "run", "gpt2": family("gpt2").folder}
    return study.measure(given, out=folder / "out", base=folder / "base", recipe=small()), folder


@pytest.mark.slow
def test_every_model_is_measured_where_it_lies(measured, family):
    run, folder = measured
    assert [c.id for c in run.checkpoints()] == [
        "base-step-00000", "run-step-00010", "run-step-00020", "gpt2-step-00001",
    ]  # fmt: skip
    assert run.checkpoints()[2].path == folder / "run/checkpoint-20"
    assert not list(run.folder.rglob("*.safetensors")) or all(
        path.parent.name == "directions" for path in run.folder.rglob("*.safetensors")
    )
    for checkpoint in run.checkpoints():
        assert len(tables.read("verdicts", run.measurements(checkpoint)))
        [pairs] = tables.read("pairs", run.measurements(checkpoint)).to_dict("records")
        assert (pairs["origin"], pairs["n_patched"]) == ("given", 2)
    known = across(run, "checkpoints").set_index("arm")
    assert known.loc["gpt2", "source"] == str(family("gpt2").folder)
    assert known.loc["gpt2", "architecture"] == "gpt2"
    assert known.loc["base", "source"] == str(folder / "base")
    assert len(across(run, "cases")) == 2 * 2  # templates against the base


@pytest.mark.slow
def test_what_compares_activations_says_why_it_does_not(measured):
    run, _ = measured
    why = "other architectures (llama and gpt2)"
    drift = across(run, "drift")
    to_gpt2 = drift[drift["arm_b"] == "gpt2"]
    assert list(to_gpt2["reason"]) == [why] * len(to_gpt2)
    assert (drift.loc[drift["arm_b"] == "run", "reason"] == "").any()
    relocation = across(run, "relocation")
    apart = relocation[(relocation["arm_b"] == "gpt2") & (relocation["measure"] == "direction_cosine")]
    assert len(apart)
    assert apart["reason"].str.startswith(f"not compared: {why}").all()
    crossed = across(run, "cross_patching")
    to_gpt2 = crossed[crossed["arm_target"] == "gpt2"]
    assert len(to_gpt2)
    assert to_gpt2["reason"].str.startswith("not compared: other architectures").all()
    assert (crossed.loc[crossed["arm_target"] == "run", "reason"] == "").any()
    rates = tables.read("rates", run.measurements())
    assert {"gpt2", "run", "base"} <= set(rates["arm"])


@pytest.mark.slow
def test_the_report_names_the_models(measured):
    run, folder = measured
    text = report.write(run.folder).read_text(encoding="utf-8")
    assert "What was measured" in text
    assert str(folder / "run/checkpoint-20") in text
    assert "They are of 2 kinds" in text


@pytest.mark.slow
def test_the_same_call_goes_on_and_changed_weights_are_refused(measured, family, monkeypatch):
    run, folder = measured
    monkeypatch.setattr(study.units, "measure_checkpoint", None)  # nothing is measured again
    given = {"run": folder / "run", "gpt2": family("gpt2").folder}
    again = study.measure(given, out=folder / "out", base=folder / "base", recipe=small())
    assert again.folder == run.folder
    assert study.measure(run.folder).folder == run.folder
    copied = Path(shutil.copytree(run.folder, folder / "moved"))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["checkpoints"]["run-step-00010"]["weights"] = "0" * 16
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MechrefusalError, match="was changed since it was first opened"):
        study.measure(copied)


@pytest.mark.slow
def test_one_model_and_prompts_of_another_behaviour(tmp_path, tiny):
    """Two sides in files, pairs found, without a base: a run of one checkpoint with its report."""
    builtin = study.choose_prompts(study.load_recipe("tiny"))
    rows = {"direction": builtin.direction, "validation": builtin.validation}
    for name, split in rows.items():
        sides = zip(split.harmful.texts, split.harmless.texts, strict=True)
        pd.DataFrame(sides, columns=["harmful", "harmless"]).to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "asked.txt").write_text("\n".join(builtin.harmful.texts))
    (tmp_path / "plain.txt").write_text("\n".join(builtin.utility.texts))
    prompts = PromptSources(
        direction=Sides(path=str(tmp_path / "direction.csv")),
        validation=Sides(path=str(tmp_path / "validation.csv")),
        harmful=Source("plain", str(tmp_path / "asked.txt")),
        utility=Source("plain", str(tmp_path / "plain.txt")),
    )
    run = study.measure(tiny, out=tmp_path / "run", recipe=small(prompts=prompts))
    [checkpoint] = run.checkpoints()
    assert checkpoint.path == tiny
    chosen = study.choose_prompts(run.recipe)
    assert sorted(chosen.direction.harmful.texts) == sorted(builtin.direction.harmful.texts)
    assert sorted(chosen.utility.texts) == sorted(builtin.utility.texts)
    [pairs] = tables.read("pairs", run.measurements(checkpoint)).to_dict("records")
    assert pairs["origin"] == "found"
    assert pairs["n"] >= pairs["n_patched"] > 0
    assert across(run, "relocation").empty
    assert across(run, "transfer").empty or set(across(run, "transfer")["arm_target"]) == {checkpoint.arm}
    text = report.write(run.folder).read_text(encoding="utf-8")
    assert "every arm starts at the base model" not in text
    assert "There is one checkpoint, and nothing to compare it with" in text
    assert "No training was logged" not in text
    report.summary(run.folder)


@pytest.mark.slow
def test_given_models_stand_beside_arms_that_are_trained(tmp_path):
    theirs = tiny.make(tmp_path / "theirs", seed=5)
    own = small(checkpoints={"theirs": (str(theirs),)})
    recipe = dataclasses.replace(own, arms=("sft",), training=dataclasses.replace(own.training, steps=6, anchors=(6,)))
    run = study.Run.create(tmp_path / "run", recipe)
    assert [c.id for c in study.train(run)] == ["base-step-00000", "sft-step-00006", "theirs-step-00001"]
    assert run.checkpoint("theirs", step=1).path == theirs
    assert run.checkpoint("sft", step=0).arm == "base"
    found, checkpoint = checkpoints.located(run.folder / "theirs-step-00001")
    assert (found, checkpoint.path) == (run, theirs)
    assert {case.source for case in study.cases(run)} == {run.checkpoint("base", step=0).weights}


def other_template(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").write_text(template.replace("<|im_end|>", " <|im_end|>"))
    return copy


@pytest.mark.slow
def test_losses_of_the_bases_answers_need_the_same_tokens(tmp_path, tiny):
    given = {"same": (str(tiny),), "other": (str(other_template(tiny, tmp_path / "copy")),)}
    run = study.Run.create(tmp_path / "run", small(model=str(tiny), checkpoints=given))
    study.train(run)
    found = study.evaluate(run, [evaluation.read_suite("builtin-utility", n=2)], max_new_tokens=4)
    assert set(found.losses["arm"]) == {"base", "same"}
    assert found.skipped == ("loss of the base's answers at other-step-00001: its prompts are other tokens",)


@pytest.mark.slow
def test_the_checkpoints_of_a_trainer_may_be_adapters(tmp_path, tiny):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for step in (10, 20):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(r=2, target_modules=["q_proj"]))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight += 0.01 * step
        model.save_pretrained(tmp_path / "lora" / f"checkpoint-{step}")
    causal = dataclasses.replace(small().causal, n_crossed=0)
    recipe = dataclasses.replace(small(), causal=causal)
    run = study.measure(tmp_path / "lora", base=tiny, out=tmp_path / "run", recipe=recipe)
    points = run.checkpoints()
    assert [c.id for c in points] == ["base-step-00000", "lora-step-00010", "lora-step-00020"]
    assert len({c.weights for c in points}) == 3
    cosines = across(run, "drift").query("measure == 'direction_cosine' and arm_a == 'base'")
    assert not cosines["reason"].str.contains("other").any()
    assert cosines["value"].lt(0.9999).any()
