"""R2D2, robust refusal dynamic defence (HarmBench, 2402.04249): trained on cases that GCG attacks anew at each step."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mechrefusal.attacks import GCGSettings
from mechrefusal.attacks.settings import require_at_least, require_share
from mechrefusal.errors import MechrefusalError
from mechrefusal.training.arm import Arm

if TYPE_CHECKING:
    from mechrefusal.training.trainer_setup import TrainerSetup


@dataclass(frozen=True)
class R2D2Settings:
    """The adversarial part of R2D2 (HarmBench, 2402.04249). Defaults: the published ones.

    Every optimiser step draws `cases_per_step` cases of a pool, one for every behaviour, and updates
    each with `gcg`; every `reset_every` optimiser steps a random `reset_fraction` of the pool starts anew.
    """

    cases_per_step: int = 8
    gcg: GCGSettings = field(default_factory=lambda: GCGSettings(steps=5))
    away_weight: float = 0.5
    toward_weight: float = 0.5
    away_floor: float = -5.0
    reset_every: int = 50
    reset_fraction: float = 0.2

    def __post_init__(self) -> None:
        require_at_least(self, cases_per_step=1, away_weight=0, toward_weight=0, reset_every=0)
        require_share(self, "reset_fraction")
        if self.away_floor > 0:
            raise MechrefusalError(f"r2d2 away_floor is {self.away_floor}: give a log-probability, at most 0")


def _trainer(setup: "TrainerSetup"):
    from mechrefusal.training.pool import CasePool
    from mechrefusal.training.r2d2_trainer import R2D2Config, R2D2Trainer

    settings, inputs = setup.settings, setup.inputs
    own = R2D2Config.fields_of(setup.arm_settings)
    arguments = setup.arguments(R2D2Config, **own, refusal=settings.refusal, tree=settings.tree)
    pool = CasePool.of(
        setup.tokenizer,
        inputs.behaviours,
        setup.arm_settings.gcg,
        seed=settings.seed,
        source=f"{inputs.arm.name} from {inputs.base.weights}",
    )
    return R2D2Trainer(**arguments, pool=pool)


R2D2 = Arm("r2d2", _trainer, R2D2Settings, source="HarmBench, 2402.04249, section 5")
