"""How a metric is read: what is run after each prompt, which logits are kept, and the score that they give.

A metric is a `RefusalMetric` of any kind, or any function of the last position's logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.refusal_metric import RefusalMetric

Metric = RefusalMetric | Callable[[Float[Tensor, "row vocab"]], Float[Tensor, " row"]]


@dataclass(frozen=True)
class MetricReader:
    """Where a metric reads, and what it makes of it.

    Fields:
        runs: token ids to run after each prompt.
        kept: of each run, how many of its last logits are read.
        score: from the logits of each run at those places, one score a row.
    """

    runs: tuple[tuple[int, ...], ...]
    kept: tuple[int, ...]
    score: Callable[[Sequence[Float[Tensor, "row place vocab"]]], Float[Tensor, " row"]]

    @classmethod
    def of(cls, metric: Metric) -> "MetricReader":
        """How to read `metric`.

        Raises:
            MechrefusalError: it is neither a `RefusalMetric` nor a function.
        """
        if isinstance(metric, RefusalMetric):
            runs = metric.runs
            return cls(runs, tuple(1 if metric.forced is None else len(run) + 1 for run in runs), metric.of_runs)
        if not callable(metric):
            raise MechrefusalError(
                f"the metric is {metric!r}, neither a RefusalMetric nor a function; give a function from the last "
                "position's logits [row, vocab] to one score a row"
            )
        return cls(((),), (1,), lambda logits: _checked(metric, logits[0][:, -1]))

    def check(self, logits: Sequence[Float[Tensor, "two place vocab"]]) -> None:
        """Raise `MechrefusalError` for a metric that does more than score rows by their logits.

        Args:
            logits: of two rows. Changed places must change the scores' places, and other logits the scores.
        """
        scores = self.score(logits)
        swapped = self.score([part.flip(0) for part in logits]).flip(0)
        generator = torch.Generator().manual_seed(0)
        noise = [torch.randn(part.shape, generator=generator).to(part) for part in logits]
        others = [self.score([part + scale * n for part, n in zip(logits, noise, strict=True)]) for scale in (0.1, 10)]
        if not torch.allclose(scores, swapped, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise MechrefusalError(
                f"the metric is not a function of the logits of each row: it gave {scores.tolist()} for two rows and "
                f"{swapped.tolist()} for the same two in the other order; score every row by its own logits"
            )
        if all(torch.equal(scores, other) for other in others):
            raise MechrefusalError(
                f"the metric does not depend on the logits: it gave {scores.tolist()} for them and for random ones; "
                "give a function from the last position's logits [row, vocab] to one score a row"
            )


def _checked(metric: Callable, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    try:
        scores = metric(logits)
    except MechrefusalError:
        raise
    except Exception as error:
        raise MechrefusalError(
            f"the metric fails on logits of shape {list(logits.shape)} ({type(error).__name__}: {error}); it gets the "
            "last position's logits [row, vocab] and returns one score a row"
        ) from error
    got = f"a tensor of shape {list(scores.shape)}" if isinstance(scores, Tensor) else f"{type(scores).__name__}"
    if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1] or scores.is_complex():
        raise MechrefusalError(
            f"the metric returned {got} for logits of shape {list(logits.shape)}; return a tensor of one real score a "
            f"row, here of shape [{len(logits)}]"
        )
    return scores.detach().float()
