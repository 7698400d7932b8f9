"""Spectrum of the update: how many directions of the weights training moved, and which of them carry refusal."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from mechrefusal.durability.asking import Judged, judged_answers
from mechrefusal.durability.settings import UpdateSpectrumSettings
from mechrefusal.durability.weight_updates import Spectrum, WeightUpdate, random_effective_ranks
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge
from mechrefusal.geometry.contrast import SIDES, Contrast
from mechrefusal.progress import bar
from mechrefusal.statistics import Observations, Observed, intervals
from mechrefusal.statistics.paired import rate_difference

SCALED = "scaled"
TOP, REST, RANDOM, REST_OF_RANDOM = "top", "all but top", "random", "all but random"
"""What is left of the update: k singular directions of every matrix from the top, the others, and the same for k random
directions. What is no matrix is in the remainder."""
MEASURES = ("refused", "degenerate")
NAN = float("nan")


@dataclass(frozen=True)
class Part:
    """A part of the update: `scale` times the whole, or by `k` singular directions of every matrix."""

    kept: str
    k: int | None = None
    draw: int | None = None
    scale: float | None = None

    def weights(self, update: WeightUpdate) -> Iterator[tuple[str, Tensor]]:
        """The weights of the model with this part alone."""
        if self.scale is not None:
            return update.scaled(self.scale)
        assert self.k is not None
        of = update.kept if self.kept in (TOP, RANDOM) else update.without
        return of(self.k, draw=self.draw)

    def share(self, update: WeightUpdate) -> float:
        """Share of the update's squared norm that is there."""
        if self.scale is not None:
            return self.scale**2
        assert self.k is not None
        share = update.share(self.k, draw=self.draw)
        return share if self.kept in (TOP, RANDOM) else 1 - share


TRAINED = Part(SCALED, scale=1.0)


@dataclass(frozen=True)
class UpdateSpectrum(Observed):
    """The spectrum of an update, and refusal with parts of it.

    Fields:
        observations: axes kept, k, draw, scale (None where a part has none), side of the prompts and measure (refused,
            degenerate: 0 or 1).
        table: one row a part and side, in the columns of the table `update_refusals`.
        matrices: one row a matrix and layer, in the columns of the table `update_spectrum`.
    """

    observations: Observations
    table: pd.DataFrame
    matrices: pd.DataFrame

    def _estimate(self, cell: pd.Series, values: np.ndarray, confidence: float) -> intervals.Estimate:
        return intervals.rate(int(values.sum()), len(values), confidence=confidence)


def spectrum_of_update(
    start: nn.Module, trained: nn.Module, tokenizer, held_out: Contrast, judge: Judge, settings: UpdateSpectrumSettings
) -> UpdateSpectrum:
    """Singular values of W_trained − W_start matrix by matrix, and how often the model refuses with parts of them.

    Effective rank is exp(entropy) of the normalised singular values (Roy and Vetterli, 2007) of the raw difference, by
    σ and by σ²; beside it that of a matrix of the same shape with independent normal entries. An adapter has to be
    merged (`models.load_causal_lm` does so). Embeddings are matrices like others, tied ones one matrix.

    Refusals are those of held-out prompts, by generation and the judge: with the update times each of
    `settings.scales`, with its top k singular directions in every matrix at once, and with all others; beside them with
    as many of each matrix's directions drawn at random from all that are not zero. Each stands beside the trained
    model on the same prompts.

    Args:
        start, trained: Hugging Face models of one architecture. Weights of `trained` are changed in memory, and put
            back before it returns.
        held_out: harmful and harmless prompts.

    Raises:
        MechrefusalError: the two have other parameters, or there is no prompt.
    """
    sides = {side: list(getattr(held_out, side))[: settings.n_prompts] for side in SIDES}
    if not all(sides.values()):
        counts = " and ".join(str(len(texts)) for texts in sides.values())
        raise MechrefusalError(
            f"the spectrum of the update needs harmful and harmless prompts, got {counts}: give one at least"
        )
    parts = _parts(settings)
    with bar("update", total=sum(1 for _ in trained.parameters()) + len(parts)) as progress:
        update = WeightUpdate.between(
            start,
            trained,
            largest=max(settings.ranks, default=0),
            n_random=settings.n_random,
            seed=settings.seed,
            on_matrix=progress.advance,
        )
        seen: dict[tuple[Part, str], Judged] = {}
        for part in parts:
            with update.in_place(trained, part.weights(update)):
                for side, texts in sides.items():
                    options = {"tokenizer": tokenizer, "max_new_tokens": settings.max_new_tokens}
                    seen[part, side] = judged_answers(trained, texts, judge, **options)
            progress.advance()
    rows = [_row(part, side, part.share(update), judged, seen[TRAINED, side]) for (part, side), judged in seen.items()]
    cells = {
        (part.kept, part.k, part.draw, part.scale, side, measure): (side, getattr(judged, measure).astype(float))
        for (part, side), judged in seen.items()
        for measure in MEASURES
    }
    axes = ("kept", "k", "draw", "scale", "side", "measure")
    sizes: dict[str, int] = {side: len(texts) for side, texts in sides.items()}
    return UpdateSpectrum(Observations.of_sides(sizes, cells, axes), pd.DataFrame(rows), _matrices(update.spectra))


def _parts(settings: UpdateSpectrumSettings) -> list[Part]:
    scales = [Part(SCALED, scale=float(scale)) for scale in sorted({*settings.scales, 1.0})]
    draws = range(settings.n_random)
    of_ranks = [
        part
        for k in sorted(settings.ranks)
        for part in (
            Part(TOP, k),
            Part(REST, k),
            *(Part(RANDOM, k, draw) for draw in draws),
            *(Part(REST_OF_RANDOM, k, draw) for draw in draws),
        )
    ]
    return scales + of_ranks


def _row(part: Part, side: str, share: float, judged: Judged, trained: Judged) -> dict[str, Any]:
    """One row of `update_refusals`."""
    refused = intervals.rate(int(judged.refused.sum()), len(judged.refused))
    change = rate_difference(trained.refused.astype(float), judged.refused.astype(float))
    return {
        **vars(part),
        "share": share,
        "side": side,
        **refused.columns("refused", ""),
        "n": refused.n,
        "degenerate": float(judged.degenerate.mean()),
        **change.columns("change"),
        "reason": "",
    }


def _matrices(spectra: tuple[Spectrum, ...]) -> pd.DataFrame:
    """Rows of `update_spectrum`."""
    by_chance = random_effective_ranks([each.shape for each in spectra])
    rows = []
    for each in spectra:
        by_sigma, by_square = by_chance[each.shape]
        norm, nothing = each.norm, each.norm == 0
        expert = "".join(f"[{number}]" for number in each.place)
        rows.append(
            {
                "matrix": each.matrix + expert,
                "layer": each.layer,
                "n_rows": each.shape[0],
                "n_columns": each.shape[1],
                "rank": each.rank,
                "effective_rank": each.effective_rank("sigma"),
                "effective_rank_squared": each.effective_rank("sigma_squared"),
                "random": NAN if nothing else by_sigma,
                "random_squared": NAN if nothing else by_square,
                "largest": float(each.values[0]),
                "norm": norm,
                "relative_norm": norm / each.start_norm if each.start_norm else NAN,
                "reason": "training did not change this matrix" if nothing else "",
            }
        )
    return pd.DataFrame(rows)
