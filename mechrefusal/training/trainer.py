"""What every arm's trainer has in common: TRL's SFTTrainer with a loss that wastes nothing, logged term by term.

TRL's loss runs padding, repeats what rows begin with in common and, on a CPU, projects every position onto the
vocabulary. Here the rows of a step are one token tree: no padding, common beginnings once, logits at the labels only.
The loss is the same up to rounding.
"""

import errno
import math
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from trl import SFTTrainer

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_folder
from mechrefusal.forward.tree import Branch
from mechrefusal.forward.tree_attention import attending
from mechrefusal.forward.tree_forward import TreeForward, shares
from mechrefusal.models.caches import without_router_logits
from mechrefusal.training import rows
from mechrefusal.training.clock import Clock, peak_mib
from mechrefusal.training.losses import UTILITY, Term, TokenLoss, cross_entropy, with_changes

NOTHING = Branch((0,), (0,))

REFUSAL = "refusal"
"""Name under which the loss of an arm's static refusals is logged."""


class ArmTrainer(SFTTrainer):
    """An SFTTrainer that logs its loss terms and where its time goes, and stops at the first term that is not finite.

    Its checkpoints are written whole or not at all.

    Args:
        utility_rows: how many rows of each micro-batch, from the first, are utility: `utility` is logged over them
            alone, and `refusal` over the others. None: all rows are utility.
        refusal_weight: weight of those other rows as a term of their own, the mean over their tokens; utility is then
            the mean over its own. None: all rows share one mean over their tokens, as in TRL. Every micro-batch must
            have as many tokens to refuse with as every other.
        losses: loss terms by name: a pure function replaces the loss of a term, a `Term` replaces or adds one.
        tree: run rows as a token tree; False: TRL's own loss for the training rows, to the last bit. None: a tree
            where the model and the settings allow it.
    """

    def __init__(
        self,
        *args: Any,
        utility_rows: int | None = None,
        refusal_weight: float | None = None,
        losses: Mapping[str, TokenLoss | Term] | None = None,
        tree: bool | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, callbacks=[*(callbacks or []), _StepParts(self), FiniteGradients()], **kwargs)
        without_router_logits(self.model.config)  # TRL asks for them itself, in its own pass
        self.terms = with_changes(self.own_terms(), losses or {})
        self.clock = Clock(self.accelerator.device)
        self._sums: dict[str, Tensor] = {}
        self._utility_rows, self.refusal_weight = utility_rows, refusal_weight
        self._wants_tree = tree
        self._tree: bool | None = None
        self._logged_at = 0
        self._require_usable_terms()
        self.model.register_forward_hook(self._count_utility)

    def own_terms(self) -> list[Term]:
        """The terms of this arm, before any is replaced or added."""
        return [UTILITY]

    def _require_usable_terms(self) -> None:
        if needing := [term.name for term in self.terms if term.needs_cases and term.weight]:
            raise MechrefusalError(
                f"loss term '{needing[0]}' is over attacked cases, which this arm has none of: train it with r2d2"
            )

    @property
    def tree(self) -> bool:
        """Whether the training rows are run as a token tree."""
        if self._tree is None:
            own = [term.loss for term in self.row_terms()]
            self._tree = self._decide_tree(replaced=own != [UTILITY.loss])
        return self._tree

    def row_terms(self) -> list[Term]:
        """The terms over the training rows: utility, and those that were added to it."""
        return [t for t in self.terms if not t.needs_cases and (t.weight or t.name == UTILITY.name)]

    def decide_tree(self) -> None:
        """Run a token tree wherever the model and the settings allow it, whatever the config says."""
        self._wants_tree = self._tree = None

    def _decide_tree(self, *, replaced: bool) -> bool:
        replaced |= self.refusal_weight is not None
        if self._wants_tree is False and not replaced:
            return False
        reason = self.tree_trouble()
        if reason and (self._wants_tree or replaced):
            raise MechrefusalError(f"rows cannot be run as a token tree: {reason}; use tree=False and TRL's own loss")
        return not reason

    def tree_trouble(self) -> str:
        """Why the loss must be TRL's own; empty where it need not be."""
        args = self.args
        if self.is_fsdp_enabled or self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return "the weights are sharded"
        if args.loss_type != "nll" or args.label_smoothing_factor or self.compute_loss_func is not None:
            return "loss_type, label_smoothing_factor or compute_loss_func ask for another loss"
        if self.aux_loss_enabled or args.padding_free or getattr(args, "packing", False):
            return "a router loss, padding_free or packing is on"
        if not shares(self.model):
            return f"the attention of {type(self.model).__name__} cannot share tokens"
        return ""

    def _count_utility(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        """Sum the loss over utility and refusal rows of a forward pass through TRL's fused head."""
        log_probs = getattr(outputs, "log_probs", None)
        if log_probs is None or not model.training:
            return
        border = self._utility_rows if self._utility_rows is not None else len(log_probs)
        for name, part in ((UTILITY.name, slice(0, border)), (REFUSAL, slice(border, None))):
            if n := int(outputs.label_mask[part].sum()):
                self.count(name, -log_probs[part].detach().float().sum(), n)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's, with attention that reads trees (gradient checkpointing runs it in the backward pass again)."""
        reads = self.tree or (any(term.needs_cases and term.weight for term in self.terms) and shares(self.model))
        reading = attending(self.model) if reads else nullcontext()
        with reading, self.clock.part("backward"):
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 (Trainer's signature)
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of all terms while training; TRL's own loss otherwise.

        Raises:
            MechrefusalError: a term is not finite.
        """
        if not self.model.training or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.clock.part("forward"):
            return self._training_loss(model, inputs, num_items_in_batch)

    def _training_loss(self, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None) -> Tensor:
        utility, *added = self.row_terms()
        # As in TRL: items are counted over all processes, whose gradients are then averaged.
        world = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        wanted = self.case_rows()
        scales = [float(self.accelerator.num_processes) for _ in wanted]
        total = torch.zeros((), device=self.accelerator.device)
        if num_items is None:  # Trainer divides by the number of micro-batches; these terms are sums over them
            scales = [scale * self.current_gradient_accumulation_steps for scale in scales]
        if self.tree:
            n_tokens = None if num_items is None else max(1.0, float(num_items))
            own = self._own_rows(utility, inputs, n_tokens)
            self._total_train_tokens += sum(len(branch.tokens) for part in own for branch in part.branches)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            scale = float(world) if num_items is not None else 1.0
            wanted, scales = [*own, *wanted], [*([scale] * len(own)), *scales]
        else:
            total = super().compute_loss(model, inputs, num_items_in_batch=num_items)
            self.require_finite(utility.name, total)
            total = utility.weight * total
        branches = [branch for part in wanted for branch in part.branches]
        forward = TreeForward(self.model, call=model)
        if not branches:
            # Nothing to learn here; other processes may wait for the gradients of this one.
            return total if not self.tree else total + 0.0 * forward.run([NOTHING]).logits.sum()
        logits = forward.run(branches).logits
        for place, (part, scale, pair) in enumerate(zip(wanted, scales, rows.split(logits, wanted), strict=True)):
            if part.labels:
                terms = [part.term, *(added if self.tree and place == 0 else [])]
                total = total + sum(self._term(term, part, pair) for term in terms) * scale / part.n_tokens
        return total

    def _own_rows(self, utility: Term, inputs: dict[str, Any], n_tokens: float | None) -> list[rows.Rows]:
        """The training rows of this micro-batch: one mean over all tokens, or one of utility and one of refusals."""
        border, weight = self._utility_rows, self.refusal_weight
        if weight is None or border is None:
            return [rows.of_batch(utility, inputs, n_tokens=n_tokens, utility_rows=border, refusals=REFUSAL)]
        calm, refused = ({key: value[part] for key, value in inputs.items() if isinstance(value, Tensor)}
                         for part in (slice(0, border), slice(border, None)))  # fmt: skip
        counts: list[float | None] = [None, None]
        if n_tokens is not None:  # over all micro-batches and processes, of which each has as many refusals
            parts = self.current_gradient_accumulation_steps * (
                self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            )
            n_refused = float((refused["labels"][:, 1:] != rows.IGNORED).sum()) * parts
            counts = [max(1.0, n_tokens - n_refused), max(1.0, n_refused)]
        term = Term(REFUSAL, cross_entropy, weight)
        terms = zip((utility, term), (calm, refused), counts, strict=True)
        return [rows.of_batch(t, each, n_tokens=n, utility_rows=None, refusals=REFUSAL) for t, each, n in terms]

    def weights_of_terms(self) -> dict[str, float]:
        """The weight of every logged term; NaN where static refusals share the mean of utility."""
        own = math.nan if self.refusal_weight is None else self.refusal_weight
        return {term.name: term.weight for term in self.terms} | {REFUSAL: own}

    def _term(self, term: Term, part: rows.Rows, pair: tuple[Tensor, Tensor]) -> Tensor:
        """The weighted sum of one term over `part`, noted for the log."""
        losses = term.loss(*pair)
        self._require_losses(term, losses, len(part.labels))
        for name, places in part.parts() if term is part.term else [(term.name, slice(0, len(part.labels)))]:
            self.count(name, losses[places].detach().sum(), places.stop - places.start)
        return term.weight * losses.sum()

    def case_rows(self) -> list[rows.Rows]:
        """Rows of attacked cases that fall to this micro-batch."""
        return []

    def _require_losses(self, term: Term, losses: Tensor, n: int) -> None:
        if not isinstance(losses, Tensor) or losses.shape != (n,):
            found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise MechrefusalError(
                f"loss term '{term.name}' gave {found} for {n} labels: return one loss a token, shape ({n},)"
            )
        self.require_finite(term.name, losses)

    def require_finite(self, name: str, loss: Tensor) -> None:
        """Raise a MechrefusalError that names the step and the term, unless `loss` is finite."""
        if not torch.isfinite(loss).all():
            value = float(loss.detach().float().sum())
            raise MechrefusalError(
                f"loss term '{name}' is {value} at step {self.state.global_step + 1}: the training diverged; "
                "lower learning_rate, or train in float32"
            )

    def count(self, name: str, loss: Tensor, n: int) -> None:
        """Add the summed loss of `n` tokens to what is logged of term `name`."""
        share = torch.stack([loss.double(), loss.new_tensor(float(n), dtype=torch.double)])
        self._sums[name] = self._sums[name] + share if name in self._sums else share

    def logged_at(self, step: int) -> None:
        """Forget what was counted: the next log covers the steps after `step`."""
        self._logged_at, self._sums = step, {}
        self.clock.take()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the mean of each term since the last log, and the seconds a step of its parts, beside TRL's metrics."""
        if "loss" in logs:
            steps = max(1, self.state.global_step - self._logged_at)
            self._logged_at = self.state.global_step
            for name in self._logged_terms():
                sums = self._sums.get(name, torch.zeros(2, dtype=torch.double, device=self.accelerator.device))
                total, n_tokens = self.accelerator.reduce(sums, reduction="sum").tolist()
                logs[name] = total / n_tokens if n_tokens else math.nan
            self._sums = {}
            logs |= {f"seconds_{name}": seconds / steps for name, seconds in self.clock.take().items()}
            logs["peak_mib"] = peak_mib(self.accelerator.device)
        super().log(logs, start_time)

    def _logged_terms(self) -> list[str]:
        """The same on every process, whatever rows it had."""
        names = [term.name for term in self.terms if term.weight or term.name == UTILITY.name]
        return names if self._utility_rows is None else [*names, REFUSAL]

    def save_state(self, folder: Path) -> None:
        """Add what this arm needs to go on to the checkpoint in `folder`, before it is whole. One process calls it."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Transformers' checkpoint, written whole or not at all; older ones go when it is there."""
        kept = self.args.output_dir
        final = Path(kept) / f"checkpoint-{self.state.global_step}"
        main = self.is_world_process_zero()
        with whole_folder(final) if main else nullcontext(Path()) as own:
            # Every process writes its random state into the folder of the first one.
            draft = Path(broadcast_object_list([str(own)])[0])
            self.args.output_dir = str(draft)
            try:
                require_finite_weights(self.model, self.state.global_step)
                super()._save_checkpoint(model, trial)
            except RuntimeError as error:
                if "inline_container" in str(error):  # how torch says that a file could not be written
                    raise OSError(errno.ENOSPC, "the training checkpoint could not be written", str(final)) from error
                raise
            finally:
                self.args.output_dir = kept
            self.accelerator.wait_for_everyone()
            if main:
                written = draft / final.name
                self.save_state(written)
                if self.state.best_model_checkpoint == str(written):
                    self.state.best_model_checkpoint = str(final)
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))
                torch.save(self.args, written / TRAINING_ARGS_NAME)
                for entry in list(written.iterdir()):
                    entry.rename(draft / entry.name)
                written.rmdir()
        if main:
            self._rotate(Path(kept), final)
        self.accelerator.wait_for_everyone()

    def _rotate(self, folder: Path, newest: Path) -> None:
        kept = {newest, Path(self.state.best_model_checkpoint or newest)}
        others = sorted((p for p in folder.glob("checkpoint-*") if p not in kept), key=lambda p: p.stat().st_mtime)
        if limit := self.args.save_total_limit:
            for old in others[: max(0, len(others) + len(kept) - max(limit, len(kept)))]:
                shutil.rmtree(old, ignore_errors=True)

    def _send_telemetry(self) -> None:
        """TRL reports usage to the Hugging Face hub at construction; this project reports nothing."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No model card: checkpoints of a training are not for publishing."""


