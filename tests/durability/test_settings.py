"""What a recipe may say of durability: every measure is off until it is asked for, and a wrong count is named."""

import dataclasses

import pytest

from mechrefusal.durability import DurabilitySettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.study.loader import recipe_from_dict

MEASURES = [field.name for field in dataclasses.fields(DurabilitySettings)]


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_is_off_until_a_recipe_asks_for_it(measure):
    assert getattr(DurabilitySettings(), measure).n_prompts == 0
    asked = recipe_from_dict({"durability": {measure: {"n_prompts": 3}}}).durability
    assert [getattr(asked, name).n_prompts for name in MEASURES] == [3 * (name == measure) for name in MEASURES]
    with pytest.raises(MechrefusalError, match=f"durability {measure}.n_prompts is -1: give 0 or more"):
        recipe_from_dict({"durability": {measure: {"n_prompts": -1}}})
    with pytest.raises(MechrefusalError, match="n_promts"):
        recipe_from_dict({"durability": {measure: {"n_promts": 1}}})
