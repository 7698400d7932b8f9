"""Refusal carriers: candidate directions scored by what ablating and adding them does, and the choice among them.

Scores and the rule of selection are those of Arditi et al. (2406.11717, section 2.3 and appendix C).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.causal import interventions
from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry.directions import Contrast, Directions
from mechrefusal.models import RefusalMetric
from mechrefusal.progress import track

COLUMNS = ("position", "layer", "bypass", "induce", "kl")
EPSILON = 1e-6
"""Inside each logarithm of the KL divergence, as in the reference implementation."""


@dataclass(frozen=True)
class Selection:
    """`table`: every candidate with `admissible` and `rejected_because`; `winner`: a row of it, or None."""

    table: pd.DataFrame
    winner: pd.Series | None


def candidates(directions: Directions, *, layers: Sequence[int], positions: Sequence[int] | None = None) -> list[dict]:
    """The (position, layer) pairs to score: `positions` (all by default) × `layers`."""
    wanted = directions.positions if positions is None else [p for p in positions if p in directions.positions]
    return [{"position": position, "layer": layer} for position in wanted for layer in layers]


def score(
    model,
    directions: Directions,
    validation: Contrast,
    metric: RefusalMetric,
    *,
    rows: Sequence[dict] | None = None,
) -> pd.DataFrame:
    """Score candidate directions on validation prompts.

    bypass: mean refusal score on the harmful prompts with the direction ablated. induce: mean refusal score on the
    harmless prompts with it added at its layer. kl: mean KL(base ‖ ablated) of the next-token distribution on the
    harmless prompts, nats.

    Args:
        rows: (position, layer) pairs to score, from `candidates`; by default all that `select` could admit.

    Returns:
        One row a candidate: position, layer, bypass, induce, kl. A candidate that cannot be scored (a direction that is
        zero or not finite, as at layer 0 where the template's tokens are all alike) has NaN in all three.
    """
    _same_weights(model, directions)
    if rows is None:
        rows = candidates(directions, layers=range(last_layer(model.cfg.n_layers)))
    harmful, harmless = (
        prompts.prompt_ids(model.tokenizer, texts) for texts in (validation.harmful, validation.harmless)
    )
    if not harmful or not harmless:
        raise MechrefusalError("carriers need harmful and harmless validation prompts; one of the two sets is empty")
    pad, device = model.tokenizer.pad_token_id, str(model.cfg.device)
    both = metric.batch(harmful + harmless, pad=pad, device=device)
    only_harmless = metric.batch(harmless, pad=pad, device=device)
    base = metric.score_and_next(model, only_harmless)[1]
    scored = []
    for row in track(rows, "scoring carriers"):
        direction = directions.at(row)
        layer = int(row["layer"])
        found: dict[str, float] = {"position": int(row["position"]), "layer": layer}
        if not torch.isfinite(direction).all() or direction.norm() == 0:
            scored.append({**found, "bypass": float("nan"), "induce": float("nan"), "kl": float("nan")})
            continue
        with interventions.ablate(model, direction):
            refusal, following = metric.score_and_next(model, both)
        with interventions.add(model, direction, layer=layer):
            induced = metric.score(model, only_harmless)
        found["bypass"] = refusal[: len(harmful)].mean().item()
        found["induce"] = induced.mean().item()
        found["kl"] = kl_divergence(base, following[len(harmful) :]).mean().item()
        scored.append(found)
    return pd.DataFrame(scored, columns=list(COLUMNS))


def select(
    scores: pd.DataFrame,
    n_layers: int,
    kl_threshold: float = 0.1,
    induce_threshold: float = 0.0,
    prune_layer_fraction: float = 0.2,
) -> Selection:
    """Choose the carrier among scored candidates: the admissible one with the lowest bypass score.

    Admissible: no score is NaN, layer < int((1 − prune_layer_fraction) · n_layers), kl ≤ kl_threshold and
    induce ≥ induce_threshold. Ties go to the earlier layer, then to the earlier position.

    Args:
        scores: a table with columns position, layer, bypass, induce, kl, from `score` or from elsewhere.
        n_layers: layers of the model.
        kl_threshold: nats.

    Raises:
        MechrefusalError: a missing column.
    """
    if missing := [name for name in COLUMNS if name not in scores]:
        raise MechrefusalError(f"table of carrier scores lacks columns {missing}; it needs {list(COLUMNS)}")
    table = scores.reset_index(drop=True).copy()
    limit = last_layer(n_layers, prune_layer_fraction)
    reasons = []
    for row in table.itertuples():
        why = []
        if pd.isna([row.bypass, row.induce, row.kl]).any():
            why.append("a score is NaN")
        if row.layer >= limit:
            why.append(f"layer {int(row.layer)} is not below {limit}")
        if row.kl > kl_threshold:
            why.append(f"kl {row.kl:.3g} > {kl_threshold:g}")
        if row.induce < induce_threshold:
            why.append(f"induce {row.induce:.3g} < {induce_threshold:g}")
        reasons.append("; ".join(why))
    table["admissible"] = pd.Series([not why for why in reasons], dtype=bool)
    table["rejected_because"] = pd.Series(reasons, dtype=object)
    admitted = table[table["admissible"]].sort_values(["bypass", "layer", "position"], kind="stable")
    return Selection(table, None if admitted.empty else table.loc[admitted.index[0]])


def last_layer(n_layers: int, prune_layer_fraction: float = 0.2) -> int:
    """First layer that is too late for a carrier: int((1 − prune_layer_fraction) · n_layers)."""
    # Rounded first: (1 − 0.2) · 5 is 4.0 in decimals but may fall short of it in binary.
    return int(round((1 - prune_layer_fraction) * n_layers, 9))


def kl_divergence(
    base: Float[Tensor, "prompt vocab"], other: Float[Tensor, "prompt vocab"]
) -> Float[Tensor, " prompt"]:
    """KL(base ‖ other) in nats from log-probabilities, with `EPSILON` inside each logarithm; float64."""
    p, q = base.double().exp(), other.double().exp()
    return (p * (torch.log(p + EPSILON) - torch.log(q + EPSILON))).sum(-1)


def _same_weights(model, directions: Directions) -> None:
    weights = getattr(model, "weights", "")
    if directions.weights and weights and directions.weights != weights:
        raise MechrefusalError(
            f"directions of weights {directions.weights} cannot be scored on weights {weights}; "
            "take the directions of this checkpoint"
        )
