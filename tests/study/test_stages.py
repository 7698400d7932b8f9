"""What each stage hangs on: all that it reads, and no more; and what a change of it makes anew."""

import dataclasses
from functools import partial

import pandas as pd
import pytest

from mechrefusal import models, study, tables
from mechrefusal.durability import AnswerLengthSettings, HarmfulFineTuningSettings, PrefilledSettings, RemovalSettings
from mechrefusal.evaluation import discovery
from mechrefusal.geometry import Directions
from mechrefusal.study import measurement, protocol
from mechrefusal.study.measurement import Measurement
from mechrefusal.study.protocol import ACROSS_CHECKPOINTS, AT_A_CHECKPOINT
from mechrefusal.study.recipe import leaves
from mechrefusal.study.selection import StudyPrompts
from mechrefusal.study.stages import CASES, LAST, PROMPTS, Stage, inputs, prompts_asked

BY_NAME = {stage.name: stage for stage in AT_A_CHECKPOINT}
ASK_THEMSELVES = {"separability", "harmful fine-tuning", "answers by their length", "prefilled openings"}
"""Stages that come after none: they give answers of their own, to prompts that the recipe chose."""


def closure(name):
    """A stage and all that it comes after."""
    return {name}.union(*(closure(each) for each in BY_NAME[name].after))


def changed(recipe, setting, value):
    section, name = setting.split(".")
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **{name: value})})


def stamps(recipe, asked=None, **changes):
    told = dict.fromkeys((*PROMPTS, CASES), "0")
    return inputs(AT_A_CHECKPOINT, changes.pop("of", "w"), told | (asked or {}), recipe)


def made_again(before, after):
    return [name for name in before if before[name] != after[name]]


def test_stages_come_after_what_they_read():
    seen = []
    for stage in AT_A_CHECKPOINT:
        assert set(stage.after) <= set(seen), stage.name
        seen.append(stage.name)
    assert len(set(seen)) == len(seen)
    assert seen[-1] == LAST
    for stage in ACROSS_CHECKPOINTS:
        assert set(stage.after) <= {*seen, "timings"}, stage.name
        seen.append(stage.name)


def test_every_table_is_given_by_one_stage():
    given = [name for stage in AT_A_CHECKPOINT for name in stage.gives]
    assert sorted([*given, "timings"]) == sorted([*tables.PER_CHECKPOINT, "verdicts"])
    across = [name for stage in ACROSS_CHECKPOINTS for name in stage.gives]
    assert len(across) == len(set(across))


def test_every_setting_that_is_no_number_of_prompts_is_some_stages():
    recipe = study.load_recipe("tiny").as_dict()
    known = {name for stage in (*AT_A_CHECKPOINT, *ACROSS_CHECKPOINTS) for name in stage.settings}
    known |= {
        f"measuring.n_{name}"
        for name in ("evaluation", "overrefusal", "contrast", "utility", "direction", "validation")
    }  # they choose the prompts, which are asked for by their fingerprints
    known |= {
        f"measuring.{name}" for name in ("kl_threshold", "induce_threshold", "prune_layer_fraction")
    }  # admissible
    assert "measuring.admissible" in known
    assert {*leaves({name: recipe[name] for name in ("measuring", "geometry", "causal")})} <= known
    assert {f"durability.{name}" for name in recipe["durability"] if recipe["durability"][name]["n_prompts"]} <= known


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("causal.n_nodes", 5, {"circuit"}),
        ("causal.n_random", 3, {"knock-out", "circuit"}),
        ("causal.n_finalists", 5, {"patching"}),
        ("geometry.n_coupled", 3, {"harmfulness and refusal"}),
        ("measuring.n_attributed", 2, {"attribution"}),
        ("durability.removal", RemovalSettings(n_prompts=5), {"cost of removal"}),
        ("measuring.n_intervened", 2, {"interventions", "rates"}),
        ("measuring.max_new_tokens", 12, set(BY_NAME) - ASK_THEMSELVES),
        ("durability.prefilled", PrefilledSettings(n_prompts=3), {"prefilled openings"}),
        ("durability.answer_length", AnswerLengthSettings(n_prompts=3), {"answers by their length"}),
        ("durability.harmful_fine_tuning", HarmfulFineTuningSettings(n_prompts=3), {"harmful fine-tuning"}),
        ("measuring.fewest_kept", 3,
         set(BY_NAME) - ASK_THEMSELVES - {"answers", "refusal metric", "knock-out", "circuit"}),
        ("geometry.n_bootstrap", 60, {
            "carriers", "subspaces", "over-refusal overlap", "harmfulness and refusal", "dose-response",
            "interventions", "attribution", "patching", "cost of removal", "rates",
        }),
        ("training.learning_rate", 0.001, set()),
        ("attack.n_cases", 7, set()),
    ],
)  # fmt: skip
def test_a_changed_setting_makes_anew_what_hangs_on_it(setting, value, expected):
    recipe = study.load_recipe("tiny")
    assert set(made_again(stamps(recipe), stamps(changed(recipe, setting, value)))) == expected


