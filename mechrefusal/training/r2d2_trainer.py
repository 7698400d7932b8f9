"""R2D2, robust refusal dynamic defence (HarmBench, arXiv 2402.04249, section 5), as a TRL trainer and its config."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from accelerate.utils import gather_object
from transformers import TrainingArguments
from trl import SFTConfig

from mechrefusal.attacks import AttackCase, GCGSettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file
from mechrefusal.training.arms.r2d2 import R2D2Settings
from mechrefusal.training.data import away_row, toward_row
from mechrefusal.training.losses import Term, TokenLoss, away_term, cross_entropy
from mechrefusal.training.pool import CasePool
from mechrefusal.training.sharding import whole_weights
from mechrefusal.training.trainer import ArmTrainer

POOL, REFRESHES = "pool.parquet", "refreshes.parquet"
"""Files of the pool and of the record of its refreshes, in a training checkpoint and beside an arm's anchors."""
OF_R2D2 = ("away_weight", "toward_weight", "away_floor", "cases_per_step", "reset_every", "reset_fraction")
"""What `R2D2Settings` and `R2D2Config` call alike."""


@dataclass
class R2D2Config(SFTConfig):
    """SFTConfig with the terms of R2D2; see `R2D2Settings` for what each means.

    loss = TRL's loss on the training rows + `away_weight` · away + `toward_weight` · toward.
    """

    away_weight: float = field(default=0.5, metadata={"help": "Weight of the away-from-target term."})
    toward_weight: float = field(default=0.5, metadata={"help": "Weight of the toward-refusal term."})
    away_floor: float = field(default=-5.0, metadata={"help": "Log-probability below which away terms are zero."})
    refusal: str = field(default="Sorry, I can't do that.", metadata={"help": "The refusal that is trained toward."})
    cases_per_step: int = field(default=8, metadata={"help": "Cases attacked and trained on in an optimiser step."})
    reset_every: int = field(default=50, metadata={"help": "Optimiser steps between resets of the pool; 0: never."})
    reset_fraction: float = field(default=0.2, metadata={"help": "Share of the pool that a reset starts anew."})
    tree: bool | None = field(
        default=None,
        metadata={
            "help": "Run the rows of a step as a token tree. None: where there are attacked cases and the model allows "
            "it; without cases, TRL's own loss to the last bit."
        },
    )
    gcg_steps: int = field(default=5, metadata={"help": "GCG steps on each drawn case."})
    gcg_width: int = field(default=512, metadata={"help": "GCG candidates a step."})
    gcg_top_k: int = field(default=256, metadata={"help": "GCG tokens considered a position."})
    gcg_suffix_length: int = field(default=20, metadata={"help": "Tokens of a suffix."})
    gcg_initial: str = field(default=GCGSettings.initial, metadata={"help": "Text that suffixes start from."})
    gcg_batch_size: int | None = field(default=None, metadata={"help": "GCG candidates run at once."})
    gcg_screen: bool = field(default=False, metadata={"help": "Score GCG candidates in bfloat16 first."})
    gcg_rounds: int = field(default=1, metadata={"help": "Rounds of a GCG step: it replaces up to one token a round."})

    @property
    def gcg(self) -> GCGSettings:
        """The GCG fields as settings."""
        return GCGSettings(**{each.name: getattr(self, f"gcg_{each.name}") for each in fields(GCGSettings)})

    def __post_init__(self) -> None:
        """Check the values as `R2D2Settings` does.

        Raises:
            MechrefusalError: one that cannot be.
        """
        super().__post_init__()
        R2D2Settings(**{name: getattr(self, name) for name in OF_R2D2}, gcg=self.gcg)

    @staticmethod
    def fields_of(settings: R2D2Settings) -> dict[str, Any]:
        """Settings as arguments of this config."""
        of_gcg = {f"gcg_{name}": value for name, value in asdict(settings.gcg).items()}
        return {name: getattr(settings, name) for name in OF_R2D2} | of_gcg


