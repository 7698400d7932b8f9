"""What knock-outs do: refusal scores of harmful and harmless prompts, and what it costs the harmless ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.causal.components import Component, ComponentPasses, TemplateFrame
from mechrefusal.causal.divergence import kl_of_probabilities, probabilities
from mechrefusal.causal.knockout.replacements import HOWS, How, Replacements
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.statistics import intervals


@dataclass(frozen=True)
class Reading:
    """Refusal scores of all prompts (nats), and KL(base ‖ now) of the next token of the harmless ones (nats)."""

    harmful: Float[Tensor, " harmful"]
    harmless: Float[Tensor, " harmless"]
    kl: Float[Tensor, " harmless"]


class Measured:
    """Harmful and harmless prompts, ready to be read under one knock-out after another. Arguments as in `knock_out`.

    `parts` are all components that will be knocked out.
    """

    def __init__(
        self,
        model,
        harmful: Sequence[str],
        harmless: Sequence[str],
        metric: RefusalMetric,
        *,
        how: How,
        parts: Sequence[Component],
        reference: Sequence[str] | None,
        draws: int = 4,
        seed: int = 0,
    ) -> None:
        texts = _texts(harmful, harmless, reference, how=how, draws=draws, seed=seed)
        self.metric, self.n_harmful = metric, len(texts[0])
        self.frame = TemplateFrame.of(model.tokenizer, [text for part in texts for text in part])
        ids, others, standing_in = (prompts.prompt_ids(model.tokenizer, part) for part in texts)
        places = list(dict.fromkeys(part.place for part in parts))
        made = partial(ComponentPasses, model, whole=how == "zero", sites={site for _, site in places})
        self.both = made([*ids, *others], metric.runs, self.frame)
        self.harmful = made(ids, metric.runs, self.frame)
        self.replacements = Replacements(
            model,
            standing_in,
            metric.runs,
            self.frame,
            how=how,
            places=places,
            draws=draws,
            seed=seed,
        )
        self._p = torch.empty(0)
        scores, following = self._base()
        self._p = probabilities(following)
        self.base = Reading(scores[: self.n_harmful], scores[self.n_harmful :], torch.zeros(len(others)))

    @torch.no_grad()
    def under(self, parts: Sequence[Component]) -> Reading:
        """All prompts with `parts` knocked out together."""
        readings = [self._read(parts, draw) for draw in range(self.replacements.draws)]
        scores, kl = (torch.stack(each).mean(0) for each in zip(*readings, strict=True))
        return Reading(scores[: self.n_harmful], scores[self.n_harmful :], kl)

    @torch.no_grad()
    def harmful_under(self, parts: Sequence[Component]) -> Float[Tensor, " harmful"]:
        """Refusal scores of the harmful prompts alone, at half the cost."""
        found = []
        for draw in range(self.replacements.draws):
            scores = torch.empty(self.n_harmful)
            for numbers, logits in self._logits(self.harmful, parts, draw):
                scores[numbers] = self.metric.of_runs(logits).cpu()
            found.append(scores)
        return torch.stack(found).mean(0)

    def effect(self, now: Reading) -> dict[str, float | int]:
        """Columns of a table of knock-outs: changes against the base, with intervals over prompts."""
        found: dict[str, float | int] = {}
        for name, change in (
            ("", now.harmful - self.base.harmful),
            ("harmless", now.harmless - self.base.harmless),
            ("kl", now.kl),
        ):
            values = change.double().numpy()
            estimate = intervals.skewed_mean(values) if name == "kl" else intervals.mean(values)
            prefix = f"{name}_" if name else ""
            found |= {name or "refusal": estimate.value, f"{prefix}low": estimate.low, f"{prefix}high": estimate.high}
        return found | {"n_harmful": self.n_harmful, "n_harmless": len(self.base.harmless)}

    def _logits(
        self, passes: ComponentPasses, parts: Sequence[Component], draw: int
    ) -> Iterator[tuple[list[int], list[Tensor]]]:
        if not parts:
            return passes.logits()
        edits = self.replacements.edits(parts, passes, draw=draw)
        return passes.logits(edits, first_layer=min(part.layer for part in parts))

    @torch.no_grad()
    def _base(self) -> tuple[Tensor, Float[Tensor, "harmless vocab"]]:
        scores = torch.empty(len(self.both.ids))
        following: dict[int, Tensor] = {}
        for numbers, logits in self._logits(self.both, [], 0):
            scores[numbers] = self.metric.of_runs(logits).cpu()
            following |= {p: row for p, row in zip(numbers, logits[0][:, 0], strict=True) if p >= self.n_harmful}
        return scores, torch.stack([following[p] for p in sorted(following)])

    def _read(self, parts: Sequence[Component], draw: int) -> tuple[Tensor, Tensor]:
        scores, kl = torch.empty(len(self.both.ids)), torch.empty(len(self._p), dtype=torch.float64)
        for numbers, logits in self._logits(self.both, parts, draw):
            scores[numbers] = self.metric.of_runs(logits).cpu()
            rows = [row for row, p in enumerate(numbers) if p >= self.n_harmful]
            at = [numbers[row] - self.n_harmful for row in rows]
            if rows:
                kl[at] = kl_of_probabilities(self._p[at], probabilities(logits[0][rows, 0])).cpu()
        return scores, kl


def _texts(
    harmful: Sequence[str], harmless: Sequence[str], reference: Sequence[str] | None, *, how: str, draws: int, seed: int
) -> tuple[list[str], list[str], list[str]]:
    if how not in HOWS:
        raise MechrefusalError(f"unknown kind of knock-out '{how}'; expected one of {', '.join(HOWS)}")
    if draws < 1 or seed < 0:
        raise MechrefusalError(f"draws is {draws} and seed {seed}: give at least 1 and 0")
    named = {
        "harmful": list(harmful),
        "harmless": list(harmless),
        "reference": [*harmful, *harmless] if reference is None else list(reference),
    }
    for name, texts in named.items():
        if not texts:
            raise MechrefusalError(f"no {name} prompts; a knock-out needs at least one")
    return named["harmful"], named["harmless"], named["reference"]
