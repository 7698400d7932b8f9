"""Which checkpoints' updates are taken, that each is kept by itself, and what is said where there is none."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tolerances import FORWARD

from mechrefusal import models, study, tables
from mechrefusal.models import Checkpoint
from mechrefusal.study import updates
from mechrefusal.study.across import Pairs

SETTINGS = {"n_prompts": 2, "ranks": (1,), "scales": (0.0,), "n_random": 1, "max_new_tokens": 2}


def of(arm, step):
    return Checkpoint(arm, step, Path(), f"{arm}{step}")


def pairs(*checkpoints, given=()):
    return [(a.id, b.id) for a, b in updates.pairs_of_updates(checkpoints, given=given)]


def test_a_checkpoint_is_compared_with_all_that_it_started_from():
    base, middle, end, sft = of("base", 0), of("warm-up", 30), of("warm-up", 60), of("sft", 70)
    b, m, e, s = (each.id for each in (base, middle, end, sft))
    assert pairs(base, middle, end, sft) == [(b, m), (b, e), (b, s), (e, s)]
    assert pairs(base, end, sft, given=("sft",)) == [(b, e), (b, s)]
    assert pairs(base, sft) == [(b, s)]
    assert pairs(sft) == pairs(base) == []


@pytest.fixture(scope="module")
def checkpoints(tiny, tmp_path_factory):
    """The tiny model, and one of which a single matrix was changed."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    model, tokenizer = models.load_causal_lm(tiny)
    with torch.no_grad():
        weights = model.model.layers[2].mlp.down_proj.weight
        weights += torch.outer(torch.ones(len(weights)), torch.arange(weights.shape[1]) / 100)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return [Checkpoint.open(tiny), Checkpoint.open(folder, arm="sft", step=6)]


def taken(folder, checkpoints, why_apart=lambda a, b: ""):
    recipe = study.load_recipe("tiny")
    settings = dataclasses.replace(recipe.durability.update_spectrum, **SETTINGS)
    recipe = dataclasses.replace(recipe, durability=dataclasses.replace(recipe.durability, update_spectrum=settings))
    run = study.Run.create(folder, recipe)
    chosen = study.choose_prompts(recipe)
    found = updates.updates(run, Pairs(checkpoints, why_apart=why_apart), chosen)
    return {name: tables.frame(name, table) for name, table in found.items()}, chosen


def test_an_update_is_read_from_disk_and_kept(checkpoints, tmp_path, monkeypatch):
    found, chosen = taken(tmp_path / "run", checkpoints)
    spectrum, refusals, prompts = (found[name] for name in updates.TABLES)
    assert set(spectrum[["arm_a", "step_a", "arm_b", "step_b"]].itertuples(index=False, name=None)) == {
        ("base", 0, "sft", 6)
    }
    changed = spectrum[spectrum["norm"] > 0]
    assert changed[["matrix", "layer", "rank"]].to_numpy().tolist() == [["mlp.down_proj", 2, 1]]
    assert changed["effective_rank"].item() == pytest.approx(1, abs=FORWARD)
    assert (spectrum.loc[spectrum["norm"] == 0, "reason"] == "training did not change this matrix").all()
    assert refusals["kept"].value_counts().to_dict() == {
        "scaled": 4, "top": 2, "all but top": 2, "random": 2, "all but random": 2,
    }  # fmt: skip
    top = refusals[refusals["kept"] == "top"].iloc[0]
    assert (top["share"], top["n"], top["change"]) == (pytest.approx(1, abs=FORWARD), 2, 0)
    of_top = prompts[(prompts["kept"] == "top") & (prompts["side"] == "harmful") & (prompts["measure"] == "refused")]
    assert of_top["prompt_id"].tolist() == chosen.harmful.ids[:2]
    assert of_top["value"].mean() == top["refused"]

    monkeypatch.setattr(updates, "load_causal_lm", lambda _: pytest.fail("it was kept"))
    again, _ = taken(tmp_path / "run", checkpoints)
    assert all(again[name].equals(found[name]) for name in updates.TABLES)


def test_models_that_cannot_be_compared_are_rows_that_say_why(checkpoints, tmp_path):
    found, _ = taken(tmp_path / "run", checkpoints, lambda a, b: "other sizes (layers: 4 and 6)")
    for name in updates.TABLES[:2]:
        assert found[name]["reason"].tolist() == ["not compared: other sizes (layers: 4 and 6)"]
        assert found[name][["arm_b", "step_b"]].to_numpy().tolist() == [["sft", 6]]
    assert found["update_prompts"].empty
