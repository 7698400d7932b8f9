"""What the page of one checkpoint shows of the refusal geometry, beyond the candidates themselves."""

from functools import partial
from typing import Any

import pandas as pd

from mechrefusal.report import carrier_findings, figures, findings, wording
from mechrefusal.report.figures.forest import layered, single
from mechrefusal.report.figures.heatmaps import position_tokens
from mechrefusal.report.figures.probe_layers import TARGETS
from mechrefusal.report.panels import Panel, Panels
from mechrefusal.report.reading import MeasuredCheckpoint
from mechrefusal.statistics.choosing import BEST
from mechrefusal.study.table_rows import best_place

DOSED = ("ablate", "induce")


def context(checkpoint: MeasuredCheckpoint, panels: Panels) -> dict[str, Any]:
    """Everything that the template `geometry.html` needs."""
    tables = checkpoint.tables
    return {
        "subspaces": _subspaces(checkpoint, panels),
        "smallest": findings.smallest_subspace(tables["subspaces"]),
        "overlap": _estimates(tables["overlap"], panels, "Over-refusal overlap"),
        "overlap_reasons": _missing(tables["overlap"]),
        "coupling": _estimates(tables["coupling"], panels, "Harmfulness and refusal"),
        "coupling_reasons": _missing(tables["coupling"]),
        "probes": _probes(tables["linear_probes"], panels),
        "probe_reasons": _missing(tables["linear_probes"], value="auc", name="target"),
        "doses": _doses(tables["doses"], panels),
        "utility": findings.utility_couplings(tables["utility_coupling"]),
    }


def carriers(checkpoint: MeasuredCheckpoint, panels: Panels) -> list[Panel]:
    """The three scores of every candidate."""
    tables = checkpoint.tables
    table, tokens = tables["carriers"], position_tokens(tables["directions"])
    if not len(table):
        return []
    instead = instead_of_carrier(tables["carrier"])
    if _all_scored_under_zero(checkpoint):  # they have maps of their own: twice would make the page large
        table = table.drop(columns=[name for name in table if name.endswith("_zero")])
    titles = {"bypass": "Bypass", "induce": "Induce", "kl": "Divergence"}
    return [
        panels.add(partial(figures.carriers, table, score=score, tokens=tokens, reference=instead), title=title)
        for score, title in titles.items()
    ]


def wins(checkpoint: MeasuredCheckpoint, panels: Panels) -> list[Panel]:
    """How often each candidate wins in bootstraps; nothing where that was not measured."""
    tables = checkpoint.tables
    if not tables["carriers"]["win_frequency"].notna().any():
        return []
    tokens = position_tokens(tables["directions"])
    draw = partial(figures.carrier_wins, tables["carriers"], tables["carrier"], tokens=tokens)
    return [panels.add(draw, title="How often a candidate wins")]


def zero_maps(checkpoint: MeasuredCheckpoint, panels: Panels) -> list[Panel]:
    """The same scores under ablation to zero, where more than the reference candidate was scored so."""
    tables = checkpoint.tables
    table = tables["carriers"]
    zero = {name: table[f"{name}_zero"] for name in (*figures.CARRIER_SCORES, "admissible")}
    if not _all_scored_under_zero(checkpoint):
        return []
    kept = ["position", "layer", *figures.CARRIER_SCORES, "admissible", "winner"]
    table, tokens = table.assign(**zero)[kept], position_tokens(tables["directions"])
    titles = {"bypass": "Bypass, to zero", "kl": "Divergence, to zero"}
    return [
        panels.add(partial(figures.carriers, table, score=score, tokens=tokens, title=title), title=title)
        for score, title in titles.items()
    ]


def _all_scored_under_zero(checkpoint: MeasuredCheckpoint) -> bool:
    """Whether candidates have scores under zero beside others that are not: more than the reference candidate alone."""
    known = checkpoint.tables["carriers"]["bypass_zero"].notna().sum()
    return bool(known > 1) and carrier_findings.ablated_to(checkpoint.tables["carrier"]) != "zero"


