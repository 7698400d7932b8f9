"""What attribution patching and circuits share with exact patching: pairs ready to run, cells, and their averages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.patching.pair_runs import (
    SMALLEST_GAP,
    LeftOut,
    Mode,
    Pairs,
    cells,
    oriented,
    require_mode,
    rows_of,
    unpatched_scores,
    usable_pairs,
)
from mechrefusal.forward import Metric, MetricReader, runner_of
from mechrefusal.forward.patches import PairRun, Patch, Site
from mechrefusal.prompts import Pair
from mechrefusal.statistics import Observations

CELL = ["site", "layer", "head", "position"]
"""What names one patch over several pairs; positions count from the end of the prompt, as in `patching`."""


@dataclass(frozen=True)
class PreparedPairs:
    """Pairs of equal length in the direction in which they are patched.

    Fields:
        model: the hooked transformer.
        runs, tokens: of each pair; tokens are those of the harmful prompt as text.
        pairs: the pairs.
        clean, corrupted: metric of the harmful and the harmless prompt of each pair, nats.
        left_out: as in `patching.Patching`.
    """

    model: Any
    runs: tuple[PairRun, ...]
    tokens: tuple[tuple[str, ...], ...]
    pairs: tuple[Pair, ...]
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    left_out: LeftOut
    mode: Mode

    @property
    def gap(self) -> float:
        """Mean difference of the metric between harmful and harmless, nats."""
        return float((self.clean - self.corrupted).double().mean())

    @property
    def scale(self) -> float:
        """What makes a change in nats a share of the gap, positive where it restores (or takes away) refusal."""
        if not abs(self.gap) >= SMALLEST_GAP:
            return float("nan")
        return (1 if self.mode == "denoising" else -1) / self.gap

    @property
    def reason(self) -> str:
        """Why shares of the gap are NaN; empty where they are not."""
        if abs(self.gap) >= SMALLEST_GAP:
            return ""
        return (
            f"harmful and harmless prompts differ by {self.gap:.3g} nats, less than {SMALLEST_GAP}: an effect, which "
            "is a share of that difference, has no meaning"
        )

    def observations(self, raw: Float[np.ndarray, "pair cell"], cells: pd.DataFrame) -> Observations:
        """Changes of the metric of every pair, nats, by the pairs' ids."""
        return Observations(raw, cells, tuple(pair.id for pair in self.pairs), "pair")

    def part(self, which: slice) -> "PreparedPairs":
        """Some of the pairs."""
        return replace(
            self,
            **{name: getattr(self, name)[which] for name in ("runs", "tokens", "pairs", "clean", "corrupted")},
        )

    @torch.no_grad()
    def exact(self, number: int, site: Site, patches: Sequence[Patch]) -> list[float]:
        """Exact change of the metric of one pair under each patch, nats."""
        target = self.corrupted if self.mode == "denoising" else self.clean
        if not patches:
            return []
        scores = runner_of(self.model).patching(self.runs[number], site).scores(patches)
        return (scores.cpu() - target[number]).tolist()

    def rows(self, number: int, site: Site, patches: Sequence[Patch], raw: Sequence[float]) -> list[dict]:
        """Rows of one pair for `averaged`."""
        of_pair = rows_of(patches, raw, self.tokens[number], self.runs[number].first)
        return [{"site": site, "pair": number, **row} for row in of_pair]


def prepare_pairs(model, pairs: Pairs, metric: Metric, mode: Mode) -> PreparedPairs:
    """Pairs made ready, and their scores.

    Raises:
        MechrefusalError: no pairs, none of equal length, an unknown mode, or a metric that is none.
    """
    require_mode(mode)
    reader = MetricReader.of(metric)
    usable, left_out = usable_pairs(model, pairs)
    runs, tokens, clean, corrupted = [], [], [], []
    for number, pair in enumerate(usable):
        run, texts = oriented(model, pair, reader, mode)
        ready = runner_of(model).patching(run, "z")
        source, target = (score.cpu() for score in unpatched_scores(ready, reader, check=number == 0))
        runs.append(run)
        tokens.append(texts)
        clean.append(source if mode == "denoising" else target)
        corrupted.append(target if mode == "denoising" else source)
    scores = torch.stack(clean), torch.stack(corrupted)
    return PreparedPairs(model, tuple(runs), tuple(tokens), tuple(usable), *scores, left_out, mode)


def averaged(runs: PreparedPairs, rows: Sequence[dict], name: str) -> tuple[pd.DataFrame, Observations]:
    """Mean over pairs of every cell: `CELL`, token, `name` (nats), low, high (95% t interval over pairs), n.

    Cells that come before the first difference of all pairs are left out, as they are zero. With it the values of every
    pair.
    """
    means = [
        {
            **dict(zip(CELL, cell.key, strict=True)),
            "token": cell.token,
            **cell.estimate.columns(name, ""),
            "n": cell.estimate.n,
        }
        for cell in cells(rows, CELL)
    ]
    table = pd.DataFrame(means, columns=[*CELL, "token", name, "low", "high", "n"]).astype({"position": "Int64"})
    by_pair = pd.DataFrame(rows, columns=["pair", *CELL, "raw"])
    by_pair["pair"] = [runs.pairs[number].id for number in by_pair["pair"]]
    return table, Observations.of_rows(by_pair, CELL, unit="pair", value="raw")


def position_of(patch: Patch, n_tokens: int) -> int | None:
    """Position of a patch as tables have it: counted from the end, or None for all."""
    return None if patch.position is None else patch.position - n_tokens


def largest(values: pd.Series, k: int) -> np.ndarray:
    """Labels of the `k` largest absolute values, largest first; NaN never."""
    return values.abs().dropna().sort_values(ascending=False, kind="stable").index[:k].to_numpy()
