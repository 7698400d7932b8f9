"""What a run could have told, and how many prompts, pairs or seeds would tell what one asks for.

import mechrefusal as mr

mr.study.power("checkpoints/demo", layers=5, rate=0.1)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import metrics, paired_difference
from mechrefusal.models import Checkpoint
from mechrefusal.statistics import power as formulas
from mechrefusal.statistics.depth import depth_difference, same_depth
from mechrefusal.study.across import pairs
from mechrefusal.study.depths import profiles, scaled
from mechrefusal.study.gate import HARMFUL, HARMLESS, UTILITY
from mechrefusal.study.loader import load_recipe
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.run import Run
from mechrefusal.study.selection import Asked, asked
from mechrefusal.study.stages import LAST

PROFILES = {"sharp": 0.38, "noisy": 1.0, "flat": 1.6}
"""Standard deviation of the depth's difference at 32 prompts, layers of 30, for the three shapes of the bypass over
layers that calibration/depth.py draws."""

DISCORDANT = 0.2
"""Assumed where there is no run: share of prompts that answer differently at two checkpoints."""

CELLS_CRITICAL = 3.7
"""Assumed where there is no run: |t| that the largest of 270 independent heads exceeds in 5% of maps of nothing."""


@dataclass(frozen=True)
class Wanted:
    """What is to be told: a move in layers, a difference of rates, an effect of a head in nats; with which power."""

    layers: float = 5.0
    rate: float = 0.1
    head: float = 0.5
    power: float = formulas.POWER

    def __post_init__(self) -> None:
        for name, high in (("layers", np.inf), ("rate", 1.0), ("head", np.inf)):
            if not 0 < getattr(self, name) <= high:
                raise MechrefusalError(f"{name} is {getattr(self, name):g}: give the size that is to be told, above 0")
        if not 0.5 <= self.power < 1:
            raise MechrefusalError(f"power is {self.power:g}: give a chance from 0.5 to below 1, such as 0.9")


def power(source: str | Path | Sequence[str | Path], **wanted: float) -> pd.DataFrame:
    """What could be told, and what it would take: one row a question.

    Args:
        source: folder of a measured run, or of several runs that differ in their seeds; or a recipe, packaged or a
            file, for which the noise is assumed (`reason` says what is).
        wanted: fields of `Wanted`: layers (5), rate (0.1), head (0.5 nats), power (0.9).

    Returns:
        question; of (between which checkpoints, of which prompts); n and its unit (prompts, pairs, seeds);
        could_tell: the least move, difference or effect that n tell with that power; wanted; n_needed for it, no
        value where no number is enough; reason: what is assumed, or why a number is missing.

    Raises:
        MechrefusalError: no such run or recipe, a run without measurements, or a size that is none.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    asked_for = Wanted(**wanted)
    if not sources:
        raise MechrefusalError("there is no run or recipe to plan from: name one")
    if len(sources) == 1 and not (Path(sources[0]) / "recipe.yaml").is_file():
        return tables.frame("power", _of_recipe(load_recipe(sources[0]), asked_for))
    rows: list[dict] = []
    runs = [Run.open(Path(each)) for each in sources]
    for run in runs:
        name = f"{run.folder.name}: " if len(runs) > 1 else ""
        found = _of_run(run, _measured(run), asked(run.recipe), asked_for)
        rows += [{**row, "of": name + row["of"]} for row in found]
    if len(runs) > 1:
        rows += _of_seeds(runs, asked_for)
    return tables.frame("power", rows)


def of_run(run: Run, checkpoints: Sequence[Checkpoint], chosen: Asked, wanted: Wanted) -> pd.DataFrame:
    """Table `power` of these checkpoints of a run, which are all measured, and of its prompts."""
    return tables.frame("power", _of_run(run, checkpoints, chosen, wanted))


def _row(
    question: str, of: str, n: float, unit: str, could: float, wanted: float, needed: float, why: str = ""
) -> dict:
    return dict(zip(tables.columns("power"), (question, of, n, unit, could, wanted, needed, why), strict=True))


