"""Scores of prompts by a refusal metric, under whatever hooks are open, a few prompts at a time."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.forward.choosing import runner_of
from mechrefusal.forward.refusal_metric import RefusalMetric, log_probabilities
from mechrefusal.forward.runner import Asked, batches, by_continuation, require_context


def refusal_scores(model, prompts: Sequence[Sequence[int]], metric: RefusalMetric) -> Float[Tensor, " prompt"]:
    """Score of every prompt (token ids up to the start of the answer), nats.

    Raises:
        MechrefusalError: a prompt with an opening is longer than the context.
    """
    return refusal_scores_and(model, prompts, metric, read=lambda logits: logits[:, :0])[0]


def refusal_scores_and(
    model,
    prompts: Sequence[Sequence[int]],
    metric: RefusalMetric,
    *,
    read: Callable[[Float[Tensor, "prompt vocab"]], Tensor],
) -> tuple[Float[Tensor, " prompt"], Tensor]:
    """Scores of prompts, and what `read` makes of the logits at their ends, before any opening.

    Args:
        read: such as `rd_score`; it gets the logits of a few prompts at a time, and its results are joined.

    Raises:
        MechrefusalError: as `refusal_scores`.
    """
    parts = [(metric.of_runs(logits), read(logits[0][:, 0])) for logits in logits_after(model, prompts, metric.runs)]
    scores, also = zip(*parts, strict=True)
    return torch.cat(scores), torch.cat(also)


def opening_log_probabilities(
    model, prompts: Sequence[Sequence[int]], openings: Sequence[Sequence[int]]
) -> Float[Tensor, "opening prompt"]:
    """Teacher-forced log-probability of each whole opening (token ids) after each prompt, nats."""
    runs = [tuple(opening[:-1]) for opening in openings]
    parts = [log_probabilities(openings, logits) for logits in logits_after(model, prompts, runs)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def logits_after(
    model, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], *, kept: int | None = None
) -> Iterator[list[Float[Tensor, "prompt place vocab"]]]:
    """A few prompts after another: for each continuation, logits at the end of the prompt and at each token after it.

    Args:
        kept: only so many of the last ones.
    """
    if len(prompts) == 0:
        raise ValueError("no prompts to run; give at least one")
    runs = tuple(map(tuple, continuations))
    to_run = [Asked(tuple(prompt), runs, None if kept is None else (kept,) * len(runs)) for prompt in prompts]
    require_context(model, to_run)
    for _, batch in batches(runner_of(model), to_run):
        yield by_continuation(batch.run().logits, len(runs))