def require_finite_weights(model: nn.Module, step: int) -> None:
    """Raise a MechrefusalError for weights that are not finite: they are not to take the place of good ones on disk."""
    with torch.no_grad():
        norms = torch.stack(torch._foreach_norm(list(model.parameters())))
    if not torch.isfinite(norms).all():
        raise MechrefusalError(
            f"the weights are not finite after step {step}: the training diverged; lower learning_rate, or train in "
            "float32"
        )


class FiniteGradients(TrainerCallback):
    """Stops before an optimiser step that would write NaN into the weights."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check every gradient once, after clipping."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if not gradients or args.fp16:  # sharded elsewhere; the loss scaler of fp16 skips such steps itself
            return
        norms = torch.stack(torch._foreach_norm(gradients))
        if not torch.isfinite(norms).all():
            raise MechrefusalError(
                f"the gradient is not finite at step {state.global_step + 1}: the training diverged; lower "
                "learning_rate, or train in float32"
            )


class _StepParts(TrainerCallback):
    """Times the optimiser, and notes where a training begins or goes on."""

    def __init__(self, trainer: ArmTrainer) -> None:
        self._trainer = trainer
        self._part: Any = nullcontext()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What is logged begins here."""
        self._trainer.logged_at(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._part = self._trainer.clock.part("optimizer")
        self._part.__enter__()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop it."""
        self._part.__exit__(None, None, None)
