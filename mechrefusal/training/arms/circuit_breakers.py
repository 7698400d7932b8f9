"""Circuit breakers, representation rerouting (Zou et al., 2406.04313): harmful answers lose their representation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mechrefusal.attacks.settings import require_at_least, require_share
from mechrefusal.errors import MechrefusalError
from mechrefusal.training.arm import Arm

if TYPE_CHECKING:
    from mechrefusal.training.trainer_setup import TrainerSetup


@dataclass(frozen=True)
class CircuitBreakersSettings:
    """Representation rerouting (2406.04313, algorithm 1). Defaults: the published ones, but for what is said here.

    With h₀ the activations of the model that the arm starts from, at the inputs of the layers at `depths` of the model
    (10 and 20 of 32), over t of T steps:
    loss = `alpha`·(1 − t/2T)·ReLU(cos(h, h₀)) on `cases_per_step` behaviours with their affirmative targets
    + `alpha`·t/2T·‖h − h₀‖₂ on the training rows + `utility_weight`·cross-entropy on them.

    The training rows are utility and `harmful_per_step` static refusals, so that refusing is retained; the published
    set retains XSTest's answers, which is a leak. `tokens` are those of harmful rows that are rerouted: of the answer,
    so that the request keeps what it is refused by, or all.
    """

    alpha: float = 10.0
    depths: tuple[float, ...] = (10 / 32, 20 / 32)
    cases_per_step: int = 8
    tokens: Literal["answer", "all"] = "answer"
    utility_weight: float = 0.0

    def __post_init__(self) -> None:
        require_at_least(self, cases_per_step=1, alpha=0, utility_weight=0)
        require_share(self, "depths")
        if not self.depths:
            raise MechrefusalError("circuit_breakers depths are empty: give the depth of at least one layer")


def _trainer(setup: "TrainerSetup"):
    from mechrefusal.training.class_means import layers_at
    from mechrefusal.training.data import away_row
    from mechrefusal.training.losses import Reads, Term, cross_entropy
    from mechrefusal.training.rerouting import kept, rerouted

    own = setup.arm_settings
    layers = layers_at(setup.model, own.depths)
    reads, every = (Reads(layers, "resid_pre", tokens, frozen=True) for tokens in (own.tokens, "all"))
    terms = [
        Term("utility", cross_entropy, own.utility_weight),
        Term("rerouting", rerouted, own.alpha, away_row, reads, schedule=lambda share: 1 - share / 2),
        Term("retain", kept, own.alpha, None, every, schedule=lambda share: share / 2),
    ]
    return setup.trainer(terms, cases_per_step=own.cases_per_step, static_refusals=setup.settings.harmful_per_step)


CIRCUIT_BREAKERS = Arm("circuit_breakers", _trainer, CircuitBreakersSettings, source="2406.04313, algorithm 1")