def zeros(checkpoint: MeasuredCheckpoint, panels: Panels) -> list[Panel]:
    """Where zero lies along the direction of each layer."""
    table = checkpoint.tables["directions"]
    if not table["zero_distance"].notna().any():
        return []
    name = {"arm": checkpoint.arm, "step": checkpoint.step}
    draw = partial(figures.zero_distances, table.assign(**name), checkpoint.tables["carrier"].assign(**name))
    return [panels.add(draw, title="Where zero lies along the direction")]


def beside(checkpoint: MeasuredCheckpoint) -> list[str]:
    """Sentences: what the carrier was ablated to and what zero does, where zero lies, what answers show."""
    table = checkpoint.tables["carrier"]
    zero = carrier_findings.zero(table)
    said = [carrier_findings.beside_zero(table.iloc[0].to_dict(), zero)] if len(table) else []
    said += [carrier_findings.distance(zero.distance, of=zero.of)] if zero else []
    found = carrier_findings.effects(checkpoint.tables["rates"])
    said += [carrier_findings.effect_words(one, judged=len(found) > 1) for one in found]
    return [sentence for sentence in said if sentence]


def certainty(checkpoint: MeasuredCheckpoint) -> dict[str, str]:
    """`stability`, `reference`: sentences about the carrier; empty ones where the run does not say."""
    table = checkpoint.tables["carrier"]
    if not len(table):
        return {"stability": "", "reference": ""}
    row, instead = table.iloc[0].to_dict(), instead_of_carrier(table)
    token = position_tokens(checkpoint.tables["directions"]).get(instead[0], "") if instead else ""
    return {
        "stability": findings.stability(row),
        "reference": findings.reference(row, checkpoint.tables["carriers"], token),
    }


def instead_of_carrier(table: pd.DataFrame) -> tuple[int, int] | None:
    """(position, layer) of the best candidate that stands in for a carrier (table `carrier`), or None."""
    if not len(table) or (row := table.iloc[0])["reference_kind"] != "best candidate":
        return None
    row = table.iloc[0]
    return best_place(row) if row["reference_kind"] == BEST else None


def _subspaces(checkpoint: MeasuredCheckpoint, panels: Panels) -> list[Panel]:
    table, carrier = checkpoint.tables["subspaces"], checkpoint.tables["carrier"]
    if not len(table):
        return []
    baseline = float(carrier["baseline_harmful"].iloc[0]) if len(carrier) else None
    return [panels.add(partial(figures.subspaces, table, baseline=baseline), title="Bypass of subspaces")]


def _estimates(table: pd.DataFrame, panels: Panels, title: str) -> list[Panel]:
    drawn = []
    if len(single(table)):
        drawn.append(panels.add(partial(figures.estimates, table, title=title), title=title))
    for measure in layered(table):
        name = f"{wording.metric_name(str(measure)).capitalize()} by layer"
        drawn.append(panels.add(partial(figures.estimates_by_layer, table, measure=measure), title=name))
    return drawn


def _probes(table: pd.DataFrame, panels: Panels) -> list[Panel]:
    found = list(dict.fromkeys(table[["target", "position"]].itertuples(index=False, name=None)))
    order = list(TARGETS)
    found.sort(key=lambda key: order.index(key[0]) if key[0] in order else len(order))
    drawn = []
    for target, position in found:
        title = TARGETS.get(target, wording.metric_name(target))
        draw = partial(figures.linear_probes, table, target=target, position=position)
        drawn.append(panels.add(draw, title=f"{title}, position {wording.whole(position)}"))
    return drawn


def _doses(table: pd.DataFrame, panels: Panels) -> list[Panel]:
    found = set(table["intervention"])
    return [
        panels.add(partial(figures.doses, table, intervention=name), title=name.capitalize())
        for name in DOSED
        if name in found
    ]


def _missing(table: pd.DataFrame, *, value: str = "value", name: str = "measure") -> list[tuple[str, str, int]]:
    """Measures (or targets) without a value, why, and how many rows."""
    return [
        (wording.plain(wording.metric_name(str(each))), why, n)
        for each, rows in table.groupby(name, sort=False)
        for why, n in findings.reasons(rows, value)
    ]
