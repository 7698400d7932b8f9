"""Plotly figures of tables: each function takes a tidy table and returns a figure.

The tables' schema is `mechrefusal.tables`; a table that was made otherwise needs columns of its dtypes. Signed values
are drawn on a diverging red-blue scale centred at zero (colour-blind safe, ColorBrewer RdBu), positive red; unsigned
ones on Cividis. Arms have the colours of Okabe and Ito. A table that cannot be drawn raises `MechrefusalError`. Results
of measures that hold their table (`.table`) are drawn as they are:
`figures.layer_by_head(mr.causal.patching.heads(model, pairs, metric))`.

What a figure shows, its unit and a definition stand in `catalogue.yaml` (`figures.describe()`), and in `layout.meta` of
every figure. `figures.save(figure, "heads.svg")` writes one to a file, `figures.maps` gives the maps of many
checkpoints as JSON.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from mechrefusal.report.figures.attribution import attribution_difference, mlps, token_segments, top_components
from mechrefusal.report.figures.behaviour import durations, interventions, scores, trajectory
from mechrefusal.report.figures.by_layer import doses, faithfulness, linear_probes, logit_lens
from mechrefusal.report.figures.carrier_scores import CARRIER_SCORES, carrier_layers, carrier_wins, carriers
from mechrefusal.report.figures.catalogue import describe
from mechrefusal.report.figures.circuits import circuit
from mechrefusal.report.figures.costs import step_costs, step_time
from mechrefusal.report.figures.cross_patches import cross_patching, cross_patching_layers
from mechrefusal.report.figures.directions import effective_rank, smallest_k, subspaces, zero_distances
from mechrefusal.report.figures.durability import (
    removal,
    removal_curves,
    update_directions,
    update_ranks,
    update_scales,
)
from mechrefusal.report.figures.durability_rates import answer_length, harmful_fine_tuning, prefilled, refusal_places
from mechrefusal.report.figures.forest import estimates, estimates_by_layer, estimates_over_steps
from mechrefusal.report.figures.frontier_points import frontier
from mechrefusal.report.figures.heads import attribution_patching, head_lines, shared_heads
from mechrefusal.report.figures.heatmaps import layer_by_head, layer_by_position
from mechrefusal.report.figures.knockouts import head_set, knockout, knockout_cost, knockout_mlps
from mechrefusal.report.figures.lockstep_patching import lockstep
from mechrefusal.report.figures.methods import carrier_angles, method_differences, separability
from mechrefusal.report.figures.movement import drift, drift_by_layer, transfer
from mechrefusal.report.figures.saving import save
from mechrefusal.report.figures.slider import maps
from mechrefusal.report.figures.story import depth_story
from mechrefusal.report.figures.stress import stress_curves, stress_matrix, stress_shares
from mechrefusal.report.figures.suites import answer_losses, probes, rates, suite_categories, suite_differences
from mechrefusal.report.figures.training import (
    attack_exchange,
    attack_loss,
    cases_refreshed,
    logged,
    loss_term,
    losses,
    pool_age,
)

__all__ = [
    "CARRIER_SCORES", "answer_length", "answer_losses", "attack_exchange", "attack_loss", "attribution_difference",
    "attribution_patching", "carrier_angles", "carrier_layers", "carrier_wins", "carriers", "cases_refreshed",
    "circuit", "cross_patching", "cross_patching_layers", "depth_story", "describe", "doses", "drift", "drift_by_layer",
    "durations", "effective_rank", "estimates", "estimates_by_layer", "estimates_over_steps", "faithfulness",
    "frontier", "harmful_fine_tuning", "head_lines", "head_set", "interventions", "knockout", "knockout_cost",
    "knockout_mlps", "layer_by_head", "layer_by_position", "linear_probes", "lockstep", "logged", "logit_lens",
    "loss_term", "losses", "maps", "method_differences", "mlps", "pool_age", "prefilled", "probes", "rates",
    "refusal_places", "removal", "removal_curves", "save", "scores", "separability", "shared_heads", "smallest_k",
    "step_costs", "step_time", "stress_curves", "stress_matrix", "stress_shares", "subspaces", "suite_categories",
    "suite_differences", "token_segments", "top_components", "trajectory", "transfer", "update_directions",
    "update_ranks", "update_scales", "zero_distances",
]  # fmt: skip


def _of_results(draw: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(draw)
    def figure_of(table: Any, *args: Any, **named: Any) -> Any:
        return draw(getattr(table, "table", table), *args, **named)

    return figure_of


_NOT_OF_TABLES = ("CARRIER_SCORES", "describe", "maps", "save")
globals().update({name: _of_results(globals()[name]) for name in __all__ if name not in _NOT_OF_TABLES})
