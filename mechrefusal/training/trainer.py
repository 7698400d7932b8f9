"""What every arm's trainer has in common: TRL's SFTTrainer with a loss that wastes nothing, logged term by term.

TRL's loss runs padding, repeats what rows begin with in common and, on a CPU, projects every position onto the
vocabulary. Here the rows of a step are one token tree: no padding, common beginnings once, logits at the labels only.
The loss is the same up to rounding.
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import TrainerCallback

from mechrefusal.attacks import AttackCase
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.tree import Branch
from mechrefusal.forward.tree_attention import attending
from mechrefusal.forward.tree_forward import TreeForward, shares
from mechrefusal.models.caches import without_router_logits
from mechrefusal.training import rows
from mechrefusal.training.clock import Clock, StepTimes, peak_mib
from mechrefusal.training.finite import FiniteGradients, require_finite_loss
from mechrefusal.training.losses import UTILITY, Term, TokenLoss, cross_entropy, with_changes
from mechrefusal.training.term_means import TermMeans
from mechrefusal.training.whole_checkpoints import WholeCheckpointsTrainer

NOTHING = Branch((0,), (0,))

REFUSAL = "refusal"
"""Name under which the loss of an arm's static refusals is logged."""


class ArmTrainer(WholeCheckpointsTrainer):
    """An SFTTrainer that logs its loss terms and where its time goes, and stops at the first term that is not finite.

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
        super().__init__(*args, callbacks=[*(callbacks or []), StepTimes(self), FiniteGradients()], **kwargs)
        without_router_logits(self.model.config)  # TRL asks for them itself, in its own pass
        self.terms = with_changes(self.own_terms(), losses or {})
        self.clock = Clock(self.accelerator.device)
        self.term_means = TermMeans()
        self._utility_rows, self.refusal_weight = utility_rows, refusal_weight
        self._wants_tree = tree
        self._tree: bool | None = None
        self._logged_at = 0
        self.refreshes: list[dict[str, Any]] = []
        self._require_usable_terms()
        self.model.register_forward_hook(self._count_utility)

    def own_terms(self) -> list[Term]:
        """The terms of this arm, before any is replaced or added."""
        return [UTILITY]

    @property
    def cases(self) -> list[AttackCase]:
        """The attacked cases that this arm trains on; none unless it has a pool."""
        return []

    def save_results(self, folder: Path) -> None:
        """Write what this arm leaves beside its anchors and its log. One process calls it."""

    def _require_usable_terms(self) -> None:
        if needing := [term.name for term in self.terms if term.needs_cases and term.weight]:
            raise MechrefusalError(
                f"loss term '{needing[0]}' is over attacked cases, which this arm has none of: train it with r2d2"
            )

    @property
    def tree(self) -> bool:
        """Whether the training rows are run as a token tree."""
        if self._tree is None:
            losses = [term.loss for term in self.row_terms()]
            self._tree = self._decide_tree(replaced=losses != [UTILITY.loss])
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
                self.term_means.count(name, -log_probs[part].detach().float().sum(), n)

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
        parts = self.case_rows()
        scales = [float(self.accelerator.num_processes) for _ in parts]
        total = torch.zeros((), device=self.accelerator.device)
        if num_items is None:  # Trainer divides by the number of micro-batches; these terms are sums over them
            scales = [scale * self.current_gradient_accumulation_steps for scale in scales]
        if self.tree:
            n_tokens = None if num_items is None else max(1.0, float(num_items))
            training_rows = self._training_rows(utility, inputs, n_tokens)
            self._total_train_tokens += sum(len(branch.tokens) for part in training_rows for branch in part.branches)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            scale = float(world) if num_items is not None else 1.0
            parts, scales = [*training_rows, *parts], [*([scale] * len(training_rows)), *scales]
        else:
            total = super().compute_loss(model, inputs, num_items_in_batch=num_items)
            require_finite_loss(utility.name, total, step=self.state.global_step + 1)
            total = utility.weight * total
        branches = [branch for part in parts for branch in part.branches]
        forward = TreeForward(self.model, call=model)
        if not branches:
            # Nothing to learn here; other processes may wait for the gradients of this one.
            return total if not self.tree else total + 0.0 * forward.run([NOTHING]).logits.sum()
        logits = forward.run(branches).logits
        for place, (part, scale, pair) in enumerate(zip(parts, scales, rows.split(logits, parts), strict=True)):
            if part.labels:
                terms = [part.term, *(added if self.tree and place == 0 else [])]
                total = total + sum(self._term(term, part, pair) for term in terms) * scale / part.n_tokens
        return total

    def _training_rows(self, utility: Term, inputs: dict[str, Any], n_tokens: float | None) -> list[rows.Rows]:
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
        refusal_weight = math.nan if self.refusal_weight is None else self.refusal_weight
        return {term.name: term.weight for term in self.terms} | {REFUSAL: refusal_weight}

    def _term(self, term: Term, part: rows.Rows, pair: tuple[Tensor, Tensor]) -> Tensor:
        """The weighted sum of one term over `part`, noted for the log."""
        losses = term.loss(*pair)
        self._require_losses(term, losses, len(part.labels))
        for name, places in part.parts() if term is part.term else [(term.name, slice(0, len(part.labels)))]:
            self.term_means.count(name, losses[places].detach().sum(), places.stop - places.start)
        return term.weight * losses.sum()

    def case_rows(self) -> list[rows.Rows]:
        """Rows of attacked cases that fall to this micro-batch."""
        return []

    def _require_losses(self, term: Term, losses: Tensor, n: int) -> None:
        if not isinstance(losses, Tensor) or losses.shape != (n,):
            returned = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise MechrefusalError(
                f"loss term '{term.name}' gave {returned} for {n} labels: return one loss a token, shape ({n},)"
            )
        require_finite_loss(term.name, losses, step=self.state.global_step + 1)

    def logged_at(self, step: int) -> None:
        """Forget what was counted: the next log covers the steps after `step`."""
        self._logged_at, self.term_means = step, TermMeans()
        self.clock.take()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the mean of each term since the last log, and the seconds a step of its parts, beside TRL's metrics."""
        if "loss" in logs:
            steps = max(1, self.state.global_step - self._logged_at)
            self._logged_at = self.state.global_step
            logs |= self.term_means.take(self._logged_terms(), self.accelerator)
            logs |= {f"seconds_{name}": seconds / steps for name, seconds in self.clock.take().items()}
            logs["peak_mib"] = peak_mib(self.accelerator.device)
        super().log(logs, start_time)

    def _logged_terms(self) -> list[str]:
        """The same on every process, whatever rows it had."""
        names = [term.name for term in self.terms if term.weight or term.name == UTILITY.name]
        return names if self._utility_rows is None else [*names, REFUSAL]
