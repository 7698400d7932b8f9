"""Losses as pure functions of logits and labels, one number a token; a trainer sums, averages and weighs them.

Any of an arm's terms can be replaced by such a function, and others can be added (`Term`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from mechrefusal.attacks import AttackCase
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.sites import Place, Site
from mechrefusal.training.measured import Measured, State
from mechrefusal.training.under import Under

IGNORED = -100

TokenIds = tuple[int, ...]

TokenLoss = Callable[[Float[Tensor, "token vocab"], Int[Tensor, " token"]], Float[Tensor, " token"]]
"""A pure function: the loss (nats) of each label, from the logits that predict it."""

CaseRow = Callable[[PreTrainedTokenizerBase, AttackCase], tuple[TokenIds, TokenIds]]
"""What a case becomes: the prompt's token ids, and those of what is predicted after it."""


def cross_entropy(logits: Float[Tensor, "token vocab"], labels: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """−log p of each label: pulls toward it."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def away(
    logits: Float[Tensor, "token vocab"], labels: Int[Tensor, " token"], *, floor: float = -5.0
) -> Float[Tensor, " token"]:
    """−log(1 − p) of each label: pushes away from it (R2D2; HarmBench, 2402.04249, section 5).

    Where log p is below `floor` it is zero: the label is already improbable there. It still counts as a token.

    With z = (logit of the label) − logsumexp(logits of all others), log p = −softplus(−z) and log(1 − p) =
    −softplus(z). This is exact where p rounds to 1, where 1 − p, and log1p(−p), would be infinite.
    """
    logits, labels = logits.float(), labels[:, None]
    others = logits.scatter(1, labels, -torch.inf).logsumexp(1)
    z = logits.gather(1, labels)[:, 0] - others
    return torch.where(-functional.softplus(-z) < floor, 0.0, functional.softplus(z))


@dataclass(frozen=True)
class Reads:
    """Which activations a term reads.

    Fields:
        layers, site: where.
        tokens: "answer": those that predict what is learnt; "last": the first of them, which is the prompt's last;
            "prompt": those before it; "all": all of them.
        frozen: whether the term also reads them in the model as it was before the arm's first step.
        measured: what the term's loss needs that is measured on the weights.
    """

    layers: tuple[int, ...]
    site: Site = "resid_post"
    tokens: Literal["answer", "last", "prompt", "all"] = "answer"
    frozen: bool = False
    measured: Measured | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """Layers with the site."""
        return tuple((layer, self.site) for layer in self.layers)


@dataclass(frozen=True)
class Hidden:
    """Activations of a term's tokens, row after row, by layer; `frozen` is empty where the term does not read it.

    `state`: what was measured, for a term that asks for it.
    """

    trained: Mapping[int, Float[Tensor, "token d_model"]]
    frozen: Mapping[int, Float[Tensor, "token d_model"]] = field(default_factory=dict)
    state: State = field(default_factory=dict)


HiddenLoss = Callable[[Hidden], Float[Tensor, " token"]]
"""A pure function: the loss of each token, from its activations."""


@dataclass(frozen=True)
class Term:
    """One term of a training loss: `weight` times the mean of `loss` over all its tokens in an optimiser step.

    Fields:
        name: in logs, tables and errors.
        loss: the loss of each token, from logits and labels; with `reads`, from activations.
        weight: 0 leaves the term out.
        row: how a case becomes a row of this term; None for a term of the training rows ("utility" is one).
        reads: the activations that `loss` is a function of; None: it is one of logits.
        under: what the term's rows are run under; None: the model as it is.
        schedule: a factor of `weight` by the share of the arm's steps that are done, 0 at its first.
    """

    name: str
    loss: TokenLoss | HiddenLoss
    weight: float = 1.0
    row: CaseRow | None = None
    reads: Reads | None = None
    under: Under | None = None
    schedule: Callable[[float], float] | None = None

    @property
    def needs_cases(self) -> bool:
        """Whether the term is over cases: behaviours that are drawn anew at each step, attacked or not."""
        return self.row is not None

    @property
    def reads_frozen(self) -> bool:
        """Whether the term reads the model as it was before the arm's first step."""
        return bool(self.weight and self.reads and self.reads.frozen)

    def weight_at(self, share: float) -> float:
        """The weight when `share` of the steps are done."""
        return self.weight * (1.0 if self.schedule is None else self.schedule(share))


RESERVED = ("loss", "refusal", "grad_norm", "learning_rate", "epoch", "step", "num_tokens", "peak_mib")

UTILITY = Term("utility", cross_entropy)


def away_term(weight: float, row: CaseRow, *, floor: float) -> Term:
    """The term `away` with its floor."""
    return Term("away", partial(away, floor=floor), weight, row)


def with_changes(terms: Sequence[Term], changes: Mapping[str, TokenLoss | Term]) -> list[Term]:
    """`terms` with some replaced or added.

    Args:
        changes: by name: a `Term` takes the place of the term of that name, or is added; a function replaces the loss
            of the term of that name alone.

    Raises:
        MechrefusalError: a function under a name that no term has, or a term whose own name is another.
    """
    changed = {term.name: term for term in terms}
    for name, change in changes.items():
        if name in RESERVED:
            raise MechrefusalError(f"a loss term cannot be called '{name}', which logs mean otherwise: rename it")
        if isinstance(change, Term):
            if change.name != name:
                raise MechrefusalError(f"loss term '{name}' calls itself '{change.name}': give it one name")
            changed[name] = change
        elif name in changed:
            changed[name] = replace(changed[name], loss=change)
        else:
            raise MechrefusalError(
                f"loss '{name}' replaces no term of this arm ({', '.join(changed)}): give a training.Term to add one"
            )
    if UTILITY.name not in changed or changed[UTILITY.name].needs_cases:
        raise MechrefusalError("the term 'utility' is the one of the training rows: it can be replaced, not removed")
    return list(changed.values())
