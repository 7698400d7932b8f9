"""Settings are checked when they are made, and jsonargparse can build them."""

import pytest

from mechrefusal import MechrefusalError
from mechrefusal.training import LoraSettings, R2D2Settings, SFTSettings, TrainingSettings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "training steps is 0"),
        ({"anchors": (0, 50, 501)}, r"anchors \[501\] lie outside of 0 to 500"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"lr_scheduler": "cosin"}, "lr_scheduler is 'cosin': give one of cosine"),
        ({"utility_per_step": 0}, "utility_per_step is 0"),
        ({"utility_per_step": 6, "gradient_accumulation": 4}, "utility_per_step is 6, which 4 micro-batches"),
        ({"refusal": " "}, "refusal is empty"),
        ({"warm_up": -1}, "training warm_up is -1: give at least 0"),
        ({"warm_up": 500}, "training warm_up is 500 of 500 steps: the arms would not train"),
        ({"warm_up": 501}, "training warm_up is 501 of 500 steps"),
        ({"warm_up": 60}, r"training anchors \[50\] lie inside the warm-up of 60 steps"),
        ({"warm_up": 499}, r"training anchors \[50, 100, 250\] lie inside the warm-up of 499 steps"),
        ({"warm_up_learning_rate": 0.0}, "training warm_up_learning_rate is 0.0: give a number above 0"),
        ({"warm_up_utility_per_step": 0}, "training warm_up_utility_per_step is 0: give at least 1"),
        ({"warm_up_harmful_per_step": -1}, "training warm_up_harmful_per_step is -1: give at least 0"),
        (
            {"warm_up_harmful_per_step": 3, "gradient_accumulation": 2},
            "training warm_up_harmful_per_step is 3, which 2 micro-batches cannot share evenly",
        ),
    ],
)
def test_bad_training_settings_are_named(changes, message):
    with pytest.raises(MechrefusalError, match=message):
        TrainingSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cases_per_step": 0}, "r2d2 cases_per_step is 0"),
        ({"reset_fraction": 1.5}, "reset_fraction is 1.5"),
        ({"away_floor": 1.0}, "away_floor is 1.0"),
        ({"away_weight": -1.0}, "away_weight is -1.0"),
    ],
)
def test_bad_r2d2_settings_are_named(changes, message):
    with pytest.raises(MechrefusalError, match=message):
        R2D2Settings(**changes)


@pytest.mark.parametrize("weight", [-0.5, float("nan")])
def test_a_bad_refusal_weight_is_named(weight):
    with pytest.raises(MechrefusalError, match=f"sft refusal_weight is {weight}: give at least 0"):
        SFTSettings(refusal_weight=weight)


def test_a_warm_up_splits_the_settings_in_two():
    whole = TrainingSettings(
        steps=100, anchors=(0, 20, 50, 100), warm_up=20, warm_up_learning_rate=1e-3, warm_up_harmful_per_step=4, seed=7,
    )  # fmt: skip
    assert whole.arm_anchors == (50, 100)
    warm, arm = whole.of_warm_up(), whole.of_arm()
    assert warm == TrainingSettings(
        steps=20, anchors=(20,), learning_rate=1e-3, harmful_per_step=4, seed=7,
        warm_up_learning_rate=1e-3, warm_up_harmful_per_step=4,
    )  # fmt: skip
    assert warm.utility_per_step == whole.utility_per_step, "null is as in the arms"
    assert (arm.steps, arm.anchors, arm.warm_up, arm.seed) == (80, (30, 80), 0, 7)
    assert (arm.learning_rate, arm.harmful_per_step) == (whole.learning_rate, whole.harmful_per_step)


def test_without_a_warm_up_arms_have_all_of_it():
    whole = TrainingSettings()
    assert whole.arm_anchors == (50, 100, 250, 500)
    assert whole.of_arm() == TrainingSettings(anchors=(50, 100, 250, 500))
    with pytest.raises(MechrefusalError, match="warm_up is 0: there is no warm-up to train"):
        whole.of_warm_up()


def test_a_command_line_can_build_them():
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainingSettings, "training")
    given = ["--training.steps=20", "--training.anchors=[0, 10]", "--training.lora.rank=4"]
    made = parser.instantiate_classes(parser.parse_args(given)).training
    assert made == TrainingSettings(steps=20, anchors=(0, 10), lora=LoraSettings(rank=4))
