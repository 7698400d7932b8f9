"""RLHF by GRPO, group relative policy optimisation (2402.03300): sampled answers, paid by a rule or a reward model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechrefusal.attacks.settings import require_at_least
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PromptSet
from mechrefusal.training.arm import Arm
from mechrefusal.training.needs import require_harmful
from mechrefusal.training.settings import TrainingSettings

if TYPE_CHECKING:
    from mechrefusal.training.rlhf_trainer import RLHFTrainer
    from mechrefusal.training.trainer_setup import TrainerSetup

LOSSES = ("grpo", "dapo", "dr_grpo", "bnpo")


@dataclass(frozen=True)
class RLHFSettings:
    """GRPO (2402.03300, equations 3 and 4). The published learning rate, 1e-6, is the recipe's.

    Each step samples `n_generations` answers to each of its prompts at `temperature`, up to `completion_tokens` long;
    an answer's advantage is its reward minus the mean of its group, over their standard deviation. `loss` "grpo" is the
    published mean (over the tokens of each answer, then over answers); the others are TRL's. `beta` weighs the KL from
    the model that the arm starts from; TRL's 0 is a deviation from the paper's 0.04, and 8 generations from its 64.

    The prompts of a step are the `utility_per_step` utility rows and `harmful_per_step` behaviours that every arm sees;
    `utility_prompts` and `harmful_prompts`: only the first so many of them (null: all).

    `reward` null pays 1 for refusing a behaviour and for answering a utility prompt, `degenerate_reward` for an answer
    that says nothing (no word, or one over and over), else 0. Its rule of what refuses is a short list of openings and
    deliberately another than the judge's that evaluates. In its place: a function of TRL's form (`training.rewards`),
    the name of one as "module:function", or a reward model, by folder or hub name. An unfinished training goes on with
    the function of the same name; whether that has changed is seen only where the function itself is given.
    """

    n_generations: int = 8
    completion_tokens: int = 512
    temperature: float = 1.0
    beta: float = 0.0
    epsilon: float = 0.2
    loss: str = "grpo"
    utility_prompts: int | None = None
    harmful_prompts: int | None = None
    degenerate_reward: float = -1.0
    reward: str | Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        require_at_least(self, n_generations=2, completion_tokens=1, beta=0)
        for name in ("temperature", "epsilon"):
            if not getattr(self, name) > 0:
                raise MechrefusalError(f"rlhf {name} is {getattr(self, name)}: give a number above 0")
        if self.loss not in LOSSES:
            raise MechrefusalError(f"rlhf loss is '{self.loss}': give one of {', '.join(LOSSES)}")
        for name in ("utility_prompts", "harmful_prompts"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise MechrefusalError(f"rlhf {name} is {value}: give at least 1, or null for all of the step")
        if not math.isfinite(self.degenerate_reward):
            raise MechrefusalError(f"rlhf degenerate_reward is {self.degenerate_reward}: give a finite number")
        if isinstance(self.reward, str) and not self.reward.strip():
            raise MechrefusalError("rlhf reward is empty: give module:function, a reward model, or null")


def _check(own: RLHFSettings, settings: TrainingSettings, behaviours: PromptSet) -> None:
    require_harmful("rlhf", settings)
    for name, rows in (("utility", settings.utility_per_step), ("harmful", settings.harmful_per_step)):
        n = getattr(own, f"{name}_prompts")
        if n is not None and n > rows:
            raise MechrefusalError(
                f"rlhf {name}_prompts is {n}, of {rows} rows a step: give at most training {name}_per_step"
            )
        if n is not None and n % settings.gradient_accumulation:
            raise MechrefusalError(
                f"rlhf {name}_prompts is {n}, which {settings.gradient_accumulation} micro-batches cannot share "
                "evenly: give a multiple of gradient_accumulation"
            )


def _trainer(setup: "TrainerSetup") -> "RLHFTrainer":
    from mechrefusal.training.rlhf_trainer import rlhf_trainer

    return rlhf_trainer(setup)


RLHF = Arm(
    "rlhf",
    _trainer,
    RLHFSettings,
    source="2402.03300; TRL GRPOTrainer",
    logs=(
        "reward", "reward_std", "frac_reward_zero_std", "refused/harmful", "refused/utility", "degenerate",
        "completions/mean_length", "completions/clipped_ratio", "entropy", "kl",
    ),
    check=_check,
)  # fmt: skip
