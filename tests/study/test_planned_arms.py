"""Arms as recipes name them: methods, settings of their own, and what they may have otherwise than the others."""

import pytest

from mechrefusal import MechrefusalError, training
from mechrefusal.attacks import GCGSettings
from mechrefusal.cli.arm_options import merged
from mechrefusal.cli.options import Parser, add_recipe, recipe_of
from mechrefusal.study import Recipe
from mechrefusal.study.loader import recipe_from_dict
from mechrefusal.study.recipe import recipe_path
from mechrefusal.training import R2D2Settings, SFTSettings, TrainingSettings
from mechrefusal.training.arms.refat import ReFATSettings


def planned(content):
    return recipe_from_dict({"arms": content}).planned_arms


def test_a_method_may_be_there_twice_with_settings_and_names_of_its_own():
    gentle = {"method": "refat", "probability": 0.2, "training": {"learning_rate": 1e-5, "lora": {"rank": 4}}}
    one, two, three = planned({"refat": {}, "gentle": gentle, "sft": {}})
    assert [arm.method.name for arm in (one, two, three)] == ["refat", "refat", "sft"]
    assert (one.settings, two.settings) == (ReFATSettings(), ReFATSettings(probability=0.2))
    assert one.training == TrainingSettings()
    assert (two.training.learning_rate, two.training.lora) == (1e-5, training.LoraSettings(rank=4))
    assert (two.training.steps, two.training.anchors) == (500, (0, 50, 100, 250, 500)), "what arms share"


def test_names_alone_are_methods_as_published():
    recipe = recipe_from_dict({"arms": ["r2d2", "sft"]})
    assert recipe == recipe_from_dict({"arms": {"r2d2": {}, "sft": {}}})
    assert [arm.settings for arm in recipe.planned_arms] == [R2D2Settings(), SFTSettings()]


def of_line(*words: str):
    """The arms that the words of a command's line make."""
    parser = Parser(exit_on_error=False)
    add_recipe(parser, words)
    return recipe_of(parser.instantiate(parser.parse_args(merged(["--out=x", *words])))).planned_arms


@pytest.mark.parametrize("recipe", ["demo", "path"])
def test_the_command_line_changes_one_setting_of_one_arm(recipe):
    named = ["--recipe", str(recipe_path("demo"))] if recipe == "path" else [f"--recipe={recipe_path('demo')}"]
    sft, r2d2 = of_line(*named, "--arms.r2d2.cases_per_step", "5", "--arms.r2d2.gcg.width=16")
    assert sft.settings == SFTSettings(refusal_weight=0.25), "what the line does not name stays"
    gcg = GCGSettings(steps=1, width=16, top_k=64, suffix_length=6)
    assert r2d2.settings == R2D2Settings(cases_per_step=5, gcg=gcg)


def test_the_command_line_adds_an_arm_and_puts_others_in_their_place():
    sft, r2d2, gentle = of_line("--arms.gentle={method: refat, every: 2}")
    assert (sft.settings, r2d2.settings, gentle.settings) == (SFTSettings(), R2D2Settings(), ReFATSettings(every=2))
    [one] = of_line("--arms=[sft]", "--arms.sft.refusal_weight=0.5")
    assert one.settings == SFTSettings(refusal_weight=0.5)


def test_part_of_nested_settings_leaves_the_others_as_published():
    [arm] = planned({"r2d2": {"gcg": {"width": 16}}})
    assert arm.settings.gcg == GCGSettings(steps=5, width=16)


def test_an_option_without_a_value_is_named():
    with pytest.raises(MechrefusalError, match=r"--arms.sft.refusal_weight has no value"):
        merged(["--arms.sft.refusal_weight", "--out=x"])
    with pytest.raises(MechrefusalError, match=r"--arms.sft.x is '\{', which is no YAML"):
        merged(["--arms.sft.x={"])


def test_an_arm_of_ones_own_is_known_once_it_is_registered():
    arm = training.Arm("of-a-test", lambda setup: setup.trainer(), ReFATSettings)
    with pytest.raises(MechrefusalError, match="unknown arm 'of-a-test': expected one of sft, r2d2"):
        planned({"of-a-test": {}})
    training.register(arm)
    assert planned({"of-a-test": {"every": 2}})[0].settings == ReFATSettings(every=2)
    with pytest.raises(MechrefusalError, match="arm 'sft' is one of the package's"):
        training.register(training.Arm("sft", lambda setup: setup.trainer()))
    with pytest.raises(MechrefusalError, match="settings of arm 'other' are no dataclass"):
        training.register(training.Arm("other", lambda setup: setup.trainer(), dict))


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"sft": {"refusal_wieght": 1}}, "arm 'sft' has no setting 'refusal_wieght'; did you mean 'refusal_weight'"),
        ({"mine": {"method": "refat", "every": "often"}}, "arm 'mine': .*every"),
        ({"refat": {"every": 0}}, "refat every is 0: give at least 1"),
        ({"sft": {"training": {"seed": 3}}}, "arm 'sft' has training.seed of its own: arms share it"),
        ({"sft": {"training": {"learning_rate": -1}}}, "learning_rate is -1"),
        ({"mine": {}}, "unknown arm 'mine'"),
        ({"base": {"method": "sft"}}, "arm 'base'"),
        ({"a/b": {"method": "sft"}}, "arm 'a/b' cannot be the name of a file"),
    ],
)
def test_what_an_arm_cannot_be_is_named(arms, message):
    with pytest.raises(MechrefusalError, match=message):
        planned(arms)


def test_checkpoints_of_others_take_no_arms_name():
    with pytest.raises(MechrefusalError, match="checkpoints arm 'refat' is the name of another arm"):
        Recipe(arms={"refat": {}}, checkpoints={"refat": ("a",)})
