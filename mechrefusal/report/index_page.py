"""What stands in `report/index.html`: the headline table and how everything moves over optimiser steps."""

from functools import partial
from typing import Any

from mechrefusal.report import (
    carrier_findings,
    crossing_section,
    figures,
    frontier_section,
    gate,
    headline,
    language,
    movement_section,
    training_page,
    wording,
)
from mechrefusal.report.order import checkpoint_order
from mechrefusal.report.panels import Panel, Panels
from mechrefusal.report.reading import MeasuredRun

_CARRIER_SCORES = {
    "bypass": ("Bypass of the carrier", "refusal score"),
    "induce": ("Induce of the carrier", "refusal score"),
    "kl": ("Divergence of the carrier", "KL (nats)"),
}


def context(run: MeasuredRun) -> dict[str, Any]:
    """Everything that the template `index.html` needs."""
    panels, lines = Panels(), headline.headlines(run)
    return {
        "run": run,
        "gate": gate.context(run),
        "lines": lines,
        "ablated_to": sorted({line.ablated_to for line in lines} - {wording.MISSING}),
        "asked_sets": headline.ASKED_SETS,
        "attacks": [(key, headline.attack_label(key)) for key in headline.attack_columns(lines)],
        "judges": headline.judges(lines),
        "models": sorted(
            run.across["checkpoints"].to_dict("records"), key=lambda row: checkpoint_order((row["arm"], row["step"]))
        ),
        "english": language.SAID,
        "language": language.of_measurements(run.checkpoints),
        "behaviour": _behaviour(run, panels, lines),
        "frontiers": frontier_section.of_run(run, panels),
        "carriers": _carriers(run, panels),
        **_effects(run),
        **_zero(run, lines, panels),
        **movement_section.context(run, panels),
        **crossing_section.context(run, panels),
        "training": training_page.total_loss(run, panels),
        "probes": training_page.probes(run, panels),
        "times": _times(run, panels),
    }


def _behaviour(run: MeasuredRun, panels: Panels, lines: list[headline.Headline]) -> list[Panel]:
    rates = run.together("rates")
    rates = rates[(rates["intervention"] == "none") & (rates["by"] == "all")]
    wanted = [(headline.REFUSAL_METRIC, name, "none") for name in headline.ASKED_SETS]
    wanted += [("answered", "utility", "none")]
    wanted += [(headline.ATTACK_METRIC, *key) for key in headline.attack_columns(lines)]
    drawn = []
    for metric, name, attack in wanted:
        rows = rates[(rates["metric"] == metric) & (rates["suite"] == name) & (rates["attack"] == attack)]
        look = {"suite": name, "metric": metric, "attack": attack}
        for judge in sorted(set(rows["judge"])):
            drawn.append(panels.add(partial(figures.rates, rows, judge=judge, **look)))
    return drawn


def _carriers(run: MeasuredRun, panels: Panels) -> list[Panel]:
    table = run.together("carrier")
    if not len(table):
        return []
    drawn = []
    for checkpoints in run.kinds:  # layers of unlike models have no axis in common
        own = run.together("carrier", among=checkpoints)
        depth = max((checkpoint.n_layers for checkpoint in checkpoints), default=0) or None
        if len(own):
            drawn.append(panels.add(partial(figures.carrier_layers, own, n_layers=depth)))
    if table["layer"].notna().any():
        for column, (title, unit) in _CARRIER_SCORES.items():
            drawn.append(
                panels.add(partial(figures.trajectory, table, value=column, title=title, unit=unit), title=title)
            )
    return drawn


def _effects(run: MeasuredRun) -> dict[str, Any]:
    """What interventions do to answers: one row a checkpoint and judge; only columns that hold something."""
    rows = [
        (f"{checkpoint.arm} {checkpoint.step}", found)
        for checkpoint in run.checkpoints
        for found in carrier_findings.effects(checkpoint.tables["rates"])
    ]
    known = {key for _, found in rows for key in found["cells"]}
    columns = [
        (kind, [(name, words) for name, words in names.items() if (kind, name) in known])
        for kind, names in carrier_findings.EFFECTS.items()
    ]
    return {
        "effects": rows,
        "effect_columns": [(f"{kind} prompts", kind, names) for kind, names in columns if names],
        "effect_judges": sorted({found["judge"] for _, found in rows}),
    }


def _zero(run: MeasuredRun, lines: list[headline.Headline], panels: Panels) -> dict[str, Any]:
    """How far zero lies from the harmless mean: a sentence for the last checkpoint of each arm, and by layer."""
    directions, carrier = run.together("directions"), run.together("carrier")
    last = {checkpoint.id for checkpoint in run.last_of_each_arm}
    words = [
        (line.checkpoint.label, carrier_findings.distance(line.zero.distance, of=line.zero.of))
        for line in lines
        if line.zero and line.checkpoint.id in last
    ]
    known = directions["zero_distance"].notna().any()
    draw = partial(figures.zero_distances, directions, carrier)
    return {
        "zero_words": [(label, said) for label, said in words if said],
        "zeros": [panels.add(draw, title="Where zero lies along the direction")] if known else [],
    }


def _times(run: MeasuredRun, panels: Panels) -> list[Panel]:
    drawn = []
    if len(run.across["stages"]):
        drawn.append(
            panels.add(
                partial(figures.durations, run.across["stages"], title="Stages of the run"), title="Stages of the run"
            )
        )
    timings = run.together("timings")
    if len(timings):
        total = timings.groupby("stage", as_index=False)["seconds"].sum()
        title = "Measurements, summed over checkpoints"
        drawn.append(panels.add(partial(figures.durations, total, title=title), title=title))
    return drawn
