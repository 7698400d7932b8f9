"""What knock-outs do: refusal scores of harmful and harmless prompts, and what it costs the harmless ones."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.causal.components import Component, ComponentPasses, TemplateFrame
from mechrefusal.causal.divergence import kl_of_probabilities, probabilities
from mechrefusal.causal.knockout.replacements import HOWS, How, Replacements
from mechrefusal.causal.prompt_scores import PromptScores
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.statistics import intervals


class KnockOutPasses:
    """Harmful and harmless prompts, ready to be scored under one knock-out after another. Arguments as in `knock_out`.

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
        passes_of = partial(
            ComponentPasses,
            model,
            runs=metric.runs,
            frame=self.frame,
            whole=how == "zero",
            sites={site for _, site in places},
        )
        self.both, self.harmful = passes_of([*ids, *others]), passes_of(ids)
        self.replacements = Replacements(
            model, standing_in, metric.runs, self.frame, how=how, places=places, draws=draws, seed=seed
        )
        self._p = torch.empty(0)
        scores, following = self._base()
        self._p = probabilities(following)
        self.base = PromptScores.of(scores, torch.zeros(len(others)))

    @torch.no_grad()
    def under(self, parts: Sequence[Component]) -> PromptScores:
        """All prompts with `parts` knocked out together."""
        by_draw = [self._read(parts, draw) for draw in range(self.replacements.draws)]
        scores, kl = (torch.stack(each).mean(0) for each in zip(*by_draw, strict=True))
        return PromptScores.of(scores, kl)

    @torch.no_grad()
    def harmful_under(self, parts: Sequence[Component]) -> Float[Tensor, " harmful"]:
        """Refusal scores of the harmful prompts alone, at half the cost."""
        by_draw = []
        for draw in range(self.replacements.draws):
            scores = torch.empty(self.n_harmful)
            for numbers, logits in self._logits(self.harmful, parts, draw):
                scores[numbers] = self.metric.of_runs(logits).cpu()
            by_draw.append(scores)
        return torch.stack(by_draw).mean(0)

    def effect(self, now: PromptScores) -> dict[str, float | int]:
        """Columns of a table of knock-outs: changes against the base, with intervals over prompts."""
        refusal, harmless, kl = (
            change.double().numpy()
            for change in (now.harmful - self.base.harmful, now.harmless - self.base.harmless, now.kl)
        )
        return {
            **intervals.mean(refusal).columns("refusal", ""),
            **intervals.mean(harmless).columns("harmless"),
            **intervals.skewed_mean(kl).columns("kl"),
            "n_harmful": len(refusal),
            "n_harmless": len(harmless),
        }

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
            harmless_rows = [numbers[row] - self.n_harmful for row in rows]
            if rows:
                kl[harmless_rows] = kl_of_probabilities(self._p[harmless_rows], probabilities(logits[0][rows, 0])).cpu()
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
