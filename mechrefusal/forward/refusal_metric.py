"""The refusal metric: one number a prompt that is high where the model is about to refuse.

It lives here because every measuring package receives one as a value; `mechrefusal.evaluation` discovers it, and
`scoring` runs models to score prompts by it.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import opening_ids


@dataclass(frozen=True)
class ForcedOpenings:
    """Openings of several tokens (token ids) that a checkpoint's refusals and its answers begin with."""

    refusals: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.refusals or not self.answers or not all([*self.refusals, *self.answers]):
            raise ValueError("teacher-forced openings need at least one refusal and one answer, none of them empty")
        if len(set(self.all)) < len(self.all):
            raise ValueError("a teacher-forced opening is listed twice, or as a refusal and as an answer")

    @property
    def all(self) -> tuple[tuple[int, ...], ...]:
        """Refusals, then answers."""
        return (*self.refusals, *self.answers)

    def of(self, likely: Float[Tensor, "opening prompt"]) -> Float[Tensor, " prompt"]:
        """log Σ P(refusal opening) − log Σ P(answer opening), from the log-probabilities of `all`, nats."""
        n = len(self.refusals)
        return likely[:n].logsumexp(0) - likely[n:].logsumexp(0)


@dataclass(frozen=True)
class RefusalMetric:
    """How much likelier a refusal is than an answer, in nats, less an offset.

    log P(refusal tokens) − log P(compliance tokens) for the token after prompt + `opening`, a forced prefix of the
    answer (token ids, often empty): models that open refusals and answers with the same token are told apart after it.

    Where `forced` is given, scores are log Σ P(refusal opening) − log Σ P(answer opening) instead, each the
    teacher-forced probability of the whole opening after the prompt. Direct attribution and the logit lens, which look
    at the logits of one position, go on using the token sets.

    `kind` is "discovered", "teacher_forced", or "fallback" where a checkpoint showed too few refusals or answers to
    discover anything.

    `offset` (nats) is taken off every score, so that 0 lies between refused and answered prompts whatever tokens or
    openings are listed (`evaluation.zero`); it changes no difference between scores. 0 where nothing was calibrated, as
    in metrics of earlier versions.
    """

    opening: tuple[int, ...]
    refusal_tokens: tuple[int, ...]
    compliance_tokens: tuple[int, ...]
    kind: str = "discovered"
    forced: ForcedOpenings | None = None
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.offset):
            raise ValueError(f"the offset of a refusal metric is {self.offset}: give a finite number")
        if not self.refusal_tokens or not self.compliance_tokens:
            raise ValueError("a refusal metric needs at least one refusal token and one compliance token")
        if shared := set(self.refusal_tokens) & set(self.compliance_tokens):
            raise ValueError(f"tokens {sorted(shared)} are both refusal and compliance tokens")

    def as_json(self) -> str:
        """The token ids that make the metric, for `from_json`."""
        forced = None if self.forced is None else {"refusals": self.forced.refusals, "answers": self.forced.answers}
        names = ("opening", "refusal_tokens", "compliance_tokens", "kind", "offset")
        return json.dumps({**{name: getattr(self, name) for name in names}, "forced": forced})

    @staticmethod
    def from_json(text: str) -> "RefusalMetric":
        """The metric that `as_json` wrote.

        Raises:
            MechrefusalError: the text is no such metric.
        """
        try:
            stored = json.loads(text)
            openings = stored.pop("forced")
            forced = (
                None if openings is None else ForcedOpenings(*(_tuples(openings[n]) for n in ("refusals", "answers")))
            )
            kind, offset = stored.pop("kind"), float(stored.pop("offset", 0.0))
            sets = {name: tuple(ids) for name, ids in stored.items()}
            return RefusalMetric(**sets, kind=kind, forced=forced, offset=offset)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise MechrefusalError(
                f"'{str(text)[:80]}' is no refusal metric ({error}); measure the checkpoint again"
            ) from error

    @property
    def runs(self) -> tuple[tuple[int, ...], ...]:
        """What has to be run after each prompt (token ids) to score it; `of_runs` takes the logits."""
        if self.forced is None:
            return (self.opening,)
        return tuple(opening[:-1] for opening in self.forced.all)

    def of_runs(self, logits: Sequence[Float[Tensor, "prompt place vocab"]]) -> Float[Tensor, " prompt"]:
        """Score of every prompt.

        Args:
            logits: for each of `runs`, at the end of the prompt and at each of the run's tokens.
        """
        if self.forced is None:
            return self.of(logits[0][:, -1])
        return self.of_forced(log_probabilities(self.forced.all, logits))

    def of(self, logits: Float[Tensor, "*prompt vocab"]) -> Float[Tensor, "*prompt"]:
        """Score from the logits at the metric's position (the last one of prompt + opening).

        That of the token sets, without an offset where scores are those of `forced` openings: it is theirs.
        """
        refusal = torch.logsumexp(logits[..., list(self.refusal_tokens)], dim=-1)
        score = refusal - torch.logsumexp(logits[..., list(self.compliance_tokens)], dim=-1)
        return score - self.offset if self.forced is None else score

    def of_forced(self, likely: Float[Tensor, "opening prompt"]) -> Float[Tensor, " prompt"]:
        """Score from the log-probabilities of all `forced` openings."""
        assert self.forced is not None
        return self.forced.of(likely) - self.offset


def log_probabilities(
    openings: Sequence[Sequence[int]], logits: Iterable[Float[Tensor, "prompt place vocab"]]
) -> Float[Tensor, "opening prompt"]:
    """Log-probability of each whole opening, from the logits at the places that predict its tokens."""
    totals = []
    for opening, after in zip(openings, logits, strict=True):
        labels = torch.tensor(opening, device=after.device).expand(len(after), -1)
        totals.append(after.log_softmax(-1).gather(-1, labels[..., None])[..., 0].sum(-1))
    return torch.stack(totals)


def rd_score(logits: Float[Tensor, "*prompt vocab"], tokens: Sequence[int]) -> Float[Tensor, "*prompt"]:
    """Refusal score of Arditi et al. (2406.11717): log(P_R + 1e-8) − log(1 − P_R + 1e-8) at the end of the prompt.

    P_R is the probability of the hand-picked first `tokens`. Computed in float64, as 1 − P_R cancels.
    """
    mass = logits.double().softmax(-1)[..., list(tokens)].sum(-1)
    return torch.log(mass + 1e-8) - torch.log(1 - mass + 1e-8)


RD_OPENINGS = ("I", "As")
"""First words of refusals that RD picks by hand for most chat models (its config of each model family)."""


def rd_tokens(tokenizer) -> tuple[int, ...]:
    """First token of each of `RD_OPENINGS`, as an answer in the chat template of `tokenizer` opens with it."""
    return tuple(dict.fromkeys(opening_ids(tokenizer, word)[1][0] for word in RD_OPENINGS))


def _tuples(rows: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in rows)
