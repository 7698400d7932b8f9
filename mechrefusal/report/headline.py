"""What a reader asks first of a checkpoint: how often it refuses, how often it breaks, where its refusal lives."""

from dataclasses import dataclass

import pandas as pd

from mechrefusal.report import carrier_findings, wording
from mechrefusal.report.carrier_findings import Zero
from mechrefusal.report.figures import style
from mechrefusal.report.reading import MeasuredCheckpoint, MeasuredRun

ASKED_SETS = ("evaluation_harmful", "evaluation_harmless", "overrefusal")
REFUSAL_METRIC, ATTACK_METRIC = "any_refusal", "attack_success"


@dataclass(frozen=True)
class Rate:
    """A rate with its 95% interval, the number of prompts and the rule that judged them."""

    value: float
    n: int
    low: float
    high: float
    judge: str
    metric: str

    @property
    def interval(self) -> str:
        """`0.60–0.82`, or words that say there is none."""
        return wording.rate_interval(self.low, self.high)


@dataclass(frozen=True)
class Carrier:
    """The admissible direction that was selected. `position` counts from the end of the prompt (-1: last token).

    `layer_low`, `layer_high`, `win_frequency`: over bootstraps of the validation prompts.
    """

    position: int
    token: str
    layer: int
    bypass: float
    induce: float
    kl: float
    layer_low: int
    layer_high: int
    win_frequency: float
    held_out: float
    held_out_low: float
    held_out_high: float

    @property
    def unseen(self) -> str:
        """`−4.31 [−5.0, −3.6]`: bypass on prompts that did not choose the carrier; empty where there is none."""
        if wording.is_missing(self.held_out):
            return ""
        ends = f" [{wording.number(self.held_out_low)}, {wording.number(self.held_out_high)}]"
        return f"{wording.number(self.held_out)}{ends}"

    @property
    def sure(self) -> list[str]:
        """`11–13`, `wins 83%`: 95% bootstrap interval of the layer, share of bootstraps won."""
        return [f"{self.layer_low}–{self.layer_high}", f"wins {wording.percent(self.win_frequency)}"]


@dataclass(frozen=True)
class Head:
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


@dataclass(frozen=True)
class Headline:
    """One line of the headline table.

    Fields:
        refusals: shares of refusals by suite (`ASKED_SETS`); one entry a judge.
        attacks: attack success by (suite, attack); one entry a judge.
        carrier: None where there is none; `no_carrier` then says why.
        ablated_to: what its scores were taken with, in words; a dash where carriers were not measured.
        zero: the same under ablation to zero, or the best candidate where there is no carrier.
        heads, ranked_by: top heads by absolute value, and what ranked them (`patching`, `attribution` or empty).
    """

    checkpoint: MeasuredCheckpoint
    refusals: dict[str, list[Rate]]
    attacks: dict[tuple[str, str], list[Rate]]
    carrier: Carrier | None
    no_carrier: str
    ablated_to: str
    zero: Zero | None
    heads: list[Head]
    ranked_by: str


def headline(checkpoint: MeasuredCheckpoint, *, n_heads: int = 4) -> Headline:
    """The headline numbers of one checkpoint."""
    rates = checkpoint.tables["rates"]
    rates = rates[(rates["by"] == "all") & (rates["intervention"] == "none")]
    asked = rates[(rates["attack"] == "none") & (rates["metric"] == REFUSAL_METRIC)]
    refusals = {name: _rates(asked[asked["suite"] == name]) for name in ASKED_SETS}
    attacked = rates[rates["metric"] == ATTACK_METRIC]
    attacks = {(str(s), str(a)): _rates(rows) for (s, a), rows in attacked.groupby(["suite", "attack"], sort=False)}
    carrier, why = _carrier(checkpoint.tables["carrier"])
    heads, ranked_by = top_heads(checkpoint, n_heads)
    table = checkpoint.tables["carrier"]
    beside = carrier_findings.ablated_to(table), carrier_findings.zero(table)
    return Headline(checkpoint, refusals, attacks, carrier, why, *beside, heads, ranked_by)


def headlines(run: MeasuredRun) -> list[Headline]:
    """One headline a checkpoint, in the order of the run."""
    return [headline(checkpoint) for checkpoint in run.checkpoints]


def attack_columns(lines: list[Headline]) -> list[tuple[str, str]]:
    """(suite, attack) pairs with an attack success, no attack first: of the evaluation prompts, else all."""
    found = {key for line in lines for key in line.attacks}
    evaluated = {key for key in found if key[0] == "evaluation_harmful"}
    return sorted(evaluated or found, key=lambda key: (key[1] != "none", key[1], key[0]))


def attack_label(key: tuple[str, str]) -> str:
    """Name of an attack column; the prompt set is named only where it is not the usual one."""
    label = "no attack" if key[1] == "none" else key[1]
    return label if key[0] == "evaluation_harmful" else f"{label} ({wording.set_name(key[0])})"


def judges(lines: list[Headline]) -> list[str]:
    """Names of all judges behind the headline rates."""
    rates = [r for line in lines for group in (line.refusals, line.attacks) for found in group.values() for r in found]
    return sorted({rate.judge for rate in rates})


def top_heads(checkpoint: MeasuredCheckpoint, n: int) -> tuple[list[Head], str]:
    """Heads of largest absolute denoising effect; if absent, of largest attribution to the refusal logits."""
    patching = checkpoint.tables["patching"]
    patched = patching[(patching["site"] == "z") & (patching["mode"] == "denoising")]
    found = _largest(patched, "effect", n)
    if found:
        return found, "patching"
    written = checkpoint.tables["attribution"]
    written = written[
        (written["component"] == "head") & (written["onto"] == "refusal_logits") & (written["set"] == "harmful")
    ]
    found = _largest(written, "value", n)
    return found, "attribution" if found else ""


def _largest(table: pd.DataFrame, column: str, n: int) -> list[Head]:
    values = table[column]
    order = values.abs().dropna().sort_values(ascending=False, kind="stable").index[:n]
    told = style.told(table) if "p" in table else pd.Series(False, index=table.index)
    return [Head(int(table["layer"][i]), int(table["head"][i]), float(values[i]), bool(told[i])) for i in order]


def _rates(rows: pd.DataFrame) -> list[Rate]:
    return [Rate(r.value, r.n, r.low, r.high, r.judge, r.metric) for r in rows.itertuples()]


def _carrier(table: pd.DataFrame) -> tuple[Carrier | None, str]:
    if not len(table):
        return None, "carriers were not measured at this checkpoint"
    row = table.iloc[0]
    if wording.is_missing(row["layer"]):
        why = wording.plain(row["reason"]) or "the table gives no reason"
        return None, why if why.lower().startswith("no ") else f"no admissible carrier: {why}"
    names = (
        *("position", "token", "layer", "bypass", "induce", "kl", "layer_low", "layer_high", "win_frequency"),
        *("bypass_held_out", "bypass_held_out_low", "bypass_held_out_high"),
    )
    return Carrier(*(row[name] for name in names)), ""
