"""The mean loss of each term since the last log, over all micro-batches and processes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class TermMeans:
    """Sums of losses and numbers of tokens by term, added up until they are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def count(self, name: str, loss: Tensor, n_tokens: int) -> None:
        """Add the summed loss of `n_tokens` tokens to term `name`."""
        share = torch.stack([loss.double(), loss.new_tensor(float(n_tokens), dtype=torch.double)])
        self._sums[name] = self._sums[name] + share if name in self._sums else share

    def take(self, names: Sequence[str], accelerator: Any) -> dict[str, float]:
        """The mean of each term over all processes, NaN for one without tokens; every process gives the same names."""
        nothing = torch.zeros(2, dtype=torch.double, device=accelerator.device)
        sums, self._sums = self._sums, {}
        totals = {name: accelerator.reduce(sums.get(name, nothing), reduction="sum").tolist() for name in names}
        return {name: total / n_tokens if n_tokens else math.nan for name, (total, n_tokens) in totals.items()}
