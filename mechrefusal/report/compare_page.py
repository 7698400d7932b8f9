"""Any two checkpoints side by side: what each is, and every difference with its interval where there is one."""

from functools import cached_property
from itertools import combinations
from typing import Any

import pandas as pd

from mechrefusal.report import findings, gate, headline, language, wording
from mechrefusal.report.carrier_findings import sure as sure_of
from mechrefusal.report.evaluation_findings import REFUSALS
from mechrefusal.report.grids import Cell, Grid, Head
from mechrefusal.report.headline import Headline
from mechrefusal.report.reading import MeasuredCheckpoint, MeasuredRun
from mechrefusal.report.sections import Page
from mechrefusal.report.stress_findings import LOSS, SHARES
from mechrefusal.statistics.intervals import Estimate
from mechrefusal.statistics.paired import rate_difference

COMPARED = (
    ("evaluation_harmful", "any_refusal", REFUSALS),
    ("evaluation_harmless", "any_refusal", REFUSALS),
    ("overrefusal", "any_refusal", REFUSALS),
    ("contrast", "any_refusal", REFUSALS),
    ("utility", "answered", ("full_compliance",)),
)
"""(suite, rate, labels that count) of the study's own suites, compared on the prompts that both answered."""
TOP = 10
_HEADS = [
    Head("what"),
    Head("first", is_number=True),
    Head("second", is_number=True),
    Head("second − first, 95% interval", is_number=True),
    Head("note"),
]


class ComparePage(Page):
    """Two checkpoints at a time; the viewer shows the pair that is chosen."""

    name = "compare"

    @cached_property
    def pairs(self) -> list[tuple[MeasuredCheckpoint, MeasuredCheckpoint, Grid, list[dict[str, Any]]]]:
        """(first, second, differences, verdicts on a move) of any two checkpoints, the earlier of them first."""
        moves = {(pair["a"], pair["b"]): pair for pair in findings.relocations(self.run.across["relocation"])}
        lines = {line.checkpoint.id: line for line in headline.headlines(self.run)}
        pairs = []
        for a, b in combinations(self.run.checkpoints, 2):
            keys = (a.arm, a.step), (b.arm, b.step)
            rows = [_gates(a, b), *_rates(self.run, a, b), *_suites(self.run, *keys), *_attacks(self.run, *keys)]
            rows += [*_carriers(lines[a.id], lines[b.id]), *_directions(self.run, *keys), *_shared(a, b)]
            judged = [moves[pair] for pair in (keys, keys[::-1]) if pair in moves]
            pairs.append((a, b, Grid(_HEADS, rows), judged))
        return pairs


def _gates(a: MeasuredCheckpoint, b: MeasuredCheckpoint) -> list[Cell]:
    """Whether either learnt what it is interpreted for."""
    return [Cell("learnt it"), *(Cell(gate.of(each).word, is_number=True) for each in (a, b)), Cell(""), Cell("")]


def _rates(run: MeasuredRun, a: MeasuredCheckpoint, b: MeasuredCheckpoint) -> list[list[Cell]]:
    """Rates of the study's own suites, paired by prompt, of the first judge that judged both."""
    rows = []
    for suite, metric, labels in COMPARED:
        first, second = (_outcomes(each.tables["verdicts"], suite, labels) for each in (a, b))
        judge = next((name for name in first if name in second), None)
        if judge is None:
            continue
        both = pd.concat([first[judge].rename("a"), second[judge].rename("b")], axis=1, join="inner").dropna()
        if not len(both):
            continue
        change = rate_difference(both["a"].to_numpy(float), both["b"].to_numpy(float))
        words = f"{wording.metric_name(metric)}, {wording.set_name(suite)}"
        note = f"{len(both)} prompts, paired; judge {language.described(judge)}"
        rows.append(_line(words, wording.rate(both["a"].mean()), wording.rate(both["b"].mean()), change, note))
    return rows


def _outcomes(table: pd.DataFrame, suite: str, labels: tuple[str, ...]) -> dict[str, pd.Series]:
    """Whether each prompt has the outcome, by judge of refusals."""
    judged = table[(table["suite"] == suite) & (table["attack"] == "none") & (table["intervention"] == "none")]
    judged = judged[(judged["kind"] == "refusal") & judged["label"].notna()].drop_duplicates(["judge", "prompt_id"])
    return {
        str(judge): rows.set_index("prompt_id")["label"].isin(labels).astype(float)
        for judge, rows in judged.groupby("judge", sort=False)
    }


def _suites(run: MeasuredRun, a: tuple, b: tuple) -> list[list[Cell]]:
    """Rates of benchmarks that an evaluation compared."""
    table = run.across["suite_differences"]
    return [
        _line(
            f"{wording.metric_name(row['metric'])}, {wording.shortened(row['suite'])}, {row['side']} prompts"
            + _under(row),
            *_between(row, sign, wording.rate),
            f"{wording.whole(row['n'])} prompts, paired; judge {language.described(row['judge'])}; "
            f"p {wording.number(row['p_adjusted'], 4)} (Holm)",
        )
        for row, sign in _of_pair(table[table["pair"] != "intervention"], a, b)
    ]


