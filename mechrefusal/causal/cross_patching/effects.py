"""From scores of prompts, unpatched and patched, to effects with intervals."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.patching.pair_runs import SMALLEST_GAP
from mechrefusal.statistics import intervals
from mechrefusal.statistics.maps import among_controls_p, sign_flip_p


class Scores:
    """Scores of all prompts, part by part, and the rows of the table made of them."""

    def __init__(self) -> None:
        self._source: list[Tensor] = []
        self._target: list[Tensor] = []
        self._patched: dict[int, list[Tensor]] = {}
        self._control: dict[int, list[Tensor]] = {}

    def add(self, source: Tensor, target: Tensor) -> None:
        """Scores of a part's prompts on the source and on the target as they are."""
        self._source.append(source)
        self._target.append(target)

    def patched(self, number: int, change: Tensor) -> None:
        """What patch `number` does to them."""
        self._patched.setdefault(number, []).append(change)

    def control(self, number: int, changes: Float[Tensor, "draw prompt"]) -> None:
        """What each draw of its control does."""
        self._control.setdefault(number, []).append(changes)

    def adjusted(self, numbers: Sequence[int]) -> np.ndarray:
        """p of each of these patches: that it is one more of its own controls, on these prompts and on others.

        The larger of two, each adjusted for all of the patches: among the controls (`maps.among_controls_p`), and over
        the prompts (`maps.sign_flip_p` of what it does beyond its mean control).
        """
        raw = [_all(self._patched, number) for number in numbers]
        turned = [_all(self._control, number) for number in numbers]
        found = np.full(len(numbers), np.nan)
        there = [i for i, (own, other) in enumerate(zip(raw, turned, strict=True)) if own.size and other.size]
        if there:
            controls = np.stack([turned[i].mean(axis=1) for i in there], axis=1)
            among = among_controls_p(np.array([raw[i].mean() for i in there]), controls)
            over = sign_flip_p(np.stack([raw[i] - turned[i].mean(axis=0) for i in there], axis=1))
            found[there] = np.maximum(among, over)
        return found

    def row(self, number: int) -> dict[str, float | int | str]:
        """What the table says of patch `number`."""
        source, target = torch.cat(self._source).double().numpy(), torch.cat(self._target).double().numpy()
        gap = float((source - target).mean())
        raw = _all(self._patched, number)
        turned = _all(self._control, number)
        control = intervals.mean(turned.mean(0) if turned.size else [])
        known = intervals.mean(raw)
        reasons = []
        if not len(raw):
            reasons.append(
                "attention's output is normed before it is added here, so that a head has no result of its own; "
                "use site z"
            )
        elif not abs(gap) >= SMALLEST_GAP:
            reasons.append(
                f"source and target score differ by {gap:.3g} nats, less than {SMALLEST_GAP}, and an effect is a share "
                "of that difference"
            )
        effect = intervals.ratio(raw, source - target) if not reasons else intervals.mean([])
        if len(raw) == 1:
            reasons.append("one prompt gives no interval")
        return {
            "raw": known.value,
            "low": known.low,
            "high": known.high,
            "effect": effect.value,
            "effect_low": effect.low,
            "effect_high": effect.high,
            "control": control.value,
            "control_low": control.low,
            "control_high": control.high,
            "control_size": float(np.sqrt((turned.mean(1) ** 2).mean())) if turned.size else float("nan"),
            "source_score": float(source.mean()),
            "target_score": float(target.mean()),
            "n": len(source),
            "reason": "; ".join(reasons),
        }


def _all(parts: dict[int, list[Tensor]], number: int) -> np.ndarray:
    """Of all prompts, which are the last dimension."""
    return torch.cat(parts[number], dim=-1).double().numpy() if number in parts else np.empty(0)
