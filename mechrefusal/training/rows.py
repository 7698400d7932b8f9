"""Rows of a step as branches of a token tree: what training predicts, and no token twice."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mechrefusal.forward.tree import Branch
from mechrefusal.training.losses import IGNORED, Reads, Term, TokenIds


@dataclass(frozen=True)
class Rows:
    """The rows of one term in one forward pass.

    Fields:
        branches, labels: `labels` are what the kept logits of all branches predict, in order.
        n_tokens: what the sum of the losses is divided by, over all micro-batches and processes of the step.
        logged: names of the parts that are logged, each with its number of labels from the last part's end on.
        also: other terms over the logits of the same rows.
        scale: what the sum of the losses is multiplied by.
        numbers: which case of the step each row is of, where they are rows of cases.
    """

    term: Term
    branches: tuple[Branch, ...]
    labels: TokenIds
    n_tokens: float
    logged: tuple[tuple[str, int], ...] = ()
    also: tuple[Term, ...] = ()
    scale: float = 1.0
    numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.labels) == sum(len(branch.keep) for branch in self.branches)

    def __len__(self) -> int:
        return len(self.branches)

    def taken(self, chosen: Sequence[bool]) -> "Rows":
        """The rows that are chosen, as rows of the same term, divided by the same number."""
        labels: list[int] = []
        start = 0
        for branch, wanted in zip(self.branches, chosen, strict=True):
            labels += self.labels[start : start + len(branch.keep)] if wanted else []
            start += len(branch.keep)
        branches = tuple(branch for branch, wanted in zip(self.branches, chosen, strict=True) if wanted)
        numbers = tuple(number for number, wanted in zip(self.numbers, chosen, strict=False) if wanted)
        return replace(self, branches=branches, labels=tuple(labels), logged=(), numbers=numbers)

    def of_term(self, term: Term, *, n_parts: float) -> "Rows":
        """The same rows for another term over them, which reads activations or runs under an intervention.

        What it reads besides answers is divided by the tokens at hand and `n_parts`, the micro-batches of a step.
        """
        rows = replace(self, term=term, logged=())
        if term.reads is None or term.reads.tokens == "answer":
            return rows
        return replace(rows, n_tokens=max(1, self.n_read(term.reads)) * n_parts)

    def n_read(self, reads: Reads | None) -> int:
        """Tokens that a term reads the activations of."""
        return sum(map(len, self.places(reads.tokens))) if reads is not None else len(self.labels)

    def places(self, tokens: str) -> list[tuple[int, ...]]:
        """Of each row, the places of its tokens of a kind (see `Reads`)."""
        kinds: dict[str, Callable[[Branch], Iterable[int]]] = {
            "answer": lambda branch: branch.keep,
            "last": lambda branch: branch.keep[:1],
            "prompt": lambda branch: range(branch.keep[0]),
            "all": lambda branch: range(len(branch.tokens)),
        }
        return [tuple(kinds[tokens](branch)) for branch in self.branches]

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


def of_pairs(term: Term, pairs: Sequence[tuple[TokenIds, TokenIds]], mine: Sequence[int]) -> Rows:
    """The rows of those of (prompt ids, continuation ids) that fall to a micro-batch; the mean is over all of them."""
    branches = [Branch.continuing(*pair) for pair in pairs]
    labels = tuple(token for number in mine for token in pairs[number][1])
    own = tuple(branches[number] for number in mine)
    every = Rows(term, tuple(branches), tuple(token for _, answer in pairs for token in answer), 1.0)
    return Rows(term, own, labels, max(1, every.n_read(term.reads)), numbers=tuple(mine))
