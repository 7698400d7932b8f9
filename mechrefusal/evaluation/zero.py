"""Where a refusal score's zero belongs: between the scores of refused and of answered prompts.

A score is a difference of two log-probabilities, and where it is zero hangs on what was listed: with half of the answer
openings left out every score rises by what these held. How well it tells the two apart does not change with that, but
everything that asks on which side of zero a prompt is does: which prompts are kept, and which candidates refuse.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

FOLDS = 8
"""Parts of the prompts that are left out of the discovery in turn."""


def between(refused: Float[np.ndarray, " refused"], answered: Float[np.ndarray, " answered"]) -> float:
    """The threshold that tells the two best: the largest share of refused above it less that of answered above it.

    The difference is Youden's J (1950), whatever the share of refused prompts. Every threshold between two neighbouring
    scores is as good as another: of the best gaps the widest is taken, and its middle. Where all refused prompts score
    higher than all answered ones, that is the middle of what separates them. The middle of the classes' means follows
    their outliers, so it is not taken. NaN where a class is empty, or where no threshold is better than none.
    """
    refused, answered = (np.sort(each[np.isfinite(each)].astype(float)) for each in (refused, answered))
    if not len(refused) or not len(answered):
        return float("nan")
    scores = np.unique(np.concatenate([refused, answered]))
    above = [1 - np.searchsorted(each, scores[:-1], side="right") / len(each) for each in (refused, answered)]
    youden = (above[0] - above[1]).round(12)
    if not len(youden) or youden.max() <= 0:
        return float("nan")
    best = np.flatnonzero(youden == youden.max())
    widest = best[np.diff(scores)[best].argmax()]
    return float((scores[widest] + scores[widest + 1]) / 2)


def folds(sides: tuple[Tensor, Tensor], n: int) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
    """Rows of all folds but one, and those of that one by side: prompts are dealt in turn, as they may be ordered."""
    for fold in range(n):
        others = torch.cat([side[torch.arange(len(side)) % n != fold] for side in sides])
        yield others, (sides[0][fold::n], sides[1][fold::n])


def cross_fitted(
    scores_by: Callable[[Tensor], Tensor | None], sides: tuple[Tensor, Tensor]
) -> tuple[Float[np.ndarray, " refused"], Float[np.ndarray, " answered"]]:
    """Scores of refused and answered prompts, each by what the prompts of the other folds give.

    Args:
        scores_by: scores of all prompts by what the given rows give, None where they give nothing.
        sides: rows of the refused and of the answered prompts, dealt to `FOLDS` folds, or to as many as the smaller
            side has prompts.
    """
    n = min(FOLDS, *map(len, sides))
    scored: tuple[list[Tensor], list[Tensor]] = ([], [])
    for others, held_out in folds(sides, n if n > 1 else 0):
        scores = scores_by(others)
        if scores is not None:
            for values, rows in zip(scored, held_out, strict=True):
                values.append(scores[rows].double().cpu())
    first, second = (torch.cat(values).numpy() if values else np.empty(0) for values in scored)
    return first, second
