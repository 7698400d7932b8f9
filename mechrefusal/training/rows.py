"""Rows of a step as branches of a token tree: what training predicts, and no token twice."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mechrefusal.forward.tree import Branch
from mechrefusal.training.losses import IGNORED, Term, TokenIds


@dataclass(frozen=True)
class Rows:
    """The rows of one term in one forward pass.

    Fields:
        branches, labels: `labels` are what the kept logits of all branches predict, in order.
        n_tokens: what the sum of the losses is divided by, over all micro-batches and processes of the step.
        logged: names of the parts that are logged, each with its number of labels from the last part's end on.
    """

    term: Term
    branches: tuple[Branch, ...]
    labels: TokenIds
    n_tokens: float
    logged: tuple[tuple[str, int], ...] = field(default=())

    def __post_init__(self) -> None:
        assert len(self.labels) == sum(len(branch.keep) for branch in self.branches)

    def parts(self) -> Iterator[tuple[str, slice]]:
        """The logged parts as slices of the labels; without any, the whole term."""
        start = 0
        for name, n in self.logged or ((self.term.name, len(self.labels)),):
            yield name, slice(start, start + n)
            start += n


def of_batch(
    term: Term, inputs: Mapping[str, Any], *, n_tokens: float | None, utility_rows: int | None, refusals: str
) -> Rows:
    """The rows of a collated batch (`input_ids`, `labels`, `attention_mask`).

    What follows a row's last label is not run.

    Args:
        n_tokens: None: the number of labels at hand.
        utility_rows: how many rows, from the first, are logged under the term's name; None: all. The others are
            logged as `refusals`.
    """
    ids, labels = inputs["input_ids"].tolist(), inputs["labels"].tolist()
    masks = inputs["attention_mask"].tolist() if "attention_mask" in inputs else [[1] * len(row) for row in ids]
    branches, predicted, counts = [], [], [0, 0]
    for number, (row, wanted, mask) in enumerate(zip(ids, labels, masks, strict=True)):
        real = [place for place, seen in enumerate(mask) if seen]
        tokens, targets = [row[place] for place in real], [wanted[place] for place in real]
        keep = tuple(place - 1 for place, label in enumerate(targets) if place and label != IGNORED)
        if keep:
            branches.append(Branch(tuple(tokens[: keep[-1] + 1]), keep))
            predicted += [targets[place + 1] for place in keep]
            counts[utility_rows is not None and number >= utility_rows] += len(keep)
    logged = ((term.name, counts[0]),) if not counts[1] else ((term.name, counts[0]), (refusals, counts[1]))
    n_tokens = n_tokens if n_tokens is not None else max(1, len(predicted))
    return Rows(term, tuple(branches), tuple(predicted), n_tokens, logged)


def of_pairs(term: Term, pairs: Sequence[tuple[TokenIds, TokenIds]], *, n_tokens: float) -> Rows:
    """The rows of (prompt ids, continuation ids)."""
    branches = tuple(Branch.continuing(*pair) for pair in pairs)
    return Rows(term, branches, tuple(token for _, continuation in pairs for token in continuation), n_tokens)


def split(logits: Tensor, rows: Sequence[Rows]) -> list[tuple[Tensor, Tensor]]:
    """(logits, labels) of each of `rows`, whose branches were run in order."""
    parts = logits.split([len(part.labels) for part in rows])
    labels = (torch.tensor(part.labels, dtype=torch.long, device=logits.device) for part in rows)
    return list(zip(parts, labels, strict=True))
