"""LAT, latent adversarial training (Sheshadri et al., 2407.15549): refusing while activations are made to comply."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mechrefusal.attacks.settings import require_at_least, require_share
from mechrefusal.errors import MechrefusalError
from mechrefusal.training.arm import Arm

if TYPE_CHECKING:
    from mechrefusal.training.trainer_setup import TrainerSetup


@dataclass(frozen=True)
class LATSettings:
    """Targeted latent adversarial training. Defaults: the published ones.

    At each step `cases_per_step` behaviours are drawn. For each, perturbations of the prompt's tokens at the inputs of
    the layers at `depths` (0: the embedding) are found by `inner_steps` of projected gradient descent (Adam at
    `inner_learning_rate`), at most `epsilon` long at every token, that make the affirmative target likely and the
    refusal unlikely, half and half. Under them the arm trains toward the refusal (`toward_weight`) and away from the
    target (`away_weight`, −log(1 − p)); utility has `utility_weight`.

    `epsilon` is in units of the residual stream, which differ between models: published for Llama-2-7B and Llama-3-8B.
    """

    epsilon: float = 6.0
    depths: tuple[float, ...] = (0.0, 8 / 32, 16 / 32, 24 / 32, 30 / 32)
    inner_steps: int = 16
    inner_learning_rate: float = 0.05
    cases_per_step: int = 8
    toward_weight: float = 0.5
    away_weight: float = 0.5
    utility_weight: float = 1.5

    def __post_init__(self) -> None:
        require_at_least(
            self, epsilon=0, inner_steps=1, inner_learning_rate=0, cases_per_step=1, toward_weight=0, away_weight=0,
            utility_weight=0,
        )  # fmt: skip
        require_share(self, "depths")
        if not self.depths:
            raise MechrefusalError("lat depths are empty: give the depth of at least one layer, 0 for the embedding")


def _trainer(setup: "TrainerSetup"):
    from mechrefusal.training.class_means import layers_at
    from mechrefusal.training.data import away_row, toward_row
    from mechrefusal.training.latent_attack import LatentAttack
    from mechrefusal.training.losses import Term, away, cross_entropy

    own, refusal = setup.arm_settings, setup.settings.refusal
    attack = LatentAttack.of(
        layers_at(setup.model, own.depths),
        epsilon=own.epsilon,
        steps=own.inner_steps,
        learning_rate=own.inner_learning_rate,
        refusal=refusal,
    )
    terms = [
        Term("utility", cross_entropy, own.utility_weight),
        Term(
            "toward",
            cross_entropy,
            own.toward_weight,
            partial(toward_row, refusal=refusal),
            under=attack,
        ),
        Term("away", away, own.away_weight, away_row, under=attack),
    ]
    return setup.trainer(terms, cases_per_step=own.cases_per_step)


LAT = Arm("lat", _trainer, LATSettings, source="2407.15549, section 3")
