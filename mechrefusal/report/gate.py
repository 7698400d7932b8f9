"""What the table `gate` says: whether a checkpoint has learnt what it is interpreted for, and by how much it misses."""

from collections.abc import Sequence
from dataclasses import dataclass

from mechrefusal.report import language, wording
from mechrefusal.report.grids import Cell, Grid, Head
from mechrefusal.report.reading import MeasuredCheckpoint


@dataclass(frozen=True)
class Criterion:
    """One row of the table: a rate with its 95% interval, and the threshold that it must reach."""

    name: str
    value: float
    low: float
    high: float
    n: int
    threshold: float
    passed: bool
    corrected: str = ""
    """`0.85 (0.74–0.93)`: with the judge's known error corrected; empty where it is not known."""

    @property
    def short_by(self) -> str:
        """How far the rate is below the threshold; more decimals where two would say that nothing is missing."""
        gap = max(0.0, self.threshold - self.value)
        return wording.rate(gap) if round(gap, 2) else wording.number(gap, 3)

    @property
    def unsure(self) -> bool:
        """Whether the interval holds values on both sides of the threshold: more prompts might say otherwise."""
        return not wording.is_missing(self.low) and self.low < self.threshold <= self.high

    @property
    def interval(self) -> str:
        """`0.60–0.82`, or words that say there is none."""
        return wording.rate_interval(self.low, self.high)

    @property
    def state(self) -> str:
        """`passed`, `missed by 0.12` or `no value`; `, unsure` where the interval holds the threshold."""
        if wording.is_missing(self.value):
            return "no value"
        word = "passed" if self.passed else f"missed by {self.short_by}"
        return f"{word}, unsure" if self.unsure else word

    @property
    def missed(self) -> str:
        """By how much it is missed, in words."""
        if wording.is_missing(self.value):
            return f"{self.name} has no value"
        known = f"{wording.rate(self.value)} where {wording.rate(self.threshold)} is needed"
        unsure = ", within its interval" if self.unsure else ""
        return f"{self.name} by {self.short_by} ({known}{unsure}, n = {self.n})"


@dataclass(frozen=True)
class Gate:
    """The gate of one checkpoint; no criteria where it was not measured."""

    checkpoint: MeasuredCheckpoint
    criteria: tuple[Criterion, ...]
    judges: tuple[str, ...] = ()
    corrected_by: tuple[str, ...] = ()

    @property
    def passed(self) -> bool | None:
        """Whether all criteria are met; None where none was measured."""
        return all(criterion.passed for criterion in self.criteria) if self.criteria else None

    @property
    def word(self) -> str:
        """`passed`, `missed` or `not measured`."""
        return {None: "not measured", True: "passed", False: "missed"}[self.passed]

    @property
    def words(self) -> str:
        """`passed`, or which criteria are missed and by how much."""
        missed = [criterion.missed for criterion in self.criteria if not criterion.passed]
        return f"missed: {'; '.join(missed)}" if missed else self.word

    def named(self, name: str) -> Criterion | None:
        """The criterion of that name, or None where it was not asked."""
        return next((criterion for criterion in self.criteria if criterion.name == name), None)


def of(checkpoint: MeasuredCheckpoint) -> Gate:
    """The gate of one checkpoint."""
    table = checkpoint.tables["gate"]
    criteria = [
        Criterion(
            name=wording.plain(row["criterion"]),
            **{name: row[name] for name in ("value", "low", "high", "n", "threshold")},
            passed=wording.is_true(row["passed"]),
            corrected=wording.corrected(row),
        )
        for row in table.to_dict("records")
    ]
    judges = sorted({wording.plain(judge) for judge in table["judge"]} - {""})
    return Gate(checkpoint, tuple(criteria), tuple(judges), tuple(wording.correction_sources(table)))


def names(gates: Sequence[Gate]) -> list[tuple[str, str]]:
    """(criterion, `≥ 0.80`) of all checkpoints in their order; thresholds that differ are all named."""
    thresholds: dict[str, dict[str, None]] = {}
    for criterion in (criterion for gate in gates for criterion in gate.criteria):
        thresholds.setdefault(criterion.name, {})[f"≥ {wording.rate(criterion.threshold)}"] = None
    return [(name, " or ".join(needs)) for name, needs in thresholds.items()]


def summary(gates: Sequence[Gate]) -> str:
    """`Gate passed at r2d2 250; missed at sft 250.`, over the given checkpoints."""
    parts = []
    for word in ("passed", "missed", "not measured"):
        places = [f"{g.checkpoint.arm} {g.checkpoint.step}" for g in gates if g.word == word]
        parts += [f"{word} at {', '.join(places)}"] if places else []
    return wording.plain(f"Gate {'; '.join(parts)}.") if parts else ""


def grid(gates: Sequence[Gate]) -> Grid:
    """One row a checkpoint: every criterion, and by how much it is missed; nothing where none was measured."""
    columns = names(gates)
    rows = []
    for gate in gates:
        cells = [Cell(f"{wording.plain(gate.checkpoint.arm)} {gate.checkpoint.step}", page=gate.checkpoint.id)]
        cells.append(Cell(gate.word, is_strong=not gate.passed))
        for c in (gate.named(name) for name, _ in columns):
            by = f"; corrected {c.corrected}" if c and c.corrected else ""
            cells.append(
                Cell(f"{wording.rate(c.value)} n={c.n}", f"{c.interval}; {c.state}{by}") if c else Cell("not asked")
            )
        rows.append(cells)
    heads = [Head("checkpoint"), Head("gate"), *(Head(f"{name} {needs}") for name, needs in columns)]
    return Grid(heads, rows if columns else [])


def caption(gates: Sequence[Gate]) -> str:
    """Who judged, and what the rates are corrected for."""
    judges = sorted({judge for gate in gates for judge in gate.judges})
    sources = sorted({source for gate in gates for source in gate.corrected_by})
    by = f" Corrected: for the judge's error as measured on {wording.listed(sources)}; the gate goes by the count."
    rates = "Rates with n answers and 95% Wilson intervals. Unsure: the interval holds the threshold."
    return f"{rates} Judge: {', '.join(map(language.described, judges)) or 'none'}.{by if sources else ''}"
