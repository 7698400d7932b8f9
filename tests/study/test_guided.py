"""Which arms are the same but for their guide, and which of them is the control."""

import pytest

from mechrefusal.study import guided
from mechrefusal.study.arms import planned_arm
from mechrefusal.training import TrainingSettings

TRAINING = TrainingSettings()


def arms(**told):
    return [planned_arm(name, values, TRAINING) for name, values in told.items()]


def found(planned):
    return {(pair.first, pair.second): pair.relation for pair in guided.counterparts(planned)}


def test_an_arm_with_a_guide_has_the_same_without_as_its_twin():
    held = {"method": "sft", "guide": {"hold_weight": 2.0, "freeze": 0.5}}
    random = {"method": "sft", "guide": {"hold_weight": 2.0, "freeze": 0.5, "direction": "random"}}
    planned = arms(sft={}, held=held, random=random, r2d2={})
    assert found(planned) == {
        ("sft", "held"): "guided",
        ("sft", "random"): "control",
        ("random", "held"): "beside control",
    }
    told = {arm.name: guided.told(arm) for arm in planned}
    assert told == {
        "sft": "",
        "r2d2": "",
        "held": "freeze 0.5, hold_weight 2.0",
        "random": "freeze 0.5, hold_weight 2.0",
    }
    assert [guided.is_control(arm) for arm in planned] == [False, False, True, False]


@pytest.mark.parametrize(
    "other",
    [
        {"method": "sft", "guide": {"freeze": 0.5}, "training": {"learning_rate": 1e-5}},
        {"method": "sft", "guide": {"freeze": 0.5}, "refusal_weight": 0.5},
        {"method": "r2d2", "guide": {"freeze": 0.5}},
        {"method": "sft", "guide": {}},
        {"method": "sft", "guide": {"every": 8}},
    ],
    ids=["training", "settings", "method", "empty guide", "a guide that does nothing"],
)
def test_what_differs_in_more_or_in_nothing_is_no_twin(other):
    assert found(arms(sft={}, other=other)) == {}


def test_freezing_goes_by_no_direction_so_that_it_is_no_control():
    frozen = {"method": "sft", "guide": {"freeze": 0.5, "direction": "random"}}
    assert found(arms(sft={}, frozen=frozen)) == {("sft", "frozen"): "guided"}


def test_guides_that_differ_in_more_than_their_direction_are_not_compared():
    one = {"method": "sft", "guide": {"hold_weight": 2.0}}
    control = {"method": "sft", "guide": {"hold_weight": 1.0, "direction": "random"}}
    assert found(arms(one=one, control=control)) == {}
