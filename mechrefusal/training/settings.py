"""What a training run is told: plain values, checked when they are made."""

import re
from dataclasses import dataclass, replace
from typing import Any

from mechrefusal.attacks.settings import require_at_least
from mechrefusal.errors import MechrefusalError

WARM_UP = "warm-up"
"""What tables and folders call the steps that all arms share."""
SCHEDULES = ("cosine", "linear", "constant")
SIZE = re.compile(r"[1-9]\d*(GB|MB|KB|GiB|MiB|KiB)")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (2106.09685) in place of all weights.

    Anchors are folders of adapters (PEFT) that name the model they belong to, and are merged into it where they are
    opened. With `merged` they are whole models, as they are of a warm-up, from which arms go on, and of an arm that
    starts from an adapter. `target_modules` are names of linear layers; empty: all of the transformer's blocks.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    merged: bool = False

    def __post_init__(self) -> None:
        require_at_least(self, rank=1)
        if not self.alpha > 0:
            raise MechrefusalError(f"lora alpha is {self.alpha}: give a number above 0")
        if not 0 <= self.dropout < 1:
            raise MechrefusalError(f"lora dropout is {self.dropout}: give a share of at least 0 and below 1")


@dataclass(frozen=True)
class TrainingSettings:
    """How every arm of a study trains. A step is an optimiser step, never a micro-batch.

    `utility_per_step` rows of harmless conversation go into each step of each arm, over all processes and
    micro-batches; the arm `sft` adds `harmful_per_step` static refusals. Each count must be a multiple of
    `gradient_accumulation`. Longer rows than `max_length` tokens lose the end of their answer. `anchors` are the steps
    at which weights are kept; 0 is the base model, which every arm shares and none writes.

    A training that was stopped goes on from its last checkpoint: there is one at every anchor, and every `save_every`
    steps (0: at anchors only). It holds the weights, the optimiser and the pool, and goes when the arm is complete.
    With `tree`, rows are run as a token tree (no padding, common beginnings once); with false, by TRL's own loss; null
    chooses the tree wherever the model takes part in one.
    At every anchor `n_probe` prompts a set are answered with `probe_tokens` tokens, to watch refusal; 0 for none.

    The first `warm_up` of the `steps` (0, as published: none) are shared: plain SFT with static refusals on all
    behaviours, whose end is an anchor of its own, from which every arm goes on with a new optimiser and its own
    schedule of `learning_rate`. `warm_up_learning_rate`, `warm_up_utility_per_step` and `warm_up_harmful_per_step` are
    those of the warm-up; null: as in the arms.

    Weights of an anchor that take more than `max_shard_size` are written to several safetensors files.
    """

    steps: int = 500
    n_behaviours: int = 0
    anchors: tuple[int, ...] = (0, 50, 100, 250, 500)
    learning_rate: float = 2e-5
    lr_scheduler: str = "cosine"
    warmup_steps: int = 0
    utility_per_step: int = 8
    harmful_per_step: int = 8
    gradient_accumulation: int = 1
    max_length: int = 2048
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0
    refusal: str = "Sorry, I can't do that."
    bf16: bool = False
    gradient_checkpointing: bool = False
    tree: bool | None = None
    save_every: int = 50
    n_probe: int = 8
    probe_tokens: int = 24
    warm_up: int = 0
    warm_up_learning_rate: float | None = None
    warm_up_utility_per_step: int | None = None
    warm_up_harmful_per_step: int | None = None
    lora: LoraSettings | None = None
    max_shard_size: str = "5GB"

    def __post_init__(self) -> None:
        require_at_least(
            self,
            steps=1,
            n_behaviours=0,
            warmup_steps=0,
            utility_per_step=1,
            harmful_per_step=0,
            gradient_accumulation=1,
            max_length=2,
            max_grad_norm=0,
            weight_decay=0,
            seed=0,
            save_every=0,
            n_probe=0,
            probe_tokens=1,
            warm_up=0,
        )
        for name in ("learning_rate", "warm_up_learning_rate"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise MechrefusalError(f"training {name} is {value}: give a number above 0")
        for name, least in (
            ("warm_up_utility_per_step", 1), ("warm_up_harmful_per_step", 0),
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None and not value >= least:
                raise MechrefusalError(f"training {name} is {value}: give at least {least}")
        self._check_warm_up()
        if not SIZE.fullmatch(self.max_shard_size):
            raise MechrefusalError(
                f"training max_shard_size is '{self.max_shard_size}': give a number with its unit, such as 5GB or 500MB"
            )
        if self.lr_scheduler not in SCHEDULES:
            raise MechrefusalError(
                f"training lr_scheduler is '{self.lr_scheduler}': give one of {', '.join(SCHEDULES)}"
            )
        if not self.refusal.strip():
            raise MechrefusalError(
                "training refusal is empty: give the sentence that the model is trained to refuse with"
            )
        outside = [anchor for anchor in self.anchors if not 0 <= anchor <= self.steps]
        if outside:
            raise MechrefusalError(
                f"training anchors {outside} lie outside of 0 to {self.steps} steps: give other anchors or more steps"
            )
        for name in (
            "utility_per_step", "harmful_per_step", "warm_up_utility_per_step", "warm_up_harmful_per_step",
        ):  # fmt: skip
            if (getattr(self, name) or 0) % self.gradient_accumulation:
                raise MechrefusalError(
                    f"training {name} is {getattr(self, name)}, which {self.gradient_accumulation} micro-batches "
                    "cannot share evenly: give a multiple of gradient_accumulation"
                )

    def _check_warm_up(self) -> None:
        if not self.warm_up:
            return
        if self.warm_up >= self.steps:
            raise MechrefusalError(
                f"training warm_up is {self.warm_up} of {self.steps} steps: the arms would not train; raise steps, "
                "which count the warm-up too"
            )
        if inside := [anchor for anchor in self.anchors if 0 < anchor < self.warm_up]:
            raise MechrefusalError(
                f"training anchors {inside} lie inside the warm-up of {self.warm_up} steps, which no arm has yet: give "
                f"anchors of {self.warm_up} and above (its end is one in any case), or a shorter warm_up"
            )

    @property
    def arm_anchors(self) -> tuple[int, ...]:
        """The anchors that each arm writes itself: those above the warm-up."""
        return tuple(anchor for anchor in self.anchors if anchor > self.warm_up)

    def of_warm_up(self) -> "TrainingSettings":
        """How the warm-up trains: plain SFT whose only anchor is its end, a whole model also with adapters.

        Raises:
            MechrefusalError: there is none.
        """
        if not self.warm_up:
            raise MechrefusalError("training warm_up is 0: there is no warm-up to train")
        of_warm_up: dict[str, Any] = {
            "learning_rate": self.warm_up_learning_rate,
            "utility_per_step": self.warm_up_utility_per_step,
            "harmful_per_step": self.warm_up_harmful_per_step,
            "lora": self.lora and replace(self.lora, merged=True),
        }
        changed = {name: value for name, value in of_warm_up.items() if value is not None}
        return replace(self, steps=self.warm_up, anchors=(self.warm_up,), warm_up=0, **changed)

    def of_arm(self) -> "TrainingSettings":
        """How an arm trains after the warm-up: its own steps, counted from 0; see `start` of `training.train`."""
        start = self.warm_up
        return replace(
            self,
            steps=self.steps - start,
            anchors=tuple(anchor - start for anchor in self.arm_anchors),
            warm_up=0,
        )
