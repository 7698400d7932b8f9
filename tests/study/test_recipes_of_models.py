"""Recipes for models that no test can load, on tiny random models of the same architecture and chat template."""

import json
from pathlib import Path

import pytest
import transformers

from mechrefusal import models, study, tables
from mechrefusal.models.small import small_config, small_model
from mechrefusal.study.loader import load_recipe, recipe_from_dict
from mechrefusal.study.outside import start
from mechrefusal.study.recipe import leaves
from tests.chat_templates import GEMMA, LLAMA3, QWEN3

FORMS = {
    "paper": ("MistralConfig", None, ()),
    "llama-3.1-8b": ("LlamaConfig", LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "qwen3-8b": ("Qwen3Config", QWEN3, ("<think>", "</think>")),
    "gemma-3-4b": ("Gemma3Config", GEMMA, ("<start_of_turn>", "<end_of_turn>")),
}
"""Config of the model's class, chat template, and the marks of it that are tokens of their own."""
SMALL = {
    "training": {"steps": 2, "anchors": [0, 2], "utility_per_step": 8, "harmful_per_step": 4,
                 "gradient_accumulation": 2, "max_length": 160, "n_behaviours": 4, "n_probe": 0, "save_every": 0},
    "attack": {"n_cases": 1, "gcg": {"steps": 1, "width": 8, "top_k": 8, "suffix_length": 4},
               "templates": {"names": ["prefix_injection"]}},
    "measuring": {"n_evaluation": 4, "n_overrefusal": 2, "n_contrast": 0, "n_utility": 2, "n_direction": 6,
                  "n_validation": 4, "n_intervened": 2, "n_attributed": 2, "n_pairs": 2, "max_new_tokens": 4,
                  "fewest_kept": 1, "n_positions": 1},
    "geometry": {"n_bootstrap": 20, "largest_subspace": 0, "n_coupled": 0, "n_dosed": 0, "n_transferred": 2},
    "causal": {"sites": False, "n_finalists": 0, "n_knocked_out": 0, "n_nodes": 0, "n_crossed": 0},
    "evaluation": {"suites": ["builtin"], "judges": ["refusal"], "attack": [], "n": 2, "max_new_tokens": 4},
    "max_thought_tokens": 4,
}  # fmt: skip
"""What is made smaller; all else is as the recipe has it."""


def small(name: str, model: Path) -> study.Recipe:
    """The recipe at the size of a tiny model, with a chat dataset here in place of one on the hub."""
    rows = [{"messages": [{"role": "user", "content": f"What is {n} plus one?"},
                          {"role": "assistant", "content": f"It is {n + 1}."}]} for n in range(8)]  # fmt: skip
    conversations = model.with_suffix(".jsonl")
    conversations.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    told = load_recipe(name).as_dict()
    told |= {"model": str(model)}
    told["prompts"] |= {"conversations": str(conversations), "n_conversations": 8, "behaviours": {}}
    for section, values in SMALL.items():
        told[section] = told[section] | values if isinstance(values, dict) else values
    told["arms"]["r2d2"] = {"cases_per_step": 4, "gcg": SMALL["attack"]["gcg"]}
    if told["training"]["lora"]:
        told["training"]["lora"] = {"rank": 2, "alpha": 4}
    return recipe_from_dict(told)


def made(folder: Path, name: str) -> Path:
    """A tiny random model of the architecture and the chat template that the recipe's model has."""
    config, template, marks = FORMS[name]
    words = models.tiny.tokenizer()
    words.add_tokens(list(marks), special_tokens=True)
    words.chat_template = template
    small_model(small_config(getattr(transformers, config)(), len(words))).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_the_recipe_runs_from_training_to_its_tables(name: str, tmp_path: Path) -> None:
    run = start(small(name, made(tmp_path / "model", name)), tmp_path / "run")
    study.train(run)
    study.measure(run)
    study.evaluate_run(run)
    ids = [checkpoint.id for checkpoint in run.checkpoints()]
    assert ids == ["base-step-00000", "sft-step-00002", "r2d2-step-00002"]
    for checkpoint in run.checkpoints():
        timings = tables.read("timings", run.measurements(checkpoint))
        reasons = timings.loc[timings["note"] != "", ["stage", "note"]].to_numpy().tolist()
        assert all("refuse" in note or "admissible" in note or "candidate" in note for _, note in reasons), reasons
    assert set(tables.read("rates", run.measurements())["step"]) == {0, 2}


@pytest.mark.parametrize("name", ["paper", "llama-3.1-8b", "qwen3-4b", "qwen3-8b", "gemma-3-4b"])
def test_it_is_the_published_setting(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.training.anchors == (0, 50, 100, 250, 500)
    assert recipe.training.steps == 500
    by_arm = {arm.name: arm.settings for arm in recipe.planned_arms}
    gcg = by_arm["r2d2"].gcg
    assert (gcg.steps, gcg.width, gcg.top_k, gcg.suffix_length) == (5, 512, 256, 20)
    assert recipe.training.harmful_per_step == by_arm["r2d2"].cases_per_step, "arms see as many harmful rows"
    assert leaves(recipe.as_dict())["chat_template"] == ("zephyr" if name == "paper" else "")
