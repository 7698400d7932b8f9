"""Subspaces scored as refusal carriers: each ablated and put in, and the smallest that does the work.

`score_subspaces` ablates every family at every size, and `choose` names the smallest admissible subspace that takes
away 90% of what the best one does. A cone is another claim than a subspace: that every direction in it carries refusal
by itself. So cones are scored by directions drawn from them, one at a time (Wollschläger et al., 2502.17420): the span
of r and anything else answers once it is ablated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Carrier, Direction, direction_of, require_weights
from mechrefusal.geometry import carriers
from mechrefusal.geometry.contrast import Contrast
from mechrefusal.geometry.scoring import Scorer
from mechrefusal.geometry.span_scores import SAMPLES, SpanScorer, Subspace
from mechrefusal.geometry.subspaces import LARGEST, RANDOM, RANDOM_CONE
from mechrefusal.models import require_layers
from mechrefusal.progress import track
from mechrefusal.statistics import Observations, Observed, intervals
from mechrefusal.statistics.choosing import FLAGS, PUBLISHED, Admissible

FLOORS = (RANDOM, RANDOM_CONE)
"""Families that are floors: they are never the best, nor the smallest. `random_cone` has r in its first row."""
CONES = ("cone", RANDOM_CONE)
"""Families that are scored by directions drawn from them, from two rows on."""
ENOUGH = 0.9
"""Share of the best drop of the refusal score that the smallest subspace must reach."""


@dataclass(frozen=True)
class Subspaces(Observed):
    """`table`: one row a family and k, as `choose` returns it. `baseline`: the harmful prompts without intervention.

    `observations`: every prompt's score; axes family, k and measure (bypass of the harmful prompts, induce and kl of
    the harmless ones). Of a cone they are means over the directions drawn from it.
    """

    table: pd.DataFrame
    baseline: intervals.Estimate
    observations: Observations

    def _estimate(self, cell: pd.Series, values: Float[np.ndarray, " prompt"], confidence: float) -> intervals.Estimate:
        mean = intervals.skewed_mean if cell["measure"] == "kl" else intervals.mean
        return mean(values, confidence=confidence)

    def top(self, k: int) -> pd.DataFrame:
        """The `k` rows of the table with the lowest bypass, admissible ones first."""
        return self.table.sort_values(["admissible", "bypass"], ascending=[False, True], kind="stable").head(k)

    @property
    def smallest(self) -> pd.Series | None:
        """The smallest admissible subspace that reaches 90% of the best drop; None where none is admissible."""
        rows = self.table[self.table["smallest"]]
        return None if rows.empty else rows.iloc[0]


@torch.no_grad()
def score_subspaces(
    model,
    subspaces: Sequence[Subspace],
    validation: Contrast,
    metric: RefusalMetric,
    *,
    difference: Direction | Carrier,
    admissible: Admissible = PUBLISHED,
    largest: int = LARGEST,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Subspaces:
    """Score every family at k = 1 to `largest` on validation prompts.

    bypass: mean refusal score on the harmful prompts with the subspace ablated. kl: mean KL(base ‖ ablated) of the
    next-token distribution on the harmless prompts, nats. induce: mean refusal score on the harmless prompts with
    QQᵀr, the part of the difference in means r in the subspace, added at its layer at the length of r: every family
    gets the same dose, the random one too (as 2502.17420 scales its directions). What two families have in common is
    scored once. Where the reference of r is the harmless mean, a subspace is ablated to it instead of to zero, and
    induce sets it to the harmful mean.

    Cones (`CONES`) are scored so at k = 1 only. At any other k `samples` directions v are drawn from the cone, each
    ablated by itself and put in by itself: ‖r‖ · v added, or with the harmless mean as reference the part along v set
    to that of the harmful mean, which asks for as much of v as harmful prompts have. bypass, induce and kl are means
    over the directions (intervals over prompts, each prompt's mean), `bypass_worst` and `kl_worst` the highest mean
    over prompts of a direction, `induce_worst` the lowest. A direction is admissible by itself where its kl and induce
    are, and where ablating it lowers the score by `ALONE` at least of what ablating r does: with r in a cone its mean
    tells little. The cone is admissible where all of them are; `share_admissible` is how many.

    Args:
        difference: the difference in means r, with the place and the reference that all are scored at.
        samples, seed: directions drawn from a cone of a size, the same combinations for every cone.

    Returns:
        Rows of the table `subspaces`, every family at every k. A family that has no k directions, or directions that
        are not finite, has rows of NaN that say so in `reason`. `n` counts harmful prompts.

    Raises:
        MechrefusalError: no harmful or no harmless prompts, a layer that the model lacks, directions of another width
            or of other weights.
    """
    r = direction_of(difference)
    layer = r.require_layer()
    require_layers(model, [layer])
    require_weights(model, r.weights, r.name)
    for family, rows_of_family in [("difference", r.vector[None]), *((s.family, s.basis) for s in subspaces)]:
        if rows_of_family.shape[-1] != model.cfg.d_model:
            raise MechrefusalError(
                f"directions of '{family}' are of width {rows_of_family.shape[-1]}, the model of {model.cfg.d_model}; "
                "take them from this model"
            )
    if samples < 1:
        raise MechrefusalError(f"directions drawn from a cone are {samples}: give at least 1")
    scorer = Scorer(model, validation, metric)
    baseline = intervals.mean(scorer.base.harmful.tolist())
    span_scorer = SpanScorer(scorer, r, admissible, samples=samples, seed=seed)
    cases = [(subspace, k) for subspace in subspaces for k in range(1, largest + 1)]
    rows, cells = [], {}
    for subspace, k in track(cases, "scoring subspaces"):
        of = span_scorer.cone if subspace.family in CONES and k > 1 else span_scorer.span
        scores = of(subspace, k)
        rows.append({"family": subspace.family, "k": k, "position": r.position, "layer": layer, **scores.columns})
        for measure, side in (("bypass", "harmful"), ("induce", "harmless"), ("kl", "harmless")):
            if len(values := getattr(scores, measure)):
                cells[subspace.family, k, measure] = side, values
    table = choose(pd.DataFrame(rows), baseline=baseline.value, n_layers=model.cfg.n_layers, admissible=admissible)
    sizes = {"harmful": scorer.n_harmful, "harmless": scorer.n_harmless}
    return Subspaces(table, baseline, Observations.of_sides(sizes, cells, ("family", "k", "measure")))


def choose(scores: pd.DataFrame, *, baseline: float, n_layers: int, admissible: Admissible = PUBLISHED) -> pd.DataFrame:
    """Judge scored subspaces as carriers are judged (`carriers.select`), and mark the smallest that is enough.

    share_of_best = (baseline − bypass) / (baseline − lowest admissible bypass of all families but `FLOORS`). A cone of
    which not all drawn directions are admissible by themselves (`share_admissible` below 1) is not admissible.
    `smallest` is True for one row: the admissible one with the smallest k, then the lowest bypass, that reaches 90%.
    Where nothing is admissible, or nothing admissible lowers the score, shares are NaN and `reason` says so.

    Args:
        scores: columns family, k, position, layer, bypass, induce, kl, reason, and any others; of cones `n_sampled` and
            `share_admissible`.
        baseline: mean refusal score of the harmful prompts without intervention, nats.
    """
    table = carriers.select(scores, n_layers, admissible).table.drop(columns=[*FLAGS, "winner"])
    if "share_admissible" in table:
        for row in table.index[(table["n_sampled"] > 0) & ~(table["share_admissible"] >= 1)]:
            n, share = int(table.loc[row, "n_sampled"]), table.loc[row, "share_admissible"]
            why = f"{round(n * (1 - share))} of {n} directions of the cone are not admissible by themselves"
            table.loc[row, "rejected_because"] = "; ".join(filter(None, (table.loc[row, "rejected_because"], why)))
            table.loc[row, "admissible"] = False
    eligible = table[table["admissible"] & ~table["family"].isin(FLOORS)]
    drop, missing = baseline - table["bypass"], ""
    if eligible.empty:
        missing = "no subspace is admissible"
    elif not (best := baseline - eligible["bypass"].min()) > 0:
        missing = "no admissible subspace lowers the refusal score"
    table["smallest"] = False
    if missing:
        table["share_of_best"] = float("nan")
        table["reason"] = ["; ".join(filter(None, (reason, missing))) for reason in table["reason"]]
        return table
    table["share_of_best"] = drop / best
    enough = eligible[table.loc[eligible.index, "share_of_best"] >= ENOUGH]
    table.loc[enough.sort_values(["k", "bypass"], kind="stable").index[0], "smallest"] = True
    return table
