"""What the tables say of the carrier beside its place: what it was ablated to, what zero does, what answers show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechrefusal.report import findings, wording
from mechrefusal.report.figures.heatmaps import position_tokens
from mechrefusal.report.grids import Cell, Grid, Head
from mechrefusal.report.reading import MeasuredCheckpoint, MeasuredRun
from mechrefusal.statistics.choosing import BEST, CARRIER

if TYPE_CHECKING:
    from mechrefusal.report.headline import Headline

ABLATED_TO = {"harmless": "harmless mean", "zero": "zero"}
EFFECTS = {
    "harmful": {
        "none": "without intervention",
        "ablate": "with the carrier ablated",
        "ablate_random": "with a random direction ablated",
    },
    "harmless": {
        "none": "without intervention",
        "induce": "with the carrier induced",
        "induce_random": "with a random direction induced",
        "ablate": "with the carrier ablated",
    },
}
"""Sets and interventions whose refusal rates say what the carrier does to answers."""
BROKEN = 0.05
"""Share of degenerate answers from which on they are spoken of: what is degenerate is no refusal, nor an answer."""
AT = 0.02
"""Distance of zero from a mean, in units of the distance between the means, below which the two are called one."""


@dataclass(frozen=True)
class Zero:
    """The carrier, or the best candidate where there is none, ablated to zero and added, as Arditi et al. publish.

    Fields:
        of: `carrier` or `best candidate`.
        admissible: whether it would have been a candidate to choose; None where that was not scored.
        n_admissible: how many candidates would have been; None where not all were scored so.
        distance: where zero lies along it: 0 is the harmless mean, 1 the harmful one.
    """

    of: str
    bypass: float
    induce: float
    kl: float
    admissible: bool | None
    n_admissible: int | None
    distance: float

    @property
    def scored(self) -> bool:
        """Whether any score under zero is known."""
        return not all(map(wording.is_missing, (self.bypass, self.induce, self.kl)))

    @property
    def answer(self) -> str:
        """`yes`, `no` or a dash."""
        return wording.MISSING if self.admissible is None else "yes" if self.admissible else "no"


def no_carrier(table: pd.DataFrame) -> str:
    """Why table `carrier` of one checkpoint names no carrier; empty where it does."""
    if not len(table):
        return "carriers were not measured at this checkpoint"
    row = table.iloc[0]
    if not wording.is_missing(row["layer"]):
        return ""
    why = wording.plain(row["reason"]) or "the table gives no reason"
    return why if why.lower().startswith("no ") else f"no admissible carrier: {why}"


def sure(row: Mapping[str, Any]) -> str:
    """`11–13 (95%), wins 83%`: bootstrap interval of the layer, share of bootstraps won; empty where none were made."""
    if wording.is_missing(row["layer_low"]):
        return ""
    ends = f"{wording.whole(row['layer_low'])}–{wording.whole(row['layer_high'])}"
    return f"{ends} (95%), wins {wording.percent(row['win_frequency'])}"


def where(line: "Headline") -> list[str]:
    """Where the carrier is and what it scores, or that there is none."""
    table, row, depth = line.checkpoint.tables["carrier"], line.carrier, line.checkpoint.n_layers
    if not len(table):
        return [wording.sentence(line.no_carrier)]
    counts = [wording.whole(table[name].iloc[0]) for name in ("n_admissible", "n_candidates")]
    counted = f"{counts[0]} of {counts[1]} scored candidates are admissible"
    if row is None:
        return [f"{wording.sentence(f'{line.no_carrier} ({counted})')} This is a result of the checkpoint."]
    held_out = wording.interval_of(row, "bypass_held_out")
    unseen = f" (on prompts that did not choose it {held_out})" if held_out else ""
    baseline = [wording.number(row[f"baseline_{side}"]) for side in ("harmful", "harmless")]
    return [
        f"Carrier at layer {row['layer']}{f' of {depth}' if depth else ''}, position {wording.whole(row['position'])} "
        f"{wording.token(row['token'])}: bypass {wording.number(row['bypass'])}{unseen}, "
        f"induce {wording.number(row['induce'])}, kl {wording.number(row['kl'], 3)}. Without intervention the refusal "
        f"score is {baseline[0]} on harmful and {baseline[1]} on harmless prompts. {counted}."
    ]


def certainty(checkpoint: MeasuredCheckpoint) -> list[str]:
    """How sure the choice is, and what later measures look at where there is no carrier."""
    table, directions = checkpoint.tables["carrier"], checkpoint.tables["directions"]
    if not len(table):
        return []
    row, tokens = table.iloc[0].to_dict(), position_tokens(directions)
    token = tokens.get(row["reference_position"], "") if row["reference_kind"] == BEST else ""
    return [findings.stability(row), findings.reference(row, checkpoint.tables["carriers"], token)]


def beside(checkpoint: MeasuredCheckpoint) -> list[str]:
    """What the carrier was ablated to and what zero does, where zero lies, what answers show."""
    table = checkpoint.tables["carrier"]
    scores = zero(table)
    sentences = [beside_zero(table.iloc[0].to_dict(), scores)] if len(table) else []
    sentences += [distance(scores.distance, of=scores.of)] if scores else []
    shown = effects(checkpoint.tables["rates"])
    return sentences + [effect_words(one, judged=len(shown) > 1) for one in shown]


def ablated_to(table: pd.DataFrame) -> str:
    """What the scores of table `carrier` (one checkpoint) were ablated to, in words; a dash where it has no row."""
    return ABLATED_TO[table["ablated_to"].iloc[0]] if len(table) else wording.MISSING


def zero(table: pd.DataFrame) -> Zero | None:
    """What table `carrier` of one checkpoint says of zero; None where there was no candidate to look at."""
    if not len(table):
        return None
    row = table.iloc[0]
    if row["reference_kind"] not in (CARRIER, BEST):
        return None
    allowed, n = row["admissible_zero"], row["n_admissible_zero"]
    return Zero(
        of=row["reference_kind"],
        bypass=row["bypass_zero"],
        induce=row["induce_zero"],
        kl=row["kl_zero"],
        admissible=None if wording.is_missing(allowed) else bool(allowed),
        n_admissible=None if wording.is_missing(n) else int(n),
        distance=row["zero_distance"],
    )


def beside_zero(row: dict[str, Any], at_zero: Zero | None) -> str:
    """One or two sentences: what the scores were ablated to, and the same candidate's scores under zero."""
    lead = {
        "harmless": "Ablated to the mean of harmless prompts, induced to that of harmful ones (affine concept "
        "editing).",
        "zero": "Ablated to zero, and added, as Arditi et al. publish.",
    }[row["ablated_to"]]
    if row["ablated_to"] == "zero" or at_zero is None or not at_zero.scored:
        return lead
    known = (("bypass", at_zero.bypass, 2), ("induce", at_zero.induce, 2), ("kl", at_zero.kl, 3))
    scores = ", ".join(f"{name} {wording.number(value, digits)}" for name, value, digits in known)
    would = {None: "", True: "; it would be admissible", False: "; it would not be admissible"}[at_zero.admissible]
    n, of = at_zero.n_admissible, wording.whole(row["n_candidates"])
    counted = "" if n is None else f"; {wording.whole(n)} of {of} candidates would"
    whose = "it" if at_zero.of == CARRIER else f"the {at_zero.of}"
    return f"{lead} Ablated to zero instead, and added, as Arditi et al. publish, {whose} has {scores}{would}{counted}."


