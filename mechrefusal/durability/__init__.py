"""How deep refusal goes: what it takes to remove it, and how much of it is left on the way.

A file a measure. Each takes a model, prompts, a judge and its settings, which stand in `settings` and are off by
default, and gives a result that keeps every value by prompt. Weights are changed in memory alone, and put back.
"""

from typing import TYPE_CHECKING

from mechrefusal.durability.settings import DurabilitySettings
from mechrefusal.lazy import on_first_use

if TYPE_CHECKING:
    from mechrefusal.durability.removal import Removal, cost_of_removal

__all__ = ["DurabilitySettings", "Removal", "cost_of_removal"]

# A recipe knows the settings, and must not wait for the measures.
__getattr__ = on_first_use(__name__, {"Removal": "removal", "cost_of_removal": "removal"})