def test_other_prompts_weights_and_versions_make_anew_what_hangs_on_them():
    recipe = study.load_recipe("tiny")
    before = stamps(recipe)
    assert made_again(before, stamps(recipe, {"pairs": "1"})) == ["patching", "circuit"]
    assert set(made_again(before, stamps(recipe, {CASES: "1"}))) == set(BY_NAME) - ASK_THEMSELVES
    assert set(made_again(before, stamps(recipe, of="v"))) == set(BY_NAME)
    assert made_again(before, stamps(recipe, {"behaviours": "1"})) == ["harmful fine-tuning"]
    first = [Stage("one", print), Stage("two", print, after=("one",)), Stage("three", print)]
    told = (first, "w", {}, recipe)
    again = ([dataclasses.replace(first[0], version=2), *first[1:]], *told[1:])
    assert made_again(inputs(*told), inputs(*again)) == ["one", "two"]


def test_prompts_are_told_apart_by_all_that_is_used_of_them():
    recipe = study.load_recipe("tiny")
    chosen = study.choose_prompts(recipe)
    before = prompts_asked(chosen, [])
    other = chosen.direction.harmful.table.assign(twin="one")
    split = dataclasses.replace(chosen.direction, harmful=dataclasses.replace(chosen.direction.harmful, table=other))
    after = prompts_asked(dataclasses.replace(chosen, direction=split, utility=chosen.utility[:2]), [])
    assert made_again(before, after) == ["direction", "utility"]
    assert set(before) == {*PROMPTS, CASES}


class Reads:
    """An object whose attributes are noted as they are read, under a dotted name."""

    def __init__(self, of, noted, prefix=""):
        self.__dict__.update(_of=of, _noted=noted, _prefix=prefix)

    def __getattr__(self, name):
        found, full = getattr(self._of, name), f"{self._prefix}{name}"
        if name in ("measuring", "geometry", "causal", "durability", "training"):
            return Reads(found, self._noted, f"{full}.")
        if name == "refusal_judge":
            return found
        self._noted.add(full)
        return found


@pytest.mark.slow
def test_stages_read_nothing_that_they_do_not_name(tiny, tmp_path, monkeypatch):
    """Settings, prompts and tables that each stage reads, with a carrier, so that all of them have work."""
    recipe = study.load_recipe("tiny")
    for setting, value in (("kl_threshold", 1e9), ("induce_threshold", -1e9), ("prune_layer_fraction", 0.0)):
        recipe = changed(recipe, f"measuring.{setting}", value)
    monkeypatch.setattr(measurement, "kept_by_score", lambda split, *_: split)
    monkeypatch.setattr(discovery, "DEGENERATE", "no label")
    checkpoint = models.Checkpoint.open(tiny, arm="sft", step=3)
    run, chosen = study.Run.create(tmp_path / "run", recipe), study.choose_prompts(recipe)
    needed = protocol.inputs_of(run, checkpoint, prompts_asked(chosen, []))
    model = models.load_hooked(checkpoint)
    settings, prompts, read = set(), set(), set()

    class Noted(StudyPrompts):
        def __getattribute__(self, name):
            if name in PROMPTS:
                prompts.add(name)
            return super().__getattribute__(name)

    table, load = tables.read, Directions.load
    monkeypatch.setattr(tables, "read", lambda name, folder: read.add(name) or table(name, folder))
    monkeypatch.setattr(Directions, "load", lambda *given, **named: read.add("directions") or load(*given, **named))
    noted = dataclasses.replace(run, recipe=Reads(recipe, settings))
    givers = {name: stage.name for stage in AT_A_CHECKPOINT for name in stage.gives}
    for stage in AT_A_CHECKPOINT:
        at = Measurement(noted, checkpoint, Noted(**vars(chosen)), [], model if stage.opens else None)
        settings.clear(), prompts.clear(), read.clear()
        own = needed[stage.name]
        run.cached(stage.name, checkpoint.id, own, partial(stage.make, at, own))
        before = [BY_NAME[name] for name in closure(stage.name)]
        assert settings <= {name for each in before for name in each.settings}, stage.name
        assert prompts <= {name for each in before for name in each.asks}, stage.name
        assert {givers[name] for name in read} <= closure(stage.name) - {stage.name}, stage.name
        assert run.finished(stage.name, checkpoint.id).note == ""
    assert len(tables.read("doses", run.measurements(checkpoint))) > 0, "there is no carrier to look at"
    # Each of them began with nothing but what is on disk; so does what goes on with a measurement that was killed.
    whole = study.Run.create(tmp_path / "whole", recipe)
    protocol.measure(whole, checkpoint, chosen, [])
    for name in {*tables.PER_CHECKPOINT, "verdicts"} - {"timings"}:
        own, other = (tables.read(name, each.measurements(checkpoint)) for each in (run, whole))
        pd.testing.assert_frame_equal(own, other, obj=name)
