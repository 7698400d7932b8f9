import dataclasses

import pytest
import yaml

from mechrefusal.errors import MechrefusalError
from mechrefusal.study.loader import load_recipe, recipe_from_dict
from mechrefusal.study.recipe import Recipe, differences, packaged, recipe_path
from mechrefusal.study.settings import MeasuringSettings, Source


@pytest.mark.parametrize("name", packaged())
def test_packaged_recipes_load(name):
    assert name in packaged()
    recipe = load_recipe(name)
    assert recipe.name == name
    assert 0 in recipe.training.anchors
    assert len(recipe.training.anchors) >= 2


def test_defaults_are_the_papers():
    recipe = Recipe()
    assert recipe.training.anchors == (0, 50, 100, 250, 500)
    gcg = recipe.planned_arms[1].settings.gcg
    assert (gcg.steps, gcg.width, gcg.top_k) == (5, 512, 256)
    assert (recipe.measuring.kl_threshold, recipe.measuring.induce_threshold) == (0.1, 0.0)


def test_a_recipe_survives_yaml():
    recipe = load_recipe("tiny")
    again = recipe_from_dict(yaml.safe_load(yaml.safe_dump(recipe.as_dict())))
    assert again == recipe


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"trainnig": {}}, "trainnig"),
        ({"training": {"stepz": 4}}, "training.stepz"),
        ({"training": {"steps": "many"}}, "training.steps"),
        ({"training": {"steps": 4, "anchors": [0, 9]}}, r"anchors \[9\]"),
        ({"arms": ["sft", "dpoo"]}, "unknown arm 'dpoo'"),
        ({"arms": {"sft": {"refusal_wieght": 1}}}, "did you mean 'refusal_weight'"),
        ({"arms": {"sft": {"refusal_weight": "much"}}}, "arm 'sft': .*refusal_weight"),
        ({"arms": {"sft": {"training": {"steps": 3}}}}, "arm 'sft' has training.steps of its own: arms share it"),
        ({"arms": {"other": {"method": "sfft"}}}, "unknown arm 'sfft'"),
        ({"arms": {"sft": [1]}}, "arms"),
        ({"arms": ["sft", "sft"]}, "name each arm once"),
        ({"arms": [], "model": ""}, "neither a model nor checkpoints"),
        ({"checkpoints": {"mine": "abc"}}, "checkpoints"),
        ({"checkpoints": ["abc"]}, "checkpoints"),
        ({"prompts": {"direction": {"harmful": "a.txt"}}}, "or both of the others"),
        ({"measuring": {"n_pairs": 0}}, "n_pairs is 0"),
        ({"measuring": {"n_direction": -3}}, "n_direction is -3"),
        ({"prompts": {"harmful": {"reader": "advbench"}}}, "need a path"),
        ({"training": {"anchors": [0]}}, "no step above 0"),
        ({"causal": {"screening": "ig"}}, r"causal\.screening"),
        (["a", "list"], "holds no recipe"),
    ],
)
def test_bad_recipes_are_named_on_one_line(content, said):
    with pytest.raises(MechrefusalError, match=said) as caught:
        recipe_from_dict(content, where="mine.yaml")
    assert "\n" not in str(caught.value)


def test_screening_is_chosen_by_name():
    assert Recipe().causal.screening == "eap"
    assert recipe_from_dict({"causal": {"screening": "eap-ig"}}).causal.screening == "eap-ig"


def test_unknown_recipe_and_unreadable_yaml(tmp_path):
    with pytest.raises(
        MechrefusalError,
        match="unknown recipe 'nope': give a YAML file or one of demo, full, gemma-3-4b",
    ):
        recipe_path("nope")
    broken = tmp_path / "broken.yaml"
    broken.write_text("training: [1, 2")
    with pytest.raises(MechrefusalError, match="not readable YAML"):
        load_recipe(broken)


def test_differences_name_nested_keys():
    a = Recipe().as_dict()
    b = dataclasses.replace(Recipe(), measuring=MeasuringSettings(n_pairs=3), model="x/y").as_dict()
    assert differences(a, b) == ["measuring.n_pairs", "model"]
    assert differences(a, a) == []


def test_a_builtin_source_needs_no_path():
    assert Source() == Source("builtin", "", "")


def test_what_is_alike_but_not_the_same_is_another_recipe():
    for content, seed in (({"training": {"seed": 1}}, 1), ({"training": {"seed": 2}}, 2)):
        assert recipe_from_dict(content).training.seed == seed
    with pytest.raises(MechrefusalError, match="seed"):
        recipe_from_dict({"training": {"seed": 1.5}})
    with pytest.raises(MechrefusalError, match="unknown key '1'"):
        recipe_from_dict({1: {}})
