"""The trainer of arms whose loss is a list of terms: TRL's SFTTrainer with a loss that wastes nothing.

TRL's loss runs padding, repeats what rows begin with in common and, on a CPU, projects every position onto the
vocabulary. Here the rows of a step are one token tree: no padding, common beginnings once, logits at the labels only.
The loss is the same up to rounding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trl import SFTTrainer

from mechrefusal.attacks import AttackCase
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.tree_attention import attending
from mechrefusal.forward.tree_forward import shares
from mechrefusal.models.caches import without_router_logits
from mechrefusal.training import rows
from mechrefusal.training.arm_training import ArmTraining
from mechrefusal.training.finite import require_finite_loss
from mechrefusal.training.frozen_copy import FrozenCopy, frozen_copy
from mechrefusal.training.losses import UTILITY, Term, TokenLoss, cross_entropy, with_changes
from mechrefusal.training.term_passes import TermPasses, Values

MEASURED = "measured.safetensors"
"""File in a training checkpoint: what interventions have measured on the weights."""

REFUSAL = "refusal"
"""Name under which the loss of an arm's static refusals is logged."""


class ArmTrainer(ArmTraining, SFTTrainer):
    """An SFTTrainer whose loss is a weighted sum of terms, each logged; it stops at the first that is not finite.

    Args:
        utility_rows: how many rows of each micro-batch, from the first, are utility: `utility` is logged over them
            alone, and `refusal` over the others. None: all rows are utility.
        refusal_weight: weight of those other rows as a term of their own, the mean over their tokens; utility is then
            the mean over its own. None: all rows share one mean over their tokens, as in TRL. Every micro-batch must
            have as many tokens to refuse with as every other.
        terms: what the arm trains on beside `utility`.
        losses: loss terms by name: a pure function replaces the loss of a term, a `Term` replaces or adds one.
        draw: the cases of an optimiser step (from 0), for terms over cases; None: there are none.
        tree: run rows as a token tree; False: TRL's own loss for the training rows, to the last bit. None: a tree
            where the model and the settings allow it.
    """

    def __init__(
        self,
        *args: Any,
        utility_rows: int | None = None,
        refusal_weight: float | None = None,
        terms: Sequence[Term] = (),
        losses: Mapping[str, TokenLoss | Term] | None = None,
        draw: Callable[[int], Sequence[AttackCase]] | None = None,
        tree: bool | None = None,
        **kwargs: Any,
    ) -> None:
        changed = [*terms, *(losses or {}).values()]
        reads_frozen = any(isinstance(term, Term) and term.reads_frozen for term in changed)
        copied = frozen_copy(kwargs["model"]) if reads_frozen and not kwargs.get("peft_config") else None
        super().__init__(*args, **kwargs)
        copied = copied.to(self.accelerator.device) if copied is not None else self.model
        frozen = FrozenCopy(copied) if reads_frozen else None
        without_router_logits(self.model.config)  # TRL asks for them itself, in its own pass
        self.draw_cases = draw
        own = with_changes(self.own_terms(), {term.name: term for term in terms})
        self.terms = with_changes(own, losses or {})
        self.drawn: list[AttackCase] = []
        self._utility_rows, self.refusal_weight = utility_rows, refusal_weight
        self._wants_tree = tree
        self._tree: bool | None = None
        self._micro_batch = 0
        self._require_usable_terms()
        self.passes = TermPasses(self, frozen)
        if self.passes.in_lockstep:
            shares(self.model)  # which is tried out on the model, while its weights are whole
        self.model.register_forward_hook(self._count_utility)

    def own_terms(self) -> list[Term]:
        """The terms of this arm, before any is replaced or added."""
        return [UTILITY]

    def _require_usable_terms(self) -> None:
        needing = [term.name for term in self.terms if term.needs_cases and term.weight]
        if needing and self.draw_cases is None:
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
        reason = self.rows_trouble() if replaced else self.tree_trouble()
        if reason and (self._wants_tree or replaced):
            raise MechrefusalError(f"rows cannot be run as a token tree: {reason}; use tree=False and TRL's own loss")
        return not reason  # where TRL's loss would not do, rows that cannot be a tree are run in full

    def tree_trouble(self) -> str:
        """Why the loss is to be TRL's own; empty where rows can be run as a token tree."""
        if reason := self.rows_trouble():
            return reason
        return "" if shares(self.model) else f"the attention of {type(self.model).__name__} cannot share tokens"

    def rows_trouble(self) -> str:
        """Why the loss must be TRL's own; empty where it need not be."""
        args = self.args
        if args.loss_type != "nll" or args.label_smoothing_factor or self.compute_loss_func is not None:
            return "loss_type, label_smoothing_factor or compute_loss_func ask for another loss"
        if self.aux_loss_enabled or args.padding_free or getattr(args, "packing", False):
            return "a router loss, padding_free or packing is on"
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
        own_rows = self.tree or any(term.needs_cases and term.weight for term in self.terms)
        reading = attending(self.model) if own_rows and shares(self.model) else nullcontext()
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
        parts = self.case_rows()
        # Trainer divides by the number of micro-batches where it has no number of items; these are sums over them.
        scale = float(self.accelerator.num_processes)
        scale *= self.current_gradient_accumulation_steps if num_items is None else 1
        parts = [replace(part, scale=scale) for part in parts]
        total = torch.zeros((), device=self.accelerator.device)
        if self.tree:
            parts = [*self._all_training_rows(inputs, num_items), *parts]
        else:
            utility = self.row_terms()[0]
            total = super().compute_loss(model, inputs, num_items_in_batch=num_items)
            require_finite_loss(utility.name, total, step=self.state.global_step + 1)
            total = utility.weight * total
        if not self.tree and not (parts if self.passes.in_lockstep else any(map(len, parts))):
            return total
        step, part = self.state.global_step, self._part - 1  # `case_rows` has counted this one
        found, held = self.passes.run(parts, model, seed=self.args.seed, step=step, part=part)
        total = total + held
        for values in found:
            terms = (values.rows.term, *values.rows.also)
            sums = sum(self._term(term, values) for term in terms)
            total = total + sums * values.rows.scale / values.rows.n_tokens
        return total

    @property
    def _counted_processes(self) -> int:
        """Over how many processes TRL counts the items of a step, whose gradients it then averages."""
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

    def _all_training_rows(self, inputs: dict[str, Any], num_items: Tensor | int | None) -> list[rows.Rows]:
        """The training rows of this micro-batch, for every term over them."""
        utility, *added = self.row_terms()
        world = self._counted_processes
        n_tokens = None if num_items is None else max(1.0, float(num_items))
        scale = float(world) if num_items is not None else 1.0
        first, *others = [replace(part, scale=scale) for part in self._training_rows(utility, inputs, n_tokens)]
        self._total_train_tokens += sum(len(b.tokens) for part in (first, *others) for b in part.branches)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        besides = [term for term in added if term.reads or term.under]
        n_parts = 1 if num_items is None else self.current_gradient_accumulation_steps * world
        apart = [first.of_term(term, n_parts=n_parts) for term in besides]
        return [replace(first, also=tuple(term for term in added if term not in besides)), *others, *apart]

    def _training_rows(self, utility: Term, inputs: dict[str, Any], n_tokens: float | None) -> list[rows.Rows]:
        """The training rows of this micro-batch: one mean over all tokens, or one of utility and one of refusals."""
        border, weight = self._utility_rows, self.refusal_weight
        if weight is None or border is None:
            return [rows.of_batch(utility, inputs, n_tokens=n_tokens, utility_rows=border, refusals=REFUSAL)]
        calm, refused = ({key: value[part] for key, value in inputs.items() if isinstance(value, Tensor)}
                         for part in (slice(0, border), slice(border, None)))  # fmt: skip
        counts: list[float | None] = [None, None]
        if n_tokens is not None:  # over all micro-batches and processes, of which each has as many refusals
            parts = self.current_gradient_accumulation_steps * self._counted_processes
            n_refused = float((refused["labels"][:, 1:] != rows.IGNORED).sum()) * parts
            counts = [max(1.0, n_tokens - n_refused), max(1.0, n_refused)]
        term = Term(REFUSAL, cross_entropy, weight)
        terms = zip((utility, term), (calm, refused), counts, strict=True)
        return [rows.of_batch(t, each, n_tokens=n, utility_rows=None, refusals=REFUSAL) for t, each, n in terms]

    def weights_of_terms(self) -> dict[str, float]:
        """The weight of every logged term; NaN where static refusals share the mean of utility."""
        refusal_weight = math.nan if self.refusal_weight is None else self.refusal_weight
        return {term.name: term.weight for term in self.terms} | {REFUSAL: refusal_weight}

    def _term(self, term: Term, values: Values) -> Tensor:
        """The weighted sum of one term over its rows, noted for the log."""
        part, losses = values.rows, values.losses(term)
        n = len(part.labels) if values.hidden is None else part.n_read(term.reads)
        if not isinstance(losses, Tensor) or losses.shape != (n,):
            returned = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            of = "labels" if values.hidden is None else "tokens"
            raise MechrefusalError(
                f"loss term '{term.name}' gave {returned} for {n} {of}: return one loss a token, shape ({n},)"
            )
        require_finite_loss(term.name, losses, step=self.state.global_step + 1)
        logged = part.parts() if term is part.term and values.hidden is None else [(term.name, slice(0, n))]
        for name, places in logged:
            self.term_means.count(name, losses[places].detach().sum(), places.stop - places.start)
        return term.weight_at(self.state.global_step / self.state.max_steps) * losses.sum()

    def begin_step(self) -> None:
        """Draw the cases of an optimiser step, and measure what interventions need."""
        self._micro_batch = 0
        self.drawn = list(self.draw_cases(self.state.global_step)) if self.draw_cases else []
        self.passes.measure(self.state.global_step)

    @property
    def _part(self) -> int:
        """Which micro-batch of all processes comes next, counted as one process with all of them would."""
        return self.accelerator.process_index * self.current_gradient_accumulation_steps + self._micro_batch

    def case_rows(self) -> list[rows.Rows]:
        """Rows of the cases that fall to this micro-batch, for every term over cases.

        Summed over micro-batches and averaged over processes (as the gradients are), each term is the mean over all
        tokens of all cases drawn in the step.
        """
        n_parts = self.accelerator.num_processes * self.current_gradient_accumulation_steps
        mine = range(self._part, len(self.drawn), n_parts)
        self._micro_batch += 1
        by_term = []
        for term in self.terms:
            if term.row is not None and term.weight:
                pairs = [term.row(self.processing_class, case) for case in self.drawn]
                by_term.append(rows.of_pairs(term, pairs, mine))
        return by_term

    def save_state(self, folder: Path) -> None:
        """What interventions have measured."""
        super().save_state(folder)
        self.passes.save(folder / MEASURED)

    def load_state(self, folder: Path) -> None:
        """What interventions had measured."""
        super().load_state(folder)
        self.passes.load(folder / MEASURED)

    def _logged_terms(self) -> list[str]:
        """The same on every process, whatever rows it had."""
        names = [term.name for term in self.terms if term.weight or term.name == UTILITY.name]
        return names if self._utility_rows is None else [*names, REFUSAL]
