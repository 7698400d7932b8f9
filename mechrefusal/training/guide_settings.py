"""Where an arm is to put refusal: what a guide is told."""

from dataclasses import dataclass
from typing import Literal

from mechrefusal.attacks.settings import require_at_least, require_share
from mechrefusal.errors import MechrefusalError

RESEMBLES = "resembles_harm"
"""Key of a utility row: whether its request resembles a harmful one."""


@dataclass(frozen=True)
class GuideSettings:
    """Guided reorganisation: terms and a ladder that any arm may have beside its own loss. Weight 0 leaves a term out.

    With r of a layer the difference of its means over `n_prompts` harmful and as many harmless prompts (mu) at the last
    token of the prompt, measured anew every `every` steps, h the activation at the input of a layer, h0 that of the
    model that the arm starts from, and r0 its direction:

    Layers are those from the second on: at the input of the first, the last token of every prompt is the same.

    freeze: the embedding and the first `freeze` of the model's layers (a share) are not trained (2610.00320).
    hold: `hold_weight` times the mean over layers of ((h - h0) . r0 / |r0|^2)^2 at the answer tokens of the training
        rows: the projection stays (ProCon, 2509.06795).
    shift: `shift_weight` times the mean of ((h - mu) . r / (|r| |r0|))^2 over the layers above `shift_from` and below
        `shift_to` of the depth, at the last token of harmful prompts: from there on refusal can be told, not before.
        It is 1 where they lie as far from harmless ones as before the first step, and falls with that distance.
    apart: `apart_weight` times the squared cosine of the harmful prompts' direction and that of harmless requests that
        resemble harmful ones against plain ones, the mean over layers.
    redundant: `redundant_weight` times the cross-entropy of the refusal while r of the layer at depth `redundant_at` is
        taken out everywhere: refusing must not hang on it.

    `direction`: `refusal`, or `random`, the control of equal cost: random directions as long as r in its place.
    """

    freeze: float = 0.0
    hold_weight: float = 0.0
    shift_weight: float = 0.0
    shift_from: float = 0.2
    shift_to: float = 0.8
    apart_weight: float = 0.0
    redundant_weight: float = 0.0
    redundant_at: float = 0.6
    cases_per_step: int = 4
    direction: Literal["refusal", "random"] = "refusal"
    every: int = 4
    n_prompts: int = 32

    def __post_init__(self) -> None:
        weights = dict.fromkeys(("hold_weight", "shift_weight", "apart_weight", "redundant_weight"), 0.0)
        require_at_least(self, **weights, cases_per_step=1, every=1, n_prompts=2)
        require_share(self, "freeze", "shift_from", "shift_to", "redundant_at")
        if self.shift_weight and self.shift_from >= self.shift_to:
            raise MechrefusalError(
                f"guide shift_from is {self.shift_from} and shift_to {self.shift_to}: give a smaller shift_from"
            )

    @property
    def has_terms(self) -> bool:
        """Whether the loss has a term more."""
        return bool(self.hold_weight or self.uses_cases)

    @property
    def uses_cases(self) -> bool:
        """Whether a term is over harmful requests."""
        return bool(self.shift_weight or self.apart_weight or self.redundant_weight)