def _measured(run: Run) -> list[Checkpoint]:
    checkpoints = [c for c in run.checkpoints() if run.finished(LAST, c.id) is not None]
    if not checkpoints:
        raise MechrefusalError(f"run {run.folder} has no measurements: run 'mechrefusal measure {run.folder}' first")
    return checkpoints


def _of_run(run: Run, checkpoints: Sequence[Checkpoint], chosen: Asked, wanted: Wanted) -> Iterator[dict]:
    yield from _moves(run, checkpoints, chosen, wanted)
    yield from _rates(run, checkpoints, wanted)
    for table, question, unit in (
        ("knockout_prompts", "effect of a knock-out", "prompts"),
        ("patching_pairs", "effect of a patched head", "pairs"),
    ):
        for checkpoint in checkpoints:
            values = tables.read(table, run.measurements(checkpoint))
            if len(values):
                yield _heads(values, question, checkpoint.id, unit, wanted)


def _moves(run: Run, checkpoints: Sequence[Checkpoint], chosen: Asked, wanted: Wanted) -> Iterator[dict]:
    known, n_layers = profiles(run, checkpoints, chosen.validation), {}
    for c in checkpoints:
        directions = tables.read("directions", run.measurements(c))
        n_layers[c.id] = int(directions["layer"].max()) + 1 if len(directions) else 0
    for a, b in pairs(checkpoints, given=run.recipe.checkpoints):
        limit, of = same_depth(n_layers[a.id]), f"{a.id} and {b.id}"
        first = known[a.id]
        second = scaled(known[b.id], n_layers=n_layers[b.id], to=n_layers[a.id])
        if first is None or second is None:
            yield _row("move of the carrier", of, nan, "prompts", nan, wanted.layers, nan, "no candidates were scored")
            continue
        found = depth_difference(first, second, admissible=run.recipe.measuring.admissible)
        if not isfinite(found.low):
            why = "a checkpoint has no admissible candidate"
            yield _row("move of the carrier", of, found.n, "prompts", nan, wanted.layers, nan, why)
            continue
        error = sqrt(sum(found.variance))
        yield _row(
            "move of the carrier",
            of,
            found.n,
            "prompts",
            formulas.smallest_move(error, limit, power=wanted.power),
            wanted.layers,
            formulas.prompts_for_move(wanted.layers, error, limit, found.n, power=wanted.power),
            f"{limit:g} layers count as the same depth",
        )


def _rates(run: Run, checkpoints: Sequence[Checkpoint], wanted: Wanted) -> Iterator[dict]:
    verdicts = metrics.plain(tables.read("verdicts", run.measurements()))
    for a, b in pairs(checkpoints):
        for name in (HARMFUL, HARMLESS, UTILITY):
            sides = []
            for each in (a, b):
                here = (verdicts["arm"] == each.arm) & (verdicts["step"] == each.step)
                own = verdicts[here & (verdicts["suite"] == name)]
                sides.append(metrics.refused(own).astype(float).set_axis(own["prompt_id"]))
            both = pd.concat(sides, axis=1, join="inner")
            if len(both):
                found = paired_difference(both.iloc[:, 0], both.iloc[:, 1], both.index)
                changed = (found.only_a or 0) + (found.only_b or 0)
                # Half a prompt more, as none that changed does not mean that none ever will.
                share = (changed + 0.5) / (found.n + 1)
                yield _rate(f"{a.id} and {b.id}, {name}", found.n, share, wanted)


def _rate(of: str, n: int, share: float, wanted: Wanted) -> dict:
    """`share`: of the prompts that answer differently."""
    could = formulas.smallest_rate_difference(share, n, power=wanted.power)
    needed = formulas.prompts_for_rates(wanted.rate, max(share, wanted.rate), power=wanted.power)
    why = f"{share:.0%} of the prompts answer differently"
    return _row("difference of refusal rates", of, n, "prompts", could, wanted.rate, needed, why)


