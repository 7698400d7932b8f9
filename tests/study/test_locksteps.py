"""Lockstep patching in a study: between where arms start and their ends, both ways; and what cannot be patched."""

import pytest

from mechrefusal import study, tables
from mechrefusal.durability.settings import LockstepSettings
from mechrefusal.evaluation.judges import RULES
from mechrefusal.prompts import PromptSet
from mechrefusal.study.locksteps import _Both, _by_layer, _depth


def test_a_run_patches_every_arm_and_its_start_into_each_other(finished_run):
    run = study.open(finished_run)
    prompts = study.choose_prompts(run.recipe)
    table, depths = (tables.read(name, run.measurements()) for name in ("lockstep", "lockstep_depth"))
    ends = ["arm_source", "step_source", "arm_target", "step_target"]
    pairs = {("base", 0, arm, 12) for arm in ("sft", "r2d2")} | {(arm, 12, "base", 0) for arm in ("sft", "r2d2")}
    assert set(table[ends].itertuples(index=False, name=None)) == pairs
    assert len(depths) == 2 * len(pairs)
    for _, rows in table.groupby([*ends, "set"]):
        assert list(rows["layer"]) == [0, 2, 3]
        assert set(rows["n"]) == {2}
        assert set(rows["n_draws"]) == {1 if rows["set"].iloc[0] == "harmful" else 0}
        assert (rows["control"].notna() == (rows["n_draws"] > 0)).all()
    assert set(table["reason"]) == {""}
    assert (depths["depth"].notna() | (depths["reason"] != "")).all()
    by_prompt = tables.read("lockstep_prompts", run.measurements())
    own = by_prompt[(by_prompt["answers"] == "patched") & (by_prompt["draw"] == -1)]
    rates = own.groupby([*ends, "set", "layer"])["refused"].mean()
    assert list(table.set_index([*ends, "set", "layer"])["refused"].reindex(rates.index)) == list(rates)
    assert set(by_prompt["prompt_id"]) <= {*prompts.harmful.ids[:2], *prompts.harmless.ids[:2]}
    targets = by_prompt[by_prompt["answers"] == "target"].groupby([*ends, "set"])["refused"].mean()
    assert list(table.groupby([*ends, "set"])["target_refused"].first().reindex(targets.index)) == list(targets)


@pytest.fixture
def points(finished_run):
    return study.open(finished_run).checkpoints()[:2]


def test_what_cannot_be_patched_is_a_row_that_says_why(points):
    both = _Both(*points, LockstepSettings(2), RULES, "other sizes (d_model: 64 and 32)")
    found = list(
        both.found({"harmful": PromptSet.from_texts("a", ["a"]), "harmless": PromptSet.from_texts("b", ["b"])})
    )
    assert [(owner["arm_source"], owner["set"]) for owner, _, _ in found] == [
        ("base", "harmful"), ("base", "harmless"), ("sft", "harmful"), ("sft", "harmless"),
    ]  # fmt: skip
    table = tables.frame("lockstep", [row for each in found for row in _by_layer(*each)])
    assert set(table["reason"]) == {"not compared: other sizes (d_model: 64 and 32)"}
    assert table["refused"].isna().all()
    deep = tables.frame("lockstep_depth", [_depth(*each) for each in found])
    assert deep["depth"].isna().all()
    assert set(deep["reason"]) == set(table["reason"])
