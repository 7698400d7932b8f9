"""What the table `gate` says: whether a checkpoint has learnt what it is interpreted for, and by how much it misses."""

from dataclasses import dataclass
from typing import Any

from mechrefusal.report import wording
from mechrefusal.report.reading import MeasuredCheckpoint, MeasuredRun


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
    def short_by(self) -> float:
        """How far the rate is below the threshold (0 where it is not)."""
        return max(0.0, self.threshold - self.value)

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
        word = "passed" if self.passed else f"missed by {_short(self.short_by)}"
        return f"{word}, unsure" if self.unsure else word

    @property
    def needs(self) -> str:
        """`≥ 0.80`."""
        return f"≥ {wording.rate(self.threshold)}"


@dataclass(frozen=True)
class Gate:
    """The gate of one checkpoint; no criteria where it was not measured."""

    checkpoint: MeasuredCheckpoint
    criteria: tuple[Criterion, ...]
    judges: tuple[str, ...]
    corrected_by: tuple[str, ...] = ()

    @property
    def missed(self) -> list[Criterion]:
        """The criteria that the checkpoint does not meet."""
        return [criterion for criterion in self.criteria if not criterion.passed]

    @property
    def passed(self) -> bool | None:
        """Whether all criteria are met; None where none was measured."""
        return not self.missed if self.criteria else None

    @property
    def word(self) -> str:
        """`passed`, `missed` or `not measured`."""
        return {None: "not measured", True: "passed", False: "missed"}[self.passed]

    @property
    def words(self) -> str:
        """`passed`, or which criteria are missed and by how much."""
        if not self.missed:
            return self.word
        return f"missed: {'; '.join(map(_missed, self.missed))}"

    def named(self, name: str) -> Criterion | None:
        """The criterion of that name, or None where it was not asked."""
        return next((criterion for criterion in self.criteria if criterion.name == name), None)


def of(checkpoint: MeasuredCheckpoint) -> Gate:
    """The gate of one checkpoint."""
    table = checkpoint.tables["gate"]
    found = [
        Criterion(
            name=wording.plain(row["criterion"]),
            value=row["value"],
            low=row["low"],
            high=row["high"],
            n=0 if wording.is_missing(row["n"]) else int(row["n"]),
            threshold=row["threshold"],
            passed=wording.is_true(row["passed"]),
            corrected=wording.corrected(row),
        )
        for row in table.to_dict("records")
    ]
    judges = sorted({wording.plain(judge) for judge in table["judge"]} - {""})
    return Gate(checkpoint, tuple(found), tuple(judges), tuple(wording.correction_sources(table)))


def names(gates: list[Gate]) -> list[tuple[str, str]]:
    """(criterion, `≥ 0.80`) of all checkpoints in their order; thresholds that differ are all named."""
    found: dict[str, dict[str, None]] = {}
    for gate in gates:
        for criterion in gate.criteria:
            found.setdefault(criterion.name, {})[criterion.needs] = None
    return [(name, " or ".join(needs)) for name, needs in found.items()]


def summary(gates: list[Gate]) -> str:
    """`Gate passed at r2d2 250; missed at sft 250`, over the given checkpoints."""
    parts = []
    for word in ("passed", "missed", "not measured"):
        places = [f"{g.checkpoint.arm} {g.checkpoint.step}" for g in gates if g.word == word]
        parts += [f"{word} at {', '.join(places)}"] if places else []
    return wording.plain(f"Gate {'; '.join(parts)}") if parts else ""


def of_run(run: MeasuredRun) -> dict[str, Any]:
    """The gates of all checkpoints, and of the last of each arm, with their summary."""
    gates = [of(checkpoint) for checkpoint in run.checkpoints]
    last = {checkpoint.id for checkpoint in run.last_of_each_arm}
    ends = [gate for gate in gates if gate.checkpoint.id in last]
    return {
        "all": gates,
        "last": ends,
        "names": names(gates),
        "summary": summary(ends),
        "measured": any(gate.criteria for gate in gates),
        "passed": all(gate.passed for gate in ends),
        "judges": sorted({judge for gate in gates for judge in gate.judges}),
        "corrected_by": sorted({source for gate in gates for source in gate.corrected_by}),
    }


def _missed(criterion: Criterion) -> str:
    if wording.is_missing(criterion.value):
        return f"{criterion.name} has no value"
    known = f"{wording.rate(criterion.value)} where {wording.rate(criterion.threshold)} is needed"
    unsure = ", within its interval" if criterion.unsure else ""
    return f"{criterion.name} by {_short(criterion.short_by)} ({known}{unsure}, n = {criterion.n})"


def _short(gap: float) -> str:
    """What is missing; more decimals where two would say that nothing is."""
    return wording.rate(gap) if round(gap, 2) else wording.number(gap, 3)
