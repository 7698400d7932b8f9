"""What a recipe may say of durability: every measure is off until it is asked for, and a wrong count is named."""

import dataclasses

import pytest

from mechrefusal.durability import DurabilitySettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.study.loader import recipe_from_dict

MEASURES = [field.name for field in dataclasses.fields(DurabilitySettings)]


def test_every_measure_is_off_until_a_recipe_asks_for_it():
    assert [getattr(DurabilitySettings(), name).n_prompts for name in MEASURES] == [0] * len(MEASURES)
    told = {name: {"n_prompts": place} for place, name in enumerate(MEASURES)}
    asked = recipe_from_dict({"durability": told}).durability
    assert [getattr(asked, name).n_prompts for name in MEASURES] == list(range(len(MEASURES)))


def test_what_a_recipe_cannot_say_is_named():
    with pytest.raises(MechrefusalError, match=r"did you mean 'durability\.removal\.n_prompts'"):
        recipe_from_dict({"durability": {"removal": {"n_promts": 1}}})
    for name in MEASURES:
        with pytest.raises(MechrefusalError, match=f"durability {name}.n_prompts is -1: give 0 or more"):
            type(getattr(DurabilitySettings(), name))(n_prompts=-1)