def _attacks(run: MeasuredRun, a: tuple, b: tuple) -> list[list[Cell]]:
    """Outcomes of attacks made anew."""
    words = SHARES | LOSS
    return [
        _line(
            f"{wording.shortened(row['method'])}: {words.get(row['metric'], wording.metric_name(row['metric']))}",
            *_between(row, sign, wording.rate),
            f"{wording.whole(row['n'])} cases, paired; judge {language.described(row['judge'])}",
        )
        for row, sign in _of_pair(run.across["stress_differences"], a, b)
    ]


def _directions(run: MeasuredRun, a: tuple, b: tuple) -> list[list[Cell]]:
    """How far apart the directions lie, beside what noise alone gives."""
    table = run.across["drift"]
    mean = table.groupby(["measure", "arm_a", "step_a", "arm_b", "step_b"])["layer"].transform("size") == 1
    rows = []
    for row, _ in _of_pair(table[mean | (table["layer"] < 0)], a, b):
        change = Cell(wording.number(row["value"], 3), wording.interval(row, "", 3).strip(), is_number=True)
        note = wording.readable(row["reason"]) or (
            f"noise alone gives {wording.number(row['floor'], 3)}, random directions {wording.number(row['random'], 3)}"
        )
        rows.append([Cell(wording.readable(row["measure"])), Cell(""), Cell(""), change, Cell(note)])
    return rows


def _carriers(a: Headline, b: Headline) -> list[list[Cell]]:
    """Depth and scores of the carriers; the interval of a change of depth stands with the verdict on a move."""
    carriers = [line.carrier or {} for line in (a, b)]
    without = [line.checkpoint.label for line in (a, b) if line.carrier is None]
    note = f"no carrier at {wording.listed(without)}" if without else ""
    rows = []
    for name, digits in (("layer", 0), ("bypass", 2), ("induce", 2), ("kl", 3)) if any(carriers) else ():
        values = [row.get(name, float("nan")) for row in carriers]
        sure = [sure_of(row) if row and name == "layer" else "" for row in carriers]
        ends = [Cell(wording.number(v, digits), s, is_number=True) for v, s in zip(values, sure, strict=True)]
        change = Cell(wording.number(values[1] - values[0], digits, signed=True), is_number=True)
        rows.append([Cell(f"carrier: {name}"), *ends, change, Cell(note)])
    return rows


def _shared(a: MeasuredCheckpoint, b: MeasuredCheckpoint) -> list[list[Cell]]:
    """How many of the top heads are the same."""
    tops = [headline.top_heads(each, TOP) for each in (a, b)]
    if not all(heads for heads, _ in tops) or tops[0][1] != tops[1][1]:
        return []
    names = [[head.name for head in heads] for heads, _ in tops]
    both = [name for name in names[0] if name in names[1]]
    ends = [Cell(", ".join(each[:3]), is_number=True) for each in names]
    note = f"by {tops[0][1]}: {wording.listed(both)}" if both else f"by {tops[0][1]}"
    return [[Cell(f"top {TOP} heads"), *ends, Cell(f"{len(both)} of {TOP} shared", is_number=True), Cell(note)]]


def _of_pair(table: pd.DataFrame, a: tuple, b: tuple) -> list[tuple[dict[str, Any], int]]:
    """Rows of a table of pairs that are of these two, with −1 where they stand the other way round."""
    of_pair = []
    for one, other, sign in ((a, b, 1), (b, a, -1)):
        between = table[(table["arm_a"] == one[0]) & (table["step_a"] == one[1])]
        between = between[(between["arm_b"] == other[0]) & (between["step_b"] == other[1])]
        of_pair += [({str(name): value for name, value in row.items()}, sign) for row in between.to_dict("records")]
    return of_pair


def _between(row: dict[str, Any], sign: int, write: Any) -> tuple[str, str, Estimate]:
    """Both means as text and the difference, second minus first as the page has them."""
    means = [write(row[name]) for name in ("mean_a", "mean_b")][::sign]
    low, high = (
        sorted((sign * row["low"], sign * row["high"])) if not wording.is_missing(row["low"]) else (float("nan"),) * 2
    )
    return means[0], means[1], Estimate(sign * row["difference"], low, high, int(row["n"]))


def _line(words: str, first: str, second: str, change: Estimate, note: str) -> list[Cell]:
    is_clear = not wording.is_missing(change.low) and bool(change.low > 0 or change.high < 0)
    difference = Cell(
        wording.number(change.value, signed=True),
        wording.ends(change.low, change.high),
        is_strong=is_clear,
        is_number=True,
    )
    return [Cell(words), Cell(first, is_number=True), Cell(second, is_number=True), difference, Cell(note)]


def _under(row: dict[str, Any]) -> str:
    under = [wording.shortened(row[name]) for name in ("attack", "intervention") if row[name] != "none"]
    return f" ({', '.join(under)})" if under else ""
