"""How deep refusal goes: what it takes to remove it, and how much of it is left on the way.

A file a measure. Each takes a model, prompts, a judge and its settings, which stand in `settings` and are off by
default, and gives a result that keeps every value by prompt. Weights are changed in memory alone, and put back.
"""

from typing import TYPE_CHECKING

from mechrefusal.durability.settings import (
    AnswerLengthSettings,
    DurabilitySettings,
    HarmfulFineTuningSettings,
    LockstepSettings,
    PrefilledSettings,
    RemovalSettings,
    UpdateSpectrumSettings,
)
from mechrefusal.lazy import on_first_use

if TYPE_CHECKING:
    from mechrefusal.durability.answer_length import AnswerLengths, answer_lengths
    from mechrefusal.durability.harmful_fine_tuning import HarmfulFineTuning, after_harmful_examples
    from mechrefusal.durability.judged_rates import Rates
    from mechrefusal.durability.lockstep import Lockstep, patch_in_lockstep
    from mechrefusal.durability.prefilled import after_openings
    from mechrefusal.durability.removal import Removal, cost_of_removal
    from mechrefusal.durability.update_spectrum import UpdateSpectrum, spectrum_of_update

__all__ = [
    "AnswerLengthSettings",
    "AnswerLengths",
    "DurabilitySettings",
    "HarmfulFineTuning",
    "HarmfulFineTuningSettings",
    "Lockstep",
    "LockstepSettings",
    "PrefilledSettings",
    "Rates",
    "Removal",
    "RemovalSettings",
    "UpdateSpectrum",
    "UpdateSpectrumSettings",
    "after_harmful_examples",
    "after_openings",
    "answer_lengths",
    "cost_of_removal",
    "patch_in_lockstep",
    "spectrum_of_update",
]

# A recipe knows the settings, and must not wait for the measures.
_HOMES = {
    "Removal": "removal",
    "cost_of_removal": "removal",
    "UpdateSpectrum": "update_spectrum",
    "spectrum_of_update": "update_spectrum",
    "Lockstep": "lockstep",
    "patch_in_lockstep": "lockstep",
    "AnswerLengths": "answer_length",
    "answer_lengths": "answer_length",
    "HarmfulFineTuning": "harmful_fine_tuning",
    "after_harmful_examples": "harmful_fine_tuning",
    "Rates": "judged_rates",
    "after_openings": "prefilled",
}
__getattr__ = on_first_use(__name__, _HOMES)
