"""What the trainer of an arm is made of: the same rows, order and options for every arm, and what it needs besides."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from trl import SFTConfig

from mechrefusal import prompts
from mechrefusal.attacks import AttackCase
from mechrefusal.errors import MechrefusalError
from mechrefusal.models import Checkpoint
from mechrefusal.prompts import PromptSet
from mechrefusal.training import data
from mechrefusal.training.arm import Arm
from mechrefusal.training.frozen_copy import frozen_copy
from mechrefusal.training.guide_settings import GuideSettings
from mechrefusal.training.guides import guide_terms
from mechrefusal.training.losses import Term, TokenLoss
from mechrefusal.training.settings import TrainingSettings
from mechrefusal.training.trainer import ArmTrainer
from mechrefusal.training.trainer_config import OF_SFT, Shares, config_arguments, lora_config, share

C = TypeVar("C", bound=TrainingArguments)

CHANGES_NO_WEIGHT = ("save_every", "n_probe", "probe_tokens", "max_shard_size")


@dataclass(frozen=True)
class ArmInputs:
    """What an arm starts from and learns; see `training.train`."""

    arm: Arm
    base: Checkpoint
    utility: Sequence[dict[str, Any]]
    behaviours: PromptSet
    settings: TrainingSettings
    arm_settings: Any
    losses: Mapping[str, TokenLoss | Term] | None = None
    start: int = 0
    guide: GuideSettings | None = None

    def __post_init__(self) -> None:
        if not self.utility or not len(self.behaviours):
            raise MechrefusalError(
                f"arm '{self.arm.name}' has {len(self.utility)} utility rows and {len(self.behaviours)} behaviours: "
                "give both"
            )
        if self.settings.warm_up:
            raise MechrefusalError(
                f"arm '{self.arm.name}' was given a warm_up of {self.settings.warm_up} steps, which arms share: train "
                "settings.of_warm_up() first, then each arm with settings.of_arm() and start"
            )

    def fingerprint(self) -> str:
        """16 hex digits that differ wherever the weights might."""
        # The warm-up's settings have become those of the arm, or of the warm-up itself.
        settings = {
            name: value
            for name, value in asdict(self.settings).items()
            if name not in CHANGES_NO_WEIGHT and not name.startswith("warm_up")
        }
        losses = {name: _identity(loss) for name, loss in sorted((self.losses or {}).items())}
        rows = [list(self.utility), self.behaviours.ids, self.behaviours.texts]
        own = [self.arm.name, asdict(self.arm_settings), asdict(self.guide) if self.guide else None]
        parts = [own, self.base.weights, *rows, settings, losses, self.start, self.behaviours.targets]
        text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _identity(loss: TokenLoss | Term) -> list[Any]:
    """What tells a loss from another: its numbers, and the name and source of its functions."""
    functions: list[Any] = [loss]
    identity: list[Any] = []
    if isinstance(loss, Term):
        under = loss.under
        functions = [loss.loss, loss.row, loss.schedule]
        measured = [one for one in (loss.reads and loss.reads.measured, under and under.measured) if one]
        functions += [under.intervention] if under else []
        functions += [one.measure for one in measured]
        reads = [loss.reads.places, loss.reads.tokens, loss.reads.frozen] if loss.reads else []
        of_under = [under.name, under.probability] if under else []
        identity = [loss.weight, reads, of_under, [(one.name, one.every) for one in measured]]
    return identity + [_of_function(function) for function in functions]


def _of_function(function: Any) -> list[str]:
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = ""
    return [getattr(function, "__qualname__", type(function).__name__), source]


def _plain(value: Any) -> Any:
    """What is no plain value, as one that is the same in every process."""
    return _of_function(value) if callable(value) else str(value)


@dataclass(frozen=True)
class TrainerSetup:
    """What the trainer of an arm is made of.

    Fields:
        state: folder of its training checkpoints.
    """

    inputs: ArmInputs
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    state: Path
    callbacks: list[TrainerCallback]

    @property
    def settings(self) -> TrainingSettings:
        """How every arm trains."""
        return self.inputs.settings

    @property
    def arm_settings(self) -> Any:
        """The arm's own settings."""
        return self.inputs.arm_settings

    def trainer(
        self,
        terms: Sequence[Term] = (),
        *,
        cases_per_step: int = 0,
        static_refusals: int | None = None,
        refusal_weight: float | None = None,
    ) -> ArmTrainer:
        """A trainer of the utility rows whose loss is `utility` and other terms.

        Args:
            terms: what the arm trains on beside utility.
            cases_per_step: behaviours that terms over cases get at each step, drawn anew; not attacked.
            static_refusals: rows in each step in which a behaviour is refused, in one loss with utility; None: none.
            refusal_weight: see `ArmTrainer`.
        """
        arguments = self.arguments(SFTConfig, harmful_per_step=static_refusals)
        guide = self.inputs.guide
        n_cases = cases_per_step or (guide.cases_per_step if guide and guide.uses_cases else 0)
        draw = self._draws(n_cases) if n_cases else None
        return ArmTrainer(**arguments, terms=terms, draw=draw, refusal_weight=refusal_weight, tree=self.settings.tree)

    def losses(self) -> dict[str, TokenLoss | Term]:
        """The terms that the caller and the guide add or replace."""
        guided = guide_terms(self, self.inputs.guide) if self.inputs.guide else {}
        return {**guided, **(self.inputs.losses or {})}

    def _draws(self, n: int) -> Callable[[int], list[AttackCase]]:
        """The cases of a step: `n` behaviours as they are, in passes over all of them in random orders."""
        asked = self.inputs.behaviours
        behaviours = zip(asked.ids, asked.texts, asked.targets, strict=True)
        cases = [AttackCase(id, text, target, method="none") for id, text, target in behaviours]
        order = list(data.schedule(cases, n * self.settings.steps, seed=self.settings.seed, name="cases"))
        return lambda step: order[step * n : (step + 1) * n]

    def arguments(
        self, config_class: type[SFTConfig], *, harmful_per_step: int | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Arguments of an `ArmTrainer` with the same utility rows, in the same order, as every other arm's.

        Args:
            config_class: of the trainer; `fields` are those that it has beside SFTConfig's.
            harmful_per_step: static refusals (behaviour, no suffix, refusal) in each step; None: the arm has none.

        Raises:
            MechrefusalError: rows that cannot be learnt, or that the micro-batches cannot share evenly.
        """
        settings = self.settings
        config = self.config(config_class, **OF_SFT, **fields)
        shares = self.shares(config, harmful_per_step or 0)
        config.per_device_train_batch_size = shares.utility_each + shares.harmful_each
        utility, refusals = self.rows()
        return {
            "model": self.model,
            "args": config,
            "processing_class": self.tokenizer,
            "callbacks": self.callbacks,
            "losses": self.losses(),
            "peft_config": lora_config(settings),
            "utility_rows": None if harmful_per_step is None else shares.utility_each,
            "train_dataset": data.dataset(utility, refusals, **asdict(shares), seed=settings.seed),
        }

    def own_arguments(self, config: TrainingArguments, rows: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Arguments of an `OwnLoss` trainer: one whose loss is its own, and no sum of terms.

        Args:
            rows: its rows by column, in the order of the steps.

        Raises:
            MechrefusalError: loss terms or a guide's were given, or a token tree asked for.
        """
        name = self.inputs.arm.name
        if self.inputs.losses:
            raise MechrefusalError(
                f"arm '{name}' has a loss of its own and no terms: leave losses ({', '.join(self.inputs.losses)}) out"
            )
        if self.inputs.guide is not None and self.inputs.guide.has_terms:
            raise MechrefusalError(
                f"arm '{name}' has a loss of its own, to which a guide adds no terms: it can be guided by freeze alone"
            )
        if self.settings.tree:
            raise MechrefusalError(
                f"arm '{name}' has a loss of its own, which runs no token tree: leave training tree out for it"
            )
        return {
            "model": self.model,
            "args": config,
            "processing_class": self.tokenizer,
            "callbacks": self.callbacks,
            "peft_config": lora_config(self.settings),
            "train_dataset": Dataset.from_dict({key: list(column) for key, column in rows.items()}),
        }

    def reference(self) -> PreTrainedModel | None:
        """A copy of the model that the arm starts from; None with adapters, which TRL turns off instead."""
        return None if self.settings.lora else frozen_copy(self.model)

    def config(self, config_class: type[C], **fields: Any) -> C:
        """The config of a trainer of TRL: what the training is told, and all that TRL would do besides is off."""
        config = config_class(**config_arguments(self.settings, self.state), **fields)
        # Several visible GPUs in one process would be used through DataParallel, with a multiple of the batch.
        config._n_gpu = min(config.n_gpu, 1)
        return config

    def shares(self, config: TrainingArguments, harmful_per_step: int) -> Shares:
        """How the rows of a step are shared among its micro-batches.

        Raises:
            MechrefusalError: they cannot be, evenly.
        """
        n_parts = self.settings.gradient_accumulation * config.world_size
        return Shares(
            steps=self.settings.steps * n_parts,
            utility_each=share(self.settings.utility_per_step, n_parts, "training utility_per_step"),
            harmful_each=share(harmful_per_step, n_parts, "training harmful_per_step"),
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest row: `max_length`, or the model's context where that is shorter."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return min(self.settings.max_length, context or self.settings.max_length)

    def rows(self) -> tuple[list[data.Row], list[data.Row]]:
        """Utility and static refusals as token rows. Every arm is refused what one of them could not learn."""
        settings, behaviours, longest = self.inputs.settings, self.inputs.behaviours, self.longest
        utility = [
            data.conversation(
                self.tokenizer,
                row["prompt"],
                row["answer"],
                max_length=longest,
                name=f"utility row {number}",
                end_of_turn=row.get("finished", True),
            )
            for number, row in enumerate(self.inputs.utility)
        ]
        named = list(zip(behaviours.ids, behaviours.texts, strict=True))
        refusals = [
            data.conversation(self.tokenizer, text, settings.refusal, max_length=longest, name=f"behaviour '{id}'")
            for id, text in named
        ]
        for id, text in named:
            length = len(prompts.segments(self.tokenizer, text, target=settings.refusal).ids)
            if length > longest:
                raise MechrefusalError(
                    f"behaviour '{id}' with the refusal takes {length} tokens, more than the {longest} of max_length "
                    "and the model's context: leave it out, or give a shorter refusal"
                )
        return utility, refusals
