"""Plotly figures of tables: each function takes a tidy table and returns a figure.

The tables' schema is `mechrefusal.tables`; a table that was made otherwise needs columns of its dtypes. Signed values
are drawn on a diverging red-blue scale centred at zero (colour-blind safe, ColorBrewer RdBu), positive red; unsigned
ones on Cividis. Arms have the colours of Okabe and Ito. A table that cannot be drawn raises `MechrefusalError`. Results
of measures that hold their table (`.table`) are drawn as they are:
`figures.layer_by_head(mr.causal.patching.heads(model, pairs, metric))`.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from mechrefusal.report.figures.attacks import attack_exchange, attack_loss, cases_refreshed, pool_age
from mechrefusal.report.figures.attribution import attribution_difference, token_segments, top_components
from mechrefusal.report.figures.bars import durations, interventions, mlps, scores
from mechrefusal.report.figures.carrier_scores import SCORES as CARRIER_SCORES
from mechrefusal.report.figures.carrier_scores import carrier_layers, carrier_wins, carriers
from mechrefusal.report.figures.circuits import circuit
from mechrefusal.report.figures.costs import step_costs, step_time
from mechrefusal.report.figures.cross_patches import cross_patching, cross_patching_layers
from mechrefusal.report.figures.depth_story import depth_story
from mechrefusal.report.figures.differences import suite_differences
from mechrefusal.report.figures.dose_curves import doses
from mechrefusal.report.figures.drift_layers import drift, drift_by_layer
from mechrefusal.report.figures.faithfulness_curves import faithfulness
from mechrefusal.report.figures.forest import estimates, estimates_by_layer, estimates_over_steps
from mechrefusal.report.figures.frontier_points import frontier
from mechrefusal.report.figures.heads_in_common import shared_heads
from mechrefusal.report.figures.heatmaps import layer_by_head, layer_by_position
from mechrefusal.report.figures.knockouts import head_set, knockout, knockout_cost, knockout_mlps
from mechrefusal.report.figures.lens_layers import logit_lens
from mechrefusal.report.figures.lines import effective_rank, trajectory
from mechrefusal.report.figures.probe_layers import linear_probes
from mechrefusal.report.figures.screening import attribution_patching
from mechrefusal.report.figures.stress import stress_curves, stress_matrix
from mechrefusal.report.figures.stress_control import stress_shares
from mechrefusal.report.figures.subspace_scores import smallest_k, subspaces
from mechrefusal.report.figures.suites import answer_losses, probes, rates, suite_categories
from mechrefusal.report.figures.training import logged, loss_term, losses
from mechrefusal.report.figures.transfer_matrix import transfer
from mechrefusal.report.figures.zero import zero_distances

__all__ = [
    "CARRIER_SCORES",
    "answer_losses",
    "attack_exchange",
    "attack_loss",
    "attribution_difference",
    "attribution_patching",
    "carrier_layers",
    "carrier_wins",
    "carriers",
    "cases_refreshed",
    "circuit",
    "cross_patching",
    "cross_patching_layers",
    "depth_story",
    "doses",
    "drift",
    "drift_by_layer",
    "durations",
    "effective_rank",
    "estimates",
    "estimates_by_layer",
    "estimates_over_steps",
    "faithfulness",
    "frontier",
    "head_set",
    "interventions",
    "knockout",
    "knockout_cost",
    "knockout_mlps",
    "layer_by_head",
    "layer_by_position",
    "linear_probes",
    "logged",
    "logit_lens",
    "loss_term",
    "losses",
    "mlps",
    "pool_age",
    "probes",
    "rates",
    "scores",
    "shared_heads",
    "smallest_k",
    "step_costs",
    "step_time",
    "stress_curves",
    "stress_matrix",
    "stress_shares",
    "subspaces",
    "suite_categories",
    "suite_differences",
    "token_segments",
    "top_components",
    "trajectory",
    "transfer",
    "zero_distances",
]


def _of_results(draw: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(draw)
    def drawn(table: Any, *args: Any, **named: Any) -> Any:
        return draw(getattr(table, "table", table), *args, **named)

    return drawn


globals().update({name: _of_results(globals()[name]) for name in __all__ if callable(globals()[name])})
