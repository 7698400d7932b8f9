"""What activations of one checkpoint do in another, prompt by prompt: effects, controls, and the table of both."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechrefusal.causal.patching.pair_runs import SMALLEST_GAP
from mechrefusal.statistics import Estimate, Observations, Observed, intervals
from mechrefusal.statistics.maps import among_controls_p, sign_flip_p

NORMED = "attention's output is normed before it is added here, so that a head has no result of its own; use site z"


@dataclass(frozen=True)
class CrossPatching(Observed):
    """Patches of a source's activations into a target.

    Fields:
        observations: change of the target's score by every prompt and patch, nats; NaN for a patch that the
            architecture does not allow. Axes: site, layer, head (−1 where there is none); or order and k.
        controls: the same for every draw of the control, axis `draw` first; None where none is meant.
        source_scores, target_scores: of every prompt without any patch, nats.
    """

    observations: Observations
    controls: Observations | None
    source_scores: Float[np.ndarray, " prompt"]
    target_scores: Float[np.ndarray, " prompt"]

    def effect(self, **axes) -> Estimate:
        """(m_patched − m_target) / (m_source − m_target) of one patch, of means over prompts, with its 95% interval.

        The interval is linearised (Cochran, "Sampling techniques", 1977, section 6.4). NaN where the two scores differ
        by less than `causal.patching.SMALLEST_GAP` in the mean.
        """
        return self._effect(self.observations.of(**axes))

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a patch: its axes, and the columns that `patch_across` names."""
        raw = np.ascontiguousarray(self.observations.values.T)
        n_prompts, n_cells = self.observations.values.shape
        shape = (n_prompts, -1, n_cells)
        controls = None if self.controls is None else self.controls.values.reshape(shape).transpose(2, 1, 0)
        rows = []
        for cell in range(n_cells):
            by_draw = np.empty((0, n_prompts)) if controls is None else np.ascontiguousarray(controls[cell])
            rows.append(self._row(raw[cell], by_draw[~np.isnan(by_draw).any(axis=1)]))
        table = pd.concat([self.observations.cells, pd.DataFrame(rows)], axis=1)
        if controls is None:
            return table.drop(columns=[name for name in table if name.startswith("control")])
        table["p"] = float("nan")
        for _, cells in table.groupby("site"):
            table.loc[cells.index, "p"] = _adjusted(raw[cells.index], controls[cells.index])
        return table

    def _row(self, change: Float[np.ndarray, " prompt"], by_draw: Float[np.ndarray, "draw prompt"]) -> dict:
        change = change[~np.isnan(change)]
        raw, effect = intervals.mean(change), self._effect(change)
        control = intervals.mean(by_draw.mean(0) if by_draw.size else [])
        gap = float((self.source_scores - self.target_scores).mean())
        reasons = [] if len(change) else [NORMED]
        if not reasons and not abs(gap) >= SMALLEST_GAP:
            reasons.append(
                f"source and target score differ by {gap:.3g} nats, less than {SMALLEST_GAP}, and an effect is a share "
                "of that difference"
            )
        if len(change) == 1:
            reasons.append("one prompt gives no interval")
        size = float(np.sqrt((by_draw.mean(1) ** 2).mean())) if by_draw.size else float("nan")
        return {
            **raw.columns("raw", ""),
            **effect.columns("effect"),
            **control.columns("control"),
            "control_size": size,
            "source_score": float(self.source_scores.mean()),
            "target_score": float(self.target_scores.mean()),
            "n": len(self.source_scores),
            "reason": "; ".join(reasons),
        }

    def _effect(self, change: Float[np.ndarray, " prompt"]) -> Estimate:
        gaps = self.source_scores - self.target_scores
        known = len(change) and abs(gaps.mean()) >= SMALLEST_GAP
        return intervals.ratio(change, gaps) if known else intervals.mean([])


@dataclass(frozen=True)
class BothDirections(Observed):
    """`by_pair`: patches from one checkpoint into another by (source, target), both ways."""

    by_pair: Mapping[tuple[str, str], CrossPatching]

    @property
    def observations(self) -> Observations:  # type: ignore[override]
        """Those of both directions, with axis `source` first."""
        return Observations.joined(
            [result.observations for result in self.by_pair.values()], "source", [source for source, _ in self.by_pair]
        )

    @property
    def table(self) -> pd.DataFrame:
        """Their tables one after another, with columns source and target (names) in front."""
        parts = []
        for (source, target), result in self.by_pair.items():
            named = result.table.assign(source=source, target=target)
            parts.append(named[["source", "target", *result.table.columns]])
        return pd.concat(parts, ignore_index=True)


def _adjusted(
    raw: Float[np.ndarray, "cell prompt"], controls: Float[np.ndarray, "cell draw prompt"]
) -> Float[np.ndarray, " cell"]:
    """p of each patch of a site: that it is one more of its own controls, on these prompts and on others.

    The larger of two, each adjusted for all of the patches: among the controls (`maps.among_controls_p`), and over the
    prompts (`maps.sign_flip_p` of what it does beyond its mean control).
    """
    p = np.full(len(raw), np.nan)
    if controls.shape[1]:
        raw, controls = np.ascontiguousarray(raw), np.ascontiguousarray(controls)
        known = np.flatnonzero(np.isfinite(raw).all(axis=1))
        among = among_controls_p(raw[known].mean(axis=1), np.ascontiguousarray(controls[known].mean(axis=2).T))
        over = sign_flip_p(np.ascontiguousarray((raw[known] - controls[known].mean(axis=1)).T))
        p[known] = np.maximum(among, over)
    return p
