"""What attribution patching and circuits share with exact patching: pairs ready to run, cells, and their averages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal import intervals
from mechrefusal.causal.patch_hooked import HookedPatching
from mechrefusal.causal.patch_metric import Metric, Reading
from mechrefusal.causal.patch_sites import MEMORY, PairRun, Patch, Site
from mechrefusal.causal.patch_twin import tree_patching
from mechrefusal.causal.patching import SMALLEST_GAP, Mode, Pairs, _lengths, _pair_set, _rows, _run
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import Pair

CELL = ["site", "layer", "head", "position"]
"""What names one patch over several pairs; positions count from the end of the prompt, as in `patching`."""


@dataclass(frozen=True)
class Runs:
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
    left_out: tuple[tuple[str, int, int], ...]
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

    def part(self, which: slice) -> "Runs":
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
        found = _ready(self.model, self.runs[number], site).scores(patches)
        return (found.cpu() - target[number]).tolist()

    def rows(self, number: int, site: Site, patches: Sequence[Patch], raw: Sequence[float]) -> list[dict]:
        """Rows of one pair for `averaged`."""
        made = _rows(patches, raw, self.tokens[number], self.runs[number].first)
        return [{"site": site, "pair": number, **row} for row in made]


def ready(model, pairs: Pairs, metric: Metric, mode: Mode) -> Runs:
    """Pairs made ready, and their scores.

    Raises:
        MechrefusalError: no pairs, none of equal length, an unknown mode, or a metric that is none.
    """
    if mode not in ("denoising", "noising"):
        raise MechrefusalError(f"unknown mode of patching '{mode}'; use 'denoising' or 'noising'")
    reading, made = Reading.of(metric), _pair_set(pairs)
    if len(made) == 0:
        raise MechrefusalError("no pairs to patch; give at least one harmful prompt with a harmless one")
    usable = made.equal_length(model.tokenizer)
    left_out = tuple((pair.id, a, b) for pair, a, b in usable.left_out)
    if len(usable) == 0:
        raise MechrefusalError(
            f"none of {len(made)} pairs has equal token length under this tokenizer{_lengths(left_out)}; give other "
            "pairs"
        )
    runs, tokens, clean, corrupted = [], [], [], []
    for number, pair in enumerate(usable):
        run, texts = _run(model, pair, reading, mode)
        unpatched = _ready(model, run, "head_z").unpatched()
        if number == 0:
            reading.check(unpatched)
        source, target = reading.score(unpatched).cpu()
        runs.append(run)
        tokens.append(texts)
        clean.append(source if mode == "denoising" else target)
        corrupted.append(target if mode == "denoising" else source)
    scores = torch.stack(clean), torch.stack(corrupted)
    return Runs(model, tuple(runs), tuple(tokens), tuple(usable), *scores, left_out, mode)


def averaged(rows: Iterable[dict], name: str) -> pd.DataFrame:
    """Mean over pairs of every cell: `CELL`, token, `name` (nats), low, high (95% t interval over pairs), n.

    Cells that come before the first difference of all pairs are left out, as they are zero.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in CELL), []).append(row)
    made = []
    for cell, group in groups.items():
        if all(row["shared"] for row in group):
            continue
        estimate = intervals.mean([row["raw"] for row in group])
        tokens = {row["token"] for row in group}
        made.append(
            {
                **dict(zip(CELL, cell, strict=True)),
                "token": tokens.pop() if len(tokens) == 1 else "·",
                name: estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "n": estimate.n,
            }
        )
    return pd.DataFrame(made, columns=[*CELL, "token", name, "low", "high", "n"])


def position_of(patch: Patch, n_tokens: int) -> int:
    """Position of a patch as tables have it."""
    return 0 if patch.position is None else patch.position - n_tokens


def largest(values: pd.Series, k: int) -> np.ndarray:
    """Labels of the `k` largest absolute values, largest first; NaN never."""
    return values.abs().dropna().sort_values(ascending=False, kind="stable").index[:k].to_numpy()


def _ready(model, run: PairRun, site: Site):
    found = tree_patching(model, run, site, memory=MEMORY)
    return found if found is not None else HookedPatching(model, run, site, memory=MEMORY)
