"""Prompts ready to be run under one intervention after another, with what is read of them computed once."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.operations import Intervention
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import Asked, Runner, batches, by_continuation, require_context, runner_of

Logits = list[Float[Tensor, "prompt place vocab"]]


class _Passes:
    """What both kinds of passes share: prompts with continuations, in groups that fit."""

    def __init__(self, model, requests: Sequence[Asked], *, low_precision: bool) -> None:
        assert requests, "passes need at least one prompt"
        require_context(model, requests)
        self.model, self._requests, self._low = model, requests, low_precision
        self._prepare()

    def _prepare(self) -> None:
        self.runner: Runner = runner_of(self.model, low_precision=self._low)
        self.low_precision = getattr(self.runner, "low_precision", False)
        self._batches = [batch for _, batch in batches(self.runner, self._requests)]

    def _run(self, intervention: Intervention | None) -> Iterator[Sequence[Float[Tensor, "place vocab"]]]:
        """Logits of a few prompts after another, prompt by prompt and run by run, float32."""
        if intervention is not None:
            intervention.check(self.model)
            if getattr(intervention, "positions", None):
                raise MechrefusalError(
                    f"{type(intervention).__name__} at chosen positions: these passes hold many prompts and their "
                    "answers at once; open it on the model with causal.intervened instead"
                )
        if runner_of(self.model, low_precision=self._low).name != self.runner.name:
            self._prepare()  # hooks of the caller have been opened since, or closed
        for batch in self._batches:
            if intervention is None:
                yield batch.run().logits
                continue
            layers = range(intervention.first_layer, self.model.cfg.n_layers)
            yield batch.run(intervention.edits(self.model, batch.layout), layers=layers).logits


class Passes(_Passes):
    """Prompts, each followed by every one of `runs`, ready to be run under one intervention after another.

    Args:
        model: a hooked transformer.
        prompts: token ids up to the start of the answer.
        runs: token ids to run after each prompt; by default nothing. `RefusalMetric.runs` is meant for this.
        low_precision: weights in bfloat16 where that is faster (see `forward.low_precision`), for screens.
    """

    def __init__(
        self,
        model,
        prompts: Sequence[Sequence[int]],
        runs: Sequence[Sequence[int]] = ((),),
        *,
        low_precision: bool = False,
    ) -> None:
        assert runs, "passes need at least one run (it may be empty)"
        self.runs = tuple(tuple(run) for run in runs)
        super().__init__(model, [Asked(tuple(prompt), self.runs) for prompt in prompts], low_precision=low_precision)

    def logits(self, intervention: Intervention | None = None) -> Logits:
        """For each run, the logits at the end of every prompt and at each of the run's tokens, float32.

        Gradients reach the intervention's directions where they ask for them, and no weight.
        """
        return [torch.cat(parts) for parts in zip(*self.by_group(intervention), strict=True)]

    def by_group(self, intervention: Intervention | None = None) -> Iterator[Logits]:
        """The same for a few prompts after another, so that memory does not grow with them."""
        n = len(self.runs)
        for logits in self._run(intervention):
            yield by_continuation(logits, n)


class AnswerPasses(_Passes):
    """Prompts, each followed by an answer of its own (token ids, at least one), ready to be run in the same way."""

    def __init__(
        self, model, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, low_precision: bool = False
    ) -> None:
        assert all(len(answer) > 0 for answer in answers), "an answer has at least one token"
        self._answers = [torch.tensor(answer) for answer in answers]
        requests = [Asked(tuple(p), (tuple(a[:-1]),)) for p, a in zip(prompts, answers, strict=True)]
        super().__init__(model, requests, low_precision=low_precision)

    def losses(self, intervention: Intervention | None = None) -> Float[Tensor, " prompt"]:
        """Cross-entropy of each prompt's own answer, mean nats a token."""
        logits = [each for group in self._run(intervention) for each in group]
        losses = [
            torch.nn.functional.cross_entropy(each, answer.to(each.device))
            for each, answer in zip(logits, self._answers, strict=True)
        ]
        return torch.stack(losses)
