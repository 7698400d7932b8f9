"""What the index shows of how refusal's place moves: verdicts, transfer, drift, and the geometry over steps."""

from functools import partial
from typing import Any

import pandas as pd

from mechrefusal.report import figures, findings, wording
from mechrefusal.report.figures.forest import NONE, layered
from mechrefusal.report.panels import Panel, Panels
from mechrefusal.report.reading import MeasuredRun


def context(run: MeasuredRun, panels: Panels) -> dict[str, Any]:
    """Everything that the template `movement.html` needs."""
    return {
        "relocations": findings.relocations(run.across["relocation"]),
        "power": findings.powers(run.across["power"]),
        "says_what_decides": findings.says_what_decides(run.across["relocation"]),
        "transfers": _transfers(run.across["transfer"], panels),
        "transfer_reasons": findings.reasons(run.across["transfer"], "bypass"),
        "drift": _drift(run.across["drift"], panels),
        "drift_reasons": findings.reasons(run.across["drift"]),
        "geometry": _geometry(run, panels),
        "ranks": _ranks(run.across["effective_rank"], panels),
        "rank_reasons": findings.reasons(run.across["effective_rank"]),
    }


def _transfers(table: pd.DataFrame, panels: Panels) -> list[Panel]:
    titles = {"bypass": "What ablation takes away", "induce": "What putting it in reaches"}
    return [
        panels.add(partial(figures.transfer, table, effect=effect), title=title)
        for effect, title in titles.items()
        if len(table)
    ]


def _drift(table: pd.DataFrame, panels: Panels) -> tuple[list[Panel], list[Panel]]:
    """Lines over steps, and heatmaps by layer for the measures that were taken at every layer."""
    lines, maps = [], []
    for measure in dict.fromkeys(table["measure"]):
        title = wording.metric_name(measure).capitalize()
        lines.append(panels.add(partial(figures.drift, table, measure=measure), title=title))
        by_layer = table[(table["measure"] == measure) & (table["layer"] >= 0)]
        if by_layer["layer"].nunique() > 1:
            maps.append(panels.add(partial(figures.drift_by_layer, table, measure=measure), title=f"{title} by layer"))
    return lines, maps


def _geometry(run: MeasuredRun, panels: Panels) -> list[Panel]:
    """Trajectories of the smallest subspace, the utility coupling, the overlap and the coupling."""
    drawn = []
    if len(subspaces := run.together("subspaces")):
        drawn.append(panels.add(partial(figures.smallest_k, subspaces), title="Directions that are enough"))
    utility = run.together("utility_coupling")
    for intervention, measure in dict.fromkeys(utility[["intervention", "measure"]].itertuples(index=False, name=None)):
        draw = partial(figures.estimates_over_steps, utility, measure=measure, intervention=intervention)
        title = f"{wording.plain(intervention)}: {wording.metric_name(str(measure))}".capitalize()
        drawn.append(panels.add(draw, title=title))
    for name in ("overlap", "coupling"):
        table = run.together(name)
        of_layers = layered(table)
        for measure in dict.fromkeys(table["measure"]):
            own = table[table["measure"] == measure]
            if measure in of_layers and not (own["layer"] == NONE).any():
                continue  # on the checkpoints' pages, layer by layer
            title = wording.metric_name(str(measure)).capitalize()
            drawn.append(panels.add(partial(figures.estimates_over_steps, table, measure=measure), title=title))
    return drawn


def _ranks(table: pd.DataFrame, panels: Panels) -> list[Panel]:
    found = dict.fromkeys(table["rows"])
    return [panels.add(partial(figures.effective_rank, table, rows=rows), title=f"Rows: {rows}") for rows in found]