class R2D2Trainer(ArmTrainer):
    """SFTTrainer that also trains away from attacked targets and toward refusals, on cases attacked as it goes.

    At the start of each optimiser step the trainer draws cases of `pool` and updates each with GCG against the weights
    of that moment; the processes share them out and exchange the results. Sharded weights are gathered for it. With
    both weights 0, and no other term over cases, it is SFTTrainer: nothing is drawn, and the losses are the same to the
    last bit.

    Its checkpoints hold the pool, so that a training that goes on from one ends as one that never stopped.

    Args:
        pool: the cases to draw from; changed in place as training goes on.
        losses: loss terms by name ("utility", "away", "toward" or new ones): a function replaces the loss of a term, a
            `Term` replaces or adds one.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "sft", "r2d2"]
    _name = "R2D2"

    args: R2D2Config

    def __init__(
        self,
        *args: Any,
        pool: CasePool,
        losses: Mapping[str, TokenLoss | Term] | None = None,
        **kwargs: Any,
    ) -> None:
        config = kwargs.get("args") or next((value for value in args if isinstance(value, TrainingArguments)), None)
        if not isinstance(config, R2D2Config):
            raise MechrefusalError(f"R2D2Trainer was given args of {type(config).__name__}: give an R2D2Config")
        super().__init__(*args, losses=losses, **kwargs)
        self.pool = pool
        if self.attacks:
            pool.require_fitting(
                self.model,
                self.processing_class,
                refusal=self.args.refusal,
                suffix_length=self.args.gcg_suffix_length,
            )
        if self._wants_tree is None:
            self._wants_tree = self.args.tree if self.args.tree is not None or self.attacks else False

    def own_terms(self) -> list[Term]:
        """utility + away_weight · away + toward_weight · toward."""
        return [
            *super().own_terms(),
            away_term(self.args.away_weight, away_row, floor=self.args.away_floor),
            Term("toward", cross_entropy, self.args.toward_weight, partial(toward_row, refusal=self.args.refusal)),
        ]

    def _require_usable_terms(self) -> None:
        """This arm has cases."""

    @property
    def attacks(self) -> bool:
        """Whether a term over attacked cases has a weight."""
        return any(term.needs_cases and term.weight for term in self.terms)

    def begin_step(self) -> None:
        """What every arm does, then attack; the weights are gathered once for both."""
        with whole_weights(self) if self.attacks else nullcontext():
            super().begin_step()
            self.refresh()

    def refresh(self) -> None:
        """Begin an optimiser step: reset a share of the pool where it is due, draw cases and attack them anew."""
        self.drawn = []
        if not self.attacks:
            return
        settings, step = self.args, self.state.global_step
        if settings.reset_every and step and step % settings.reset_every == 0:
            self.pool.reset(settings.reset_fraction, self.processing_class, settings.gcg)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        draws = self.pool.draw(settings.cases_per_step)
        shares_of = world * self.args.gradient_accumulation_steps
        if world > 1 and not self.tree and len(draws) % shares_of:
            raise MechrefusalError(
                f"r2d2 draws {len(draws)} cases, which {shares_of} micro-batches of {world} processes cannot share "
                "evenly without a token tree: give a multiple as cases_per_step"
            )
        before = {place: self.pool.cases[place] for place, _ in draws}
        places = [place for place, _ in draws[rank::world]]
        try:
            updated = self.pool.updated(draws[rank::world], self.model, self.processing_class, settings.gcg)
        except MechrefusalError as error:
            raise MechrefusalError(f"the attack before step {step + 1} failed: {error}") from error
        mine = list(zip(places, updated, strict=True))
        for place, case in gather_object(mine) if world > 1 else mine:
            self.pool.cases[place] = case
            self.refreshes.append(
                {
                    "step": step + 1,
                    "case": case.id,
                    "loss_before": case.history[0],
                    "loss_after": case.loss,
                    "age": case.age,
                    "forward_tokens": case.forward_tokens - before[place].forward_tokens,
                    "dropped": case.dropped - before[place].dropped,
                }
            )
        self.drawn = [self.pool.cases[place] for place, _ in draws]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the attacked cases' mean loss before and after their update, their age and cost beside the terms."""
        if "loss" in logs and any(row["step"] > self._logged_at for row in self.refreshes[-1:]):
            refreshed = [row for row in self.refreshes if row["step"] > self._logged_at]
            steps = max(1, self.state.global_step - self._logged_at)
            logs["attack_loss_before"] = math.fsum(row["loss_before"] for row in refreshed) / len(refreshed)
            logs["attack_loss_after"] = math.fsum(row["loss_after"] for row in refreshed) / len(refreshed)
            logs["pool_age"] = sum(row["age"] for row in refreshed) / len(refreshed)
            logs["attack_tokens"] = sum(row["forward_tokens"] for row in refreshed) / steps
        super().log(logs, start_time)

    @property
    def cases(self) -> list[AttackCase]:
        """The cases of the pool."""
        return self.pool.cases

    def save_results(self, folder: Path) -> None:
        """The pool."""
        self.pool.save(folder / POOL)

    def save_state(self, folder: Path) -> None:
        """The pool with its random state, and the record of its refreshes."""
        super().save_state(folder)
        self.pool.save(folder / POOL)
        with whole_file(folder / REFRESHES) as draft:
            pd.DataFrame(self.refreshes).to_parquet(draft, index=False)

    def load_state(self, folder: Path) -> None:
        """The pool, and the record of its refreshes."""
        super().load_state(folder)
        saved = CasePool.load(folder / POOL, source=None)
        if [case.id for case in saved.cases] != [case.id for case in self.pool.cases]:
            raise MechrefusalError(
                f"the pool in '{folder}' holds other behaviours than the one given: go on with the behaviours that the "
                "training was started with"
            )
        self.pool.cases, self.pool.generator = saved.cases, saved.generator
        self.refreshes = pd.read_parquet(folder / REFRESHES).to_dict("records")
