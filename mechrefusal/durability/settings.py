"""Which of the measures of durability are taken, and how far: one small dataclass a measure, each off by default."""

from dataclasses import dataclass, field
from math import isfinite

from mechrefusal.errors import MechrefusalError


def _at_least(least: int, measure: str, **counts: int) -> None:
    for name, value in counts.items():
        if value < least:
            raise MechrefusalError(f"durability {measure}.{name} is {value}: give {least} or more")


def _each_at_least_one(measure: str, **numbers: tuple[int, ...]) -> None:
    for name, values in numbers.items():
        if not values or min(values) < 1:
            raise MechrefusalError(f"durability {measure}.{name} are {list(values)}: give one at least, each 1 or more")


@dataclass(frozen=True)
class RemovalSettings:
    """What removal of refusal costs: a search over ablation weights by layer.

    Attributes:
        n_prompts: harmful, and as many harmless prompts, of the validation prompts that the search goes by and of the
            held-out ones that confirm it; 0 leaves the measure out.
        n_trials: weights that are tried, beside none and 1 everywhere.
        kl_levels: KL on harmless prompts, nats, at each of which the fewest refusals are confirmed.
        n_random: random directions with the same weights, as their control.
        max_new_tokens: longest answer that is judged.
        seed: of the search and of the random directions.
    """

    n_prompts: int = 0
    n_trials: int = 32
    kl_levels: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    n_random: int = 3
    max_new_tokens: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(0, "removal", n_prompts=self.n_prompts, n_random=self.n_random, seed=self.seed)
        _at_least(1, "removal", n_trials=self.n_trials, max_new_tokens=self.max_new_tokens)
        if not self.kl_levels or not all(isfinite(level) and level >= 0 for level in self.kl_levels):
            raise MechrefusalError(
                f"durability removal.kl_levels are {list(self.kl_levels)}: give one at least, finite and not below 0"
            )


@dataclass(frozen=True)
class HarmfulFineTuningSettings:
    """Refusals after a few harmful examples were trained on, in memory.

    Attributes:
        n_prompts: held-out harmful, and as many harmless prompts that are asked; 0 leaves the measure out.
        n_examples: numbers of examples, each of them a training of its own.
        n_draws: other examples of the same number.
        epochs: passes over the examples.
        learning_rate: of AdamW, constant.
        batch_size: examples of an optimiser step.
        max_new_tokens: longest answer that is judged.
        seed: of which examples are drawn, and of their order.
    """

    n_prompts: int = 0
    n_examples: tuple[int, ...] = (10, 25, 50, 100)
    n_draws: int = 1
    epochs: int = 5
    learning_rate: float = 5e-5
    batch_size: int = 10
    max_new_tokens: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        name = "harmful_fine_tuning"
        _at_least(0, name, n_prompts=self.n_prompts, seed=self.seed)
        _at_least(1, name, n_draws=self.n_draws, epochs=self.epochs, batch_size=self.batch_size)
        _at_least(1, name, max_new_tokens=self.max_new_tokens)
        _each_at_least_one(name, n_examples=self.n_examples)
        if not (isfinite(self.learning_rate) and self.learning_rate > 0):
            raise MechrefusalError(f"durability {name}.learning_rate is {self.learning_rate:g}: give more than 0")


@dataclass(frozen=True)
class UpdateSpectrumSettings:
    """How many directions of the weights training moved, and which of them carry refusal.

    Attributes:
        n_prompts: harmful, and as many harmless held-out prompts; 0 leaves the measure out.
        ranks: singular directions of every matrix's update that are kept, or left out.
        scales: of the whole update; the trained model, 1, is asked in any case.
        n_random: draws of as many random singular directions, as their control.
        max_new_tokens: longest answer that is judged.
        seed: of the draws.
    """

    n_prompts: int = 0
    ranks: tuple[int, ...] = (1, 4, 16)
    scales: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    n_random: int = 2
    max_new_tokens: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        measure = "update_spectrum"
        _at_least(0, measure, n_prompts=self.n_prompts, n_random=self.n_random, seed=self.seed)
        _at_least(1, measure, max_new_tokens=self.max_new_tokens)
        if any(rank < 1 for rank in self.ranks) or len(set(self.ranks)) < len(self.ranks):
            raise MechrefusalError(f"durability {measure}.ranks are {list(self.ranks)}: give each once, 1 or more")
        if not all(map(isfinite, self.scales)) or len(set(self.scales)) < len(self.scales):
            raise MechrefusalError(f"durability {measure}.scales are {list(self.scales)}: give each once, finite")


@dataclass(frozen=True)
class AnswerLengthSettings:
    """Refusal by length of the answer.

    Attributes:
        n_prompts: harmful, and as many harmless prompts; 0 leaves the measure out.
        lengths: tokens after which answers are cut; the longest is what is generated.
    """

    n_prompts: int = 0
    lengths: tuple[int, ...] = (8, 16, 32, 64, 128)

    def __post_init__(self) -> None:
        _at_least(0, "answer_length", n_prompts=self.n_prompts)
        _each_at_least_one("answer_length", lengths=self.lengths)


@dataclass(frozen=True)
class PrefilledSettings:
    """Refusal after answers whose first tokens are given.

    Attributes:
        n_prompts: harmful, and as many harmless prompts; 0 leaves the measure out.
        n_tokens: how many first tokens of an opening are given; none is always measured.
        max_new_tokens: tokens at most that are generated after them.
    """

    n_prompts: int = 0
    n_tokens: tuple[int, ...] = (1, 2, 3, 5, 10, 20)
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        _at_least(0, "prefilled", n_prompts=self.n_prompts)
        _at_least(1, "prefilled", max_new_tokens=self.max_new_tokens)
        _each_at_least_one("prefilled", n_tokens=self.n_tokens)


@dataclass(frozen=True)
class LockstepSettings:
    """Patching from another checkpoint at one layer, of the prompt and of every generated token.

    Attributes:
        n_prompts: harmful, and as many harmless evaluation prompts; 0 leaves the measure out.
        layer_step: patch at the output of every n-th layer, and of the last.
        n_rotations: random rotations of every change, on harmful prompts, as its control.
        max_new_tokens: longest answer that is judged.
    """

    n_prompts: int = 0
    layer_step: int = 1
    n_rotations: int = 2
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        _at_least(0, "lockstep", n_prompts=self.n_prompts, n_rotations=self.n_rotations)
        _at_least(1, "lockstep", layer_step=self.layer_step, max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True)
class DurabilitySettings:
    """How far the durability of refusal is measured. Every measure with 0 prompts is left out.

    Attributes:
        removal: the cost of removal.
        harmful_fine_tuning: refusals after harmful examples.
        update_spectrum: the spectrum of the update.
        answer_length: refusals by length of the answer.
        prefilled: refusals after prefilled openings.
        lockstep: patching while generating.
    """

    removal: RemovalSettings = field(default_factory=RemovalSettings)
    harmful_fine_tuning: HarmfulFineTuningSettings = field(default_factory=HarmfulFineTuningSettings)
    update_spectrum: UpdateSpectrumSettings = field(default_factory=UpdateSpectrumSettings)
    answer_length: AnswerLengthSettings = field(default_factory=AnswerLengthSettings)
    prefilled: PrefilledSettings = field(default_factory=PrefilledSettings)
    lockstep: LockstepSettings = field(default_factory=LockstepSettings)