def _heads(values: pd.DataFrame, question: str, of: str, unit: str, wanted: Wanted) -> dict:
    by, value = ("pair", "raw") if "pair" in values else ("prompt_id", "value")
    if "mode" in values:
        values = values[values["mode"] == values["mode"].iloc[0]]
    cells = [name for name in ("component", "site", "layer", "head", "position") if name in values]
    table = values.pivot_table(index=by, columns=cells, values=value).dropna(axis=1).to_numpy(float)
    critical = formulas.map_critical(table)
    if len(table) < 2 or not isfinite(critical):
        return _row(question, of, len(table), unit, nan, wanted.head, nan, "too few to know their noise")
    # Of what moves at all: most heads do nothing on any prompt.
    spread = float(np.quantile(table.std(axis=0, ddof=1), 0.9))
    return _row(
        question,
        of,
        len(table),
        unit,
        formulas.smallest_effect(spread, critical, len(table), power=wanted.power),
        wanted.head,
        formulas.prompts_for_effect(wanted.head, spread, critical, power=wanted.power),
        f"nats; {table.shape[1]} tested together (|t| > {critical:.1f}), nine in ten have a noise below {spread:.2f}",
    )


def _of_seeds(runs: Sequence[Run], wanted: Wanted) -> Iterator[dict]:
    """Differences of the last checkpoints of two arms, run by run."""
    differences: dict[str, list[float]] = {}
    for run in runs:
        last = list({c.arm: c for c in _measured(run)}.values())
        rates = {}
        for c in last:
            table = tables.read("gate", run.measurements(c))
            rates[c.arm] = dict(zip(table["criterion"], table["value"], strict=True))
        for i, one in enumerate(last):
            for other in last[i + 1 :]:
                for name in rates[one.arm].keys() & rates[other.arm].keys():
                    key = f"{one.arm} and {other.arm}, {name}"
                    differences.setdefault(key, []).append(rates[other.arm][name] - rates[one.arm][name])
    for of, found in sorted(differences.items()):
        n = len(found)
        spread = float(np.std(found, ddof=1)) if n > 1 else nan
        could, needed, why = nan, nan, "" if n > 2 else f"{n} seeds hardly know their own noise"
        if n > 1 and spread > 1e-9:
            sizes = np.linspace(0.05, 100, 2000)
            could = spread * float(next((size for size in sizes if _t_power(size, n) >= wanted.power), nan))
            needed = float(next((k for k in range(2, 2000) if _t_power(wanted.rate / spread, k) >= wanted.power), nan))
        yield _row("difference of rates, over seeds", of, n, "seeds", could, wanted.rate, needed, why)


def _t_power(size: float, n: int) -> float:
    """Power of the paired t test of 5% at a standardised mean difference."""
    critical, shift = stats.t.ppf(1 - formulas.ALPHA / 2, n - 1), size * sqrt(n)
    return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))


def _of_recipe(recipe: Recipe, wanted: Wanted) -> Iterator[dict]:
    measuring, causal = recipe.measuring, recipe.causal
    n, limit = measuring.n_validation, same_depth(30)
    for name, at_32 in PROFILES.items():
        error = at_32 * sqrt(32 / n) if n else nan
        yield _row(
            "move of the carrier",
            f"two checkpoints, {name} profile",
            n,
            "prompts",
            formulas.smallest_move(error, limit, power=wanted.power),
            wanted.layers,
            formulas.prompts_for_move(wanted.layers, error, limit, n, power=wanted.power) if n else nan,
            "assumed: a model of 30 layers, an error as simulated (docs/calibration.md)",
        )
    for name, n in (
        (HARMFUL, measuring.n_evaluation), (HARMLESS, measuring.n_evaluation), (UTILITY, measuring.n_utility),
    ):  # fmt: skip
        if n:
            row = _rate(f"two checkpoints, {name}", n, DISCORDANT, wanted)
            yield {**row, "reason": f"assumed: {row['reason']}"}
    for question, n, unit in (
        ("effect of a knock-out", causal.n_knocked_out, "prompts"),
        ("effect of a patched head", measuring.n_pairs, "pairs"),
    ):
        if n:
            yield _row(
                question,
                "one head of 270",
                n,
                unit,
                formulas.smallest_effect(1.0, CELLS_CRITICAL, n, power=wanted.power),
                wanted.head,
                formulas.prompts_for_effect(wanted.head, 1.0, CELLS_CRITICAL, power=wanted.power),
                "assumed: effects in units of their standard deviation between prompts",
            )