def distance(value: float, *, of: str = "carrier") -> str:
    """How far zero lies from the harmless mean along a direction, and what ablating to zero therefore does."""
    if wording.is_missing(value):
        return ""
    where = f"Along the {of} zero lies"
    if abs(value) < AT:
        return f"{where} at the harmless mean: the two ablations agree there."
    if abs(value - 1) < AT:
        return f"{where} at the harmful mean: ablating to zero leaves the whole difference in place."
    size = wording.number(abs(value))
    if value < 0:
        return (
            f"{where} on the other side of the harmless mean, {size} times as far from it as the harmful mean: "
            "ablating to zero takes away more than what tells the two apart."
        )
    if value < 1:
        return (
            f"{where} between the means, {size} of the way from the harmless to the harmful one: ablating to zero "
            "leaves that share of the difference in place."
        )
    return (
        f"{where} beyond the harmful mean, {size} times as far from the harmless mean as that: ablating to zero pushes "
        "harmless and harmful prompts alike past the harmful mean."
    )


def effects(rates: pd.DataFrame) -> list[dict[str, Any]]:
    """Refusal rates by generation under each intervention, one entry a judge (table `rates` of one checkpoint).

    Returns:
        `judge`; `cells`, by (kind of prompts, intervention), those of `EFFECTS` that were measured. Nothing where no
        intervention was made.
    """
    unattacked = rates[(rates["attack"] == "none") & (rates["by"] == "all")]
    refusal = unattacked[unattacked["metric"] == "any_refusal"]
    broken = unattacked[unattacked["metric"] == "degenerate"]
    by_judge = []
    for judge in sorted(set(refusal["judge"])):
        cells = {}
        for kind, interventions in EFFECTS.items():
            for name in interventions:
                rows = _of(refusal, judge, kind, name)
                if len(rows):
                    cells[kind, name] = _cell(rows.iloc[0], _of(broken, judge, kind, name))
        if any(name != "none" for _, name in cells):
            by_judge.append({"judge": wording.plain(judge), "cells": cells})
    return by_judge


