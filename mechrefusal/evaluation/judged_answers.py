"""Answers to prompts and which of them refuse: how they open, and how well a score tells the prompts apart."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import zero

ENOUGH_TO_HOLD_OUT = 8
"""Refusals, and answers, from which on half of the prompts is held out to measure AUC on."""

ScoresBy = Callable[[Tensor], Tensor | None]
"""Scores of all prompts by what the given rows give; None where they give nothing."""


@dataclass(frozen=True)
class JudgedAnswers:
    """Prompts (token ids), their answers (token ids), and which of these are refusals.

    Where the model thinks, all answers begin with the same `n_lead` tokens, an empty thought in place of their own.
    """

    prompts: Sequence[Sequence[int]]
    answers: Sequence[tuple[int, ...]]
    refused: Bool[Tensor, " prompt"]
    n_lead: int = 0

    @property
    def rows(self) -> Tensor:
        """The rows of all prompts."""
        return torch.arange(len(self.prompts))

    def counts(self, rows: Tensor | None = None) -> tuple[int, int]:
        """Numbers of refusals and of answers, among `rows` or all."""
        refused = self.refused if rows is None else self.refused[rows]
        return int(refused.sum()), int((~refused).sum())

    def of_side(self, rows: Tensor, *, refused: bool) -> list[tuple[int, ...]]:
        """Refusals, or answers, among `rows`."""
        return [self.answers[row] for row in rows.tolist() if bool(self.refused[row]) is refused]

    def openings(self, rows: Tensor, length: int, *, refused: bool) -> Counter[tuple[int, ...]]:
        """How often refusals, or answers, begin with which (up to) `length` tokens."""
        return Counter(answer[:length] for answer in self.of_side(rows, refused=refused) if answer[:length])

    def share(self, openings: Sequence[tuple[int, ...]], *, refused: bool) -> float:
        """Share of the refusals, or of the answers, that begin with one of `openings`."""
        answers = self.of_side(self.rows, refused=refused)
        return sum(any(answer[: len(o)] == o for o in openings) for answer in answers) / len(answers)

    def auc(self, scores: Float[Tensor, " prompt"], rows: Tensor | None = None) -> float:
        """Share of pairs of a refused and an answered prompt (of `rows`, or all) in the right order, ties as half."""
        rows = self.rows if rows is None else rows
        values = scores.double().cpu()[rows]
        require_numbers(values.isnan())
        values = values.nan_to_num()  # infinities: only the order counts
        return float(roc_auc_score(self.refused[rows].numpy(), values.numpy()))

    def sides(self) -> tuple[Tensor, Tensor]:
        """Rows of the refused and of the answered prompts."""
        return self.refused.nonzero()[:, 0], (~self.refused).nonzero()[:, 0]

    def offset(self, scores_by: ScoresBy) -> float:
        """Where the zero of scores belongs that all prompts together make, from what parts of them make of others."""
        threshold = zero.between(*zero.cross_fitted(scores_by, self.sides()))
        return 0.0 if math.isnan(threshold) else threshold

    def held_out(self, scores_by: ScoresBy) -> float:
        """Mean AUC on each half of the prompts of scores made by what the other half gives."""
        sides = self.sides()
        if min(len(side) for side in sides) < ENOUGH_TO_HOLD_OUT:
            return float("nan")
        scored = ((scores_by(half), torch.cat(other)) for half, other in zero.folds(sides, 2))
        aucs = [self.auc(scores, other) for scores, other in scored if scores is not None]
        return sum(aucs) / 2 if len(aucs) == 2 else float("nan")


def require_numbers(missing: Bool[Tensor, " prompt"]) -> None:
    """Raise MechrefusalError where a prompt's score or logits hold a NaN."""
    if missing.any():
        raise MechrefusalError(
            f"at {int(missing.sum())} of {len(missing)} discovery prompts the model's logits give no number (NaN), so "
            "that there is no refusal score; load the model in float32, or check its weights and active hooks"
        )
