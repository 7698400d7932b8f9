"""What a reader asks first of a checkpoint: how often it refuses, how often it breaks, where its refusal lives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechrefusal.report import carrier_findings, gate, wording
from mechrefusal.report.carrier_findings import Zero
from mechrefusal.report.figures import style
from mechrefusal.report.grids import Cell, Grid, Head
from mechrefusal.report.reading import MeasuredCheckpoint, MeasuredRun

ASKED_SETS = ("evaluation_harmful", "evaluation_harmless", "overrefusal")
REFUSAL_METRIC, ATTACK_METRIC = "any_refusal", "attack_success"
_ASKED = ("refuses harmful", "refuses harmless", "refuses safe, looks unsafe")


@dataclass(frozen=True)
class RankedHead:
    """One attention head and its value in the table that ranked it.

    `is_told`: its p, adjusted for all heads, is below 0.05; False where that was not tested (a single pair,
    attribution).
    """

    layer: int
    head: int
    value: float
    is_told: bool = False

    @property
    def name(self) -> str:
        """`L12.H3`."""
        return wording.head_name(self.layer, self.head)

    def __str__(self) -> str:
        """`L12.H3 +0.42 ●`, with a mark where it is told from nothing."""
        return f"{self.name} {wording.number(self.value, signed=True)}{' ●' * self.is_told}"


@dataclass(frozen=True)
class Headline:
    """One line of the table of checkpoints.

    Fields:
        refusals: rows of table `rates` with shares of refusals by suite (`ASKED_SETS`), one a judge.
        attacks: the same of attack success by (suite, attack).
        carrier: row of table `carrier`; None where there is no carrier, and `no_carrier` then says why.
        ablated_to: what its scores were taken with, in words; a dash where carriers were not measured.
        zero: the same under ablation to zero, or the best candidate where there is no carrier.
        heads, ranked_by: top heads by absolute value, and what ranked them (`patching`, `attribution` or empty).
    """

    checkpoint: MeasuredCheckpoint
    refusals: Mapping[str, list[dict[str, Any]]]
    attacks: Mapping[tuple[str, str], list[dict[str, Any]]]
    carrier: Mapping[str, Any] | None
    no_carrier: str
    ablated_to: str
    zero: Zero | None
    heads: list[RankedHead]
    ranked_by: str


def headline(checkpoint: MeasuredCheckpoint, *, n_heads: int = 4) -> Headline:
    """The headline numbers of one checkpoint."""
    rates, table = checkpoint.tables["rates"], checkpoint.tables["carrier"]
    rates = rates[(rates["by"] == "all") & (rates["intervention"] == "none")]
    unattacked = rates[(rates["attack"] == "none") & (rates["metric"] == REFUSAL_METRIC)]
    refusals = {name: _rows(unattacked[unattacked["suite"] == name]) for name in ASKED_SETS}
    attacked = rates[rates["metric"] == ATTACK_METRIC]
    attacks = {(str(s), str(a)): _rows(rows) for (s, a), rows in attacked.groupby(["suite", "attack"], sort=False)}
    why = carrier_findings.no_carrier(table)
    carrier = None if why else _rows(table)[0]
    beside = carrier_findings.ablated_to(table), carrier_findings.zero(table)
    return Headline(checkpoint, refusals, attacks, carrier, why, *beside, *top_heads(checkpoint, n_heads))


def headlines(run: MeasuredRun) -> list[Headline]:
    """One headline a checkpoint, in the order of the run."""
    return [headline(checkpoint) for checkpoint in run.checkpoints]


def attack_columns(lines: list[Headline]) -> list[tuple[str, str]]:
    """(suite, attack) pairs with an attack success, no attack first: of the evaluation prompts, else all."""
    attacks = {key for line in lines for key in line.attacks}
    evaluated = {key for key in attacks if key[0] == "evaluation_harmful"}
    return sorted(evaluated or attacks, key=lambda key: (key[1] != "none", key[1], key[0]))


def attack_label(key: tuple[str, str]) -> str:
    """Name of an attack; the prompt set is named only where it is not the usual one."""
    label = "no attack" if key[1] == "none" else key[1]
    return label if key[0] == "evaluation_harmful" else f"{label} ({wording.set_name(key[0])})"


def judges(lines: list[Headline]) -> list[str]:
    """Names of all judges behind the headline rates."""
    groups = [rates for line in lines for rates in (*line.refusals.values(), *line.attacks.values())]
    return sorted({str(rate["judge"]) for rates in groups for rate in rates})


def behaviour(lines: list[Headline]) -> Grid:
    """One row a checkpoint: refusal rates by prompt set, attack success rates by attack."""
    attacks, several = attack_columns(lines), len(judges(lines)) > 1
    heads = [Head("checkpoint"), Head("gate"), *map(Head, _ASKED)]
    heads += [Head(f"attack succeeds: {wording.plain(attack_label(key))}") for key in attacks]
    rows = []
    for line in lines:
        rates = [*line.refusals.values(), *(line.attacks.get(key, []) for key in attacks)]
        cells = [_rates(group, several=several) for group in rates]
        rows.append([_name(line), Cell(gate.of(line.checkpoint).word), *cells])
    return Grid(heads, rows)


def carriers(lines: list[Headline]) -> Grid:
    """One row a checkpoint: where the carrier stands and what it does, or why there is none."""
    heads = ("checkpoint", "carrier", "top heads", "bypass", "induce", "kl", "to zero: bypass", "kl", "admissible")
    return Grid([Head(words) for words in heads], [_carrier_cells(line) for line in lines])


def top_heads(checkpoint: MeasuredCheckpoint, n: int) -> tuple[list[RankedHead], str]:
    """Heads of largest absolute denoising effect; if absent, of largest attribution to the refusal logits."""
    patched = checkpoint.tables["patching"].query("site == 'z' and mode == 'denoising'")
    if heads := _largest(patched, "effect", n):
        return heads, "patching"
    written = checkpoint.tables["attribution"]
    written = written.query("component == 'head' and onto == 'refusal_logits' and set == 'harmful'")
    heads = _largest(written, "value", n)
    return heads, "attribution" if heads else ""


def _largest(table: pd.DataFrame, column: str, n: int) -> list[RankedHead]:
    values = table[column]
    order = values.abs().dropna().sort_values(ascending=False, kind="stable").index[:n]
    clear = style.is_clear(table) if "p" in table else pd.Series(False, index=table.index)
    return [RankedHead(int(table["layer"][i]), int(table["head"][i]), float(values[i]), bool(clear[i])) for i in order]


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _name(line: Headline) -> Cell:
    return Cell(f"{wording.plain(line.checkpoint.arm)} {line.checkpoint.step}", page=line.checkpoint.id)


def _rates(rates: list[dict[str, Any]], *, several: bool) -> Cell:
    shown = [f"{wording.rate(rate['value'])} n={wording.whole(rate['n'])}" for rate in rates]
    by = [f"; {wording.plain(rate['judge'])}" if several else "" for rate in rates]
    ends = [wording.rate_interval(rate["low"], rate["high"]) + judge for rate, judge in zip(rates, by, strict=True)]
    return Cell(", ".join(shown) or wording.MISSING, ", ".join(ends))


def _carrier_cells(line: Headline) -> list[Cell]:
    row, zero, depth = line.carrier, line.zero, line.checkpoint.n_layers
    cells = [_name(line), Cell(line.no_carrier), *[Cell(wording.MISSING)] * 3]
    if row is not None:
        place = f"layer {row['layer']}{f' of {depth}' if depth else ''}"
        where = f"position {wording.whole(row['position'])} {wording.token(row['token'])}"
        sure = carrier_findings.sure(row)
        held_out = wording.interval_of(row, "bypass_held_out")
        cells[1:] = [
            Cell(place, "; ".join(filter(None, (sure, where)))),
            Cell(wording.number(row["bypass"]), held_out and f"held out {held_out}"),
        ]
        cells += [Cell(wording.number(row["induce"])), Cell(wording.number(row["kl"], 3))]
    under = [wording.number(zero.bypass), wording.number(zero.kl, 3), zero.answer] if zero else [wording.MISSING] * 3
    heads = ", ".join(map(str, line.heads)) or "not measured"
    ranked = Cell(heads, heads_of=line.checkpoint.id)
    return [*cells[:2], ranked, *cells[2:], *map(Cell, under)]