def effects_grid(run: MeasuredRun) -> Grid:
    """What interventions do to answers, one row a checkpoint and judge; only columns that hold something."""
    shown = [(checkpoint, effect) for checkpoint in run.checkpoints for effect in effects(checkpoint.tables["rates"])]
    known = {key for _, effect in shown for key in effect["cells"]}
    columns = {(k, name): f"{k} prompts {words}" for k, names in EFFECTS.items() for name, words in names.items()}
    columns = {key: words for key, words in columns.items() if key in known}
    rows = [
        [
            Cell(f"{wording.plain(checkpoint.arm)} {checkpoint.step}", page=checkpoint.id),
            *(
                Cell(cell["value"], f"{cell['interval']}, n = {cell['n']}{cell['broken']}")
                if cell
                else Cell(wording.MISSING)
                for cell in (effect["cells"].get(key) for key in columns)
            ),
            Cell(effect["judge"]),
        ]
        for checkpoint, effect in shown
    ]
    return Grid([Head("checkpoint"), *map(Head, columns.values()), Head("judge")], rows)


def effect_words(effect: dict[str, Any], *, judged: bool = False) -> str:
    """One entry of `effects` as two sentences, each rate with its interval and n."""
    sentences = []
    for kind, interventions in EFFECTS.items():
        parts = [
            f"{cell['value']} ({cell['interval']}, n = {cell['n']}) {words}{cell['broken']}"
            for name, words in interventions.items()
            if (cell := effect["cells"].get((kind, name)))
        ]
        sentences += [f"of {kind} prompts: {', '.join(parts)}"] if len(parts) > 1 else []
    by = f" (judge {effect['judge']})" if judged else ""
    return f"Answers refused{by}, {'; '.join(sentences)}." if sentences else ""


def _of(rows: pd.DataFrame, judge: str, kind: str, intervention: str) -> pd.DataFrame:
    return rows[
        (rows["judge"] == judge) & (rows["suite"] == f"evaluation_{kind}") & (rows["intervention"] == intervention)
    ]


def _cell(row: pd.Series, broken: pd.DataFrame) -> dict[str, str]:
    share = broken["value"].iloc[0] if len(broken) else 0.0
    return {
        "value": wording.rate(row["value"]),
        "interval": wording.rate_interval(row["low"], row["high"]),
        "n": wording.whole(row["n"]),
        "broken": f" ({wording.percent(share)} degenerate)" if share >= BROKEN else "",
    }
