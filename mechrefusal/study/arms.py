"""An arm as a recipe plans it: its method, the method's settings, and what it changes of those of training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mechrefusal.errors import MechrefusalError
from mechrefusal.training import Arm, TrainingSettings
from mechrefusal.training.guide_settings import GuideSettings
from mechrefusal.training.registry import arm_named, settings_from

OWN = (
    "learning_rate", "lr_scheduler", "warmup_steps", "harmful_per_step", "max_grad_norm", "weight_decay", "lora",
    "tree", "bf16",
)  # fmt: skip
"""What an arm may have otherwise than the others; steps, anchors, utility rows, lengths and seeds make arms matched."""


@dataclass(frozen=True)
class PlannedArm:
    """An arm of a recipe.

    In YAML, below its name: `method` (by default its name), the method's own settings, under `training` those of
    training that it has otherwise than the others (`OWN`), and under `guide` where it is to put refusal
    (`GuideSettings`).

    Fields:
        settings: the method's own.
        training: how it trains, the warm-up of the study included.
    """

    name: str
    method: Arm
    settings: Any
    training: TrainingSettings
    guide: GuideSettings | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything that its weights depend on, as plain values."""
        guide = asdict(self.guide) if self.guide else None
        own = {"method": self.method.name, "settings": asdict(self.settings), "guide": guide}
        return {**own, "training": asdict(self.training)}


def planned_arm(name: str, values: Mapping[str, Any] | None, training: TrainingSettings) -> PlannedArm:
    """The arm `name` of a recipe, from what stands below its name.

    Raises:
        MechrefusalError: an unknown method or setting, a setting of training that arms share, or a value that cannot
            be.
    """
    if values is not None and not isinstance(values, Mapping):
        raise MechrefusalError(f"arm '{name}' is {values!r}: give a mapping of its settings, or {{}} for none")
    own = dict(values or {})
    method = arm_named(str(own.pop("method", name)))
    changes, guide = own.pop("training", None) or {}, own.pop("guide", None)
    guided = None if guide is None else settings_from(GuideSettings, guide, what=f"{name}, guide")
    if shared := [key for key in changes if key not in OWN]:
        raise MechrefusalError(
            f"arm '{name}' has training.{shared[0]} of its own: arms share it, and may differ in {', '.join(OWN)}"
        )
    whole = training if not changes else settings_from(TrainingSettings, {**asdict(training), **changes}, what=name)
    return PlannedArm(name, method, settings_from(method.settings, own, what=name), whole, guided)
