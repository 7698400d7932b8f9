"""How deep refusal goes: what it takes to remove it, and how much of it is left on the way.

A file a measure. Each takes a model, prompts, a judge and its settings, which stand in `settings` and are off by
default, and gives a result that keeps every value by prompt. Weights are changed in memory alone, and put back.
"""

from typing import TYPE_CHECKING

from mechrefusal.durability.settings import DurabilitySettings, LockstepSettings
from mechrefusal.lazy import on_first_use

if TYPE_CHECKING:
    from mechrefusal.durability.lockstep import Lockstep, patch_in_lockstep

__all__ = ["DurabilitySettings", "Lockstep", "LockstepSettings", "patch_in_lockstep"]

# A recipe knows the settings, and must not wait for the measures.
__getattr__ = on_first_use(__name__, {"Lockstep": "lockstep", "patch_in_lockstep": "lockstep"})
