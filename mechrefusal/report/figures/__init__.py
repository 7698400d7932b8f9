"""Plotly figures of the study's tables: each function takes a tidy table and returns a figure.

The tables' schema is `mechrefusal.study.tables`. Signed values are drawn on a diverging red-blue scale centred at zero
(colour-blind safe, ColorBrewer RdBu), positive red; unsigned ones on Cividis. Arms have the colours of Okabe and Ito. A
table that cannot be drawn raises `MechrefusalError`.
"""

from mechrefusal.report.figures.attacks import attack_exchange, attack_loss, cases_refreshed, pool_age
from mechrefusal.report.figures.bars import durations, interventions, mlps, scores
from mechrefusal.report.figures.costs import step_costs, step_time
from mechrefusal.report.figures.drift import drift, drift_by_layer
from mechrefusal.report.figures.heatmaps import carriers, layer_by_head, layer_by_position
from mechrefusal.report.figures.lines import carrier_layers, effective_rank, probes, rates, trajectory
from mechrefusal.report.figures.training import logged, loss_term, losses

__all__ = [
    "attack_exchange",
    "attack_loss",
    "carrier_layers",
    "carriers",
    "cases_refreshed",
    "drift",
    "drift_by_layer",
    "durations",
    "effective_rank",
    "interventions",
    "layer_by_head",
    "layer_by_position",
    "logged",
    "loss_term",
    "losses",
    "mlps",
    "pool_age",
    "probes",
    "rates",
    "scores",
    "step_costs",
    "step_time",
    "trajectory",
]
