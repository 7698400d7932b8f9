"""Trains an arm on the tiny model and kills its own process at a named point. Run by test_killed_training.py."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from mechrefusal import models, prompts, training
from mechrefusal.attacks import GCGSettings
from mechrefusal.training import LoraSettings, R2D2Settings, R2D2Trainer, RLHFSettings, TrainingSettings
from mechrefusal.training.arms.circuit_breakers import CircuitBreakersSettings
from mechrefusal.training.arms.lat import LATSettings
from mechrefusal.training.arms.refat import ReFATSettings
from mechrefusal.training.guide_settings import RESEMBLES
from mechrefusal.training.preference_trainers import DPOArmTrainer, KTOArmTrainer
from mechrefusal.training.rlhf_trainer import RLHFTrainer
from mechrefusal.training.trainer import ArmTrainer

SETTINGS = TrainingSettings(
    steps=6,
    anchors=(0, 2, 5),
    learning_rate=2e-3,
    utility_per_step=4,
    harmful_per_step=2,
    gradient_accumulation=2,
    max_length=256,
    save_every=3,
)
OF_ARM = {
    "r2d2": R2D2Settings(
        cases_per_step=3,
        gcg=GCGSettings(steps=1, width=8, top_k=16, suffix_length=6),
        reset_every=2,
        reset_fraction=0.5,
    ),
    # Measured before steps 0, 2 and 4: what goes on from the checkpoint of step 3 must know what was measured.
    "refat": ReFATSettings(cases_per_step=2, every=2, n_prompts=3),
    # Without utility the first gradient is zero but for rounding, of which Adam makes whole steps.
    "circuit_breakers": CircuitBreakersSettings(cases_per_step=2, utility_weight=1.0),
    "lat": LATSettings(cases_per_step=2, inner_steps=2),
    "rlhf": RLHFSettings(n_generations=2, completion_tokens=5, reward="killed:by_tokens"),
}
"""The arms' own settings."""
TRAINERS = {"dpo": DPOArmTrainer, "kto": KTOArmTrainer, "rlhf": RLHFTrainer}
POINTS = ("refresh", "backward", "optimizer", "writing a checkpoint", "after a checkpoint")


def by_tokens(completions, completion_ids, **given) -> list[float]:
    """A reward that tells the answers of a random model apart."""
    return [sum(tokens) % 97 / 97 for tokens in completion_ids]


def inputs(model: Path) -> dict:
    """What an arm is trained on."""
    built = prompts.builtin()
    return {
        "base": models.Checkpoint.open(model),
        "utility": [{"prompt": text, "answer": "Of course, here it is."} for text in built.utility_train.texts[:6]],
        "behaviours": built.pool.harmful.with_targets()[:5],
    }


def half_resembling(model: Path) -> dict:
    """`inputs`, where half of the utility rows resemble harm."""
    own = inputs(model)
    marked = [{**row, RESEMBLES: True} if number % 2 else row for number, row in enumerate(own["utility"])]
    return own | {"utility": marked}


def train(arm: str, model: Path, **given):
    """Train an arm with its own settings."""
    return training.train(arm, **inputs(model), arm_settings=OF_ARM.get(arm), **given)


def settings(*, lora: bool) -> TrainingSettings:
    """The settings, with adapters or without."""
    return replace(SETTINGS, lora=LoraSettings(rank=2, dropout=0.1) if lora else None)


def die() -> None:
    """As a power cut would: no handler, no cleaning up."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(point: str, step: int, arm: str) -> None:
    """Make the process die at `point` of optimiser step `step` (checkpoints: at the first one from there on)."""
    trainer = TRAINERS.get(arm, ArmTrainer)

    def around(owner, name: str, *, after: bool) -> None:
        original = getattr(owner, name)

        def deadly(self, *args, **kwargs):
            due = self.state.global_step >= step - (not after)
            if due and not after:
                die()
            result = original(self, *args, **kwargs)
            if due and after:
                die()
            return result

        setattr(owner, name, deadly)

    if point == "refresh":
        around(R2D2Trainer, "refresh", after=False)
    elif point == "backward":
        around(trainer, "training_step", after=False)
    elif point == "optimizer":
        around(trainer, "_get_grad_norm", after=False)
    elif point == "writing a checkpoint":
        around(trainer, "_save_rng_state", after=True)
    else:
        around(trainer, "_save_checkpoint", after=True)


def run(model: Path, out: Path, arm: str, point: str, step: int, *, lora: bool, log: Path) -> None:
    """In a process of its own: train, die at `point` of `step`, and leave in `log` what was said until then."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    kill_at(point, step, arm)
    train(arm, model, out=out, settings=settings(lora=lora))
    sys.exit("it was to be killed")
