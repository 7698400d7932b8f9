"""ReFAT, refusal feature adversarial training (Yu et al., 2409.20089): refusing without the refusal direction."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mechrefusal.attacks.settings import require_at_least, require_share
from mechrefusal.training.arm import Arm

if TYPE_CHECKING:
    from mechrefusal.training.trainer_setup import TrainerSetup


@dataclass(frozen=True)
class ReFATSettings:
    """The adversarial part of ReFAT. Defaults: the published ones.

    loss = utility + `weight` · cross-entropy of the refusal on `cases_per_step` harmful requests, each of which is run
    with probability `probability` with x − r̂r̂ᵀx at the input of every layer of the last `depth` of the model. r of a
    layer is the difference of its means over `n_prompts` behaviours and as many utility prompts at the last token of
    the prompt, measured anew on the weights every `every` steps.
    """

    cases_per_step: int = 8
    weight: float = 1.0
    probability: float = 0.5
    depth: float = 0.75
    every: int = 4
    n_prompts: int = 32

    def __post_init__(self) -> None:
        require_at_least(self, cases_per_step=1, weight=0, every=1, n_prompts=2)
        require_share(self, "probability", "depth")


def _trainer(setup: "TrainerSetup"):
    from mechrefusal.causal import Clamp
    from mechrefusal.training.class_means import ClassMeans, last_layers
    from mechrefusal.training.data import toward_row
    from mechrefusal.training.losses import Term, cross_entropy
    from mechrefusal.training.measured import Measured
    from mechrefusal.training.under import Under

    own = setup.arm_settings
    layers = last_layers(setup.model, own.depth)
    means = ClassMeans.of_sides(setup, layers, own.n_prompts)

    def ablated(state: Any) -> list[Clamp]:
        return [Clamp(state["directions"][i], 0.0, layers=(layer,)) for i, layer in enumerate(layers)]

    measured = Measured("refusal feature", means.directions, own.every)
    under = Under("refusal feature", ablated, measured, own.probability)
    term = Term("refuse", cross_entropy, own.weight, partial(toward_row, refusal=setup.settings.refusal), under=under)
    return setup.trainer([term], cases_per_step=own.cases_per_step)


REFAT = Arm("refat", _trainer, ReFATSettings, source="2409.20089, section 4")
