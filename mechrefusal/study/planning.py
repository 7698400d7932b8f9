"""What a run could have told, and how many prompts, pairs or seeds would tell what one asks for.

import mechrefusal as mr

mr.study.power("checkpoints/demo", layers=5, rate=0.1)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
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
from mechrefusal.study.across import Pairs
from mechrefusal.study.depths import profiles, scaled
from mechrefusal.study.gate import HARMFUL, HARMLESS, UTILITY
from mechrefusal.study.loader import load_recipe
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts, choose_prompts
from mechrefusal.study.stages import LAST

PROFILES = {"sharp": 0.38, "noisy": 1.0, "flat": 1.6}
"""Standard deviation of the depth's difference at 32 prompts, layers of 30, for the three shapes of the bypass over
layers that calibration/depth.py draws."""

DISCORDANT = 0.2
"""Assumed where there is no run: share of prompts that answer differently at two checkpoints."""

CELLS_CRITICAL = 3.7
"""Assumed where there is no run: |t| that the largest of 270 independent heads exceeds in 5% of maps of nothing."""

KNOCK_OUT = ("effect of a knock-out", "prompts")
PATCHING = ("effect of a patched head", "pairs")
"""Question and unit of an effect of heads."""


@dataclass(frozen=True)
class EffectSizes:
    """Effects to detect (a move in layers, a difference of rates, a head's effect in nats), and with which power."""

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

    # A row of table `power` each. `error`, `share`, `spread`, `critical`: the noise of what n prompts or pairs tell.

    def move(self, of: str, n: float, reason: str, *, error: float = nan, limit: float = nan) -> dict:
        """The row for a move of the carrier, in layers; up to `limit` layers count as the same depth."""
        could = needed = nan
        if isfinite(error):
            could = formulas.smallest_move(error, limit, power=self.power)
            needed = formulas.prompts_for_move(self.layers, error, limit, n, power=self.power)
        return _row("move of the carrier", of, n, "prompts", could, self.layers, needed, reason)

    def difference(self, of: str, n: int, share: float, *, assumed: bool = False) -> dict:
        """The row for a difference of two refusal rates; `share`: of the prompts that answer differently."""
        could = formulas.smallest_rate_difference(share, n, power=self.power)
        needed = formulas.prompts_for_rates(self.rate, max(share, self.rate), power=self.power)
        reason = f"{'assumed: ' if assumed else ''}{share:.0%} of the prompts answer differently"
        return _row("difference of refusal rates", of, n, "prompts", could, self.rate, needed, reason)

    def effect(self, what: tuple[str, str], of: str, n: int, reason: str, spread: float, critical: float) -> dict:
        """The row for the effect of one head, nats, among many that are tested together."""
        could = needed = nan
        if isfinite(spread):
            could = formulas.smallest_effect(spread, critical, n, power=self.power)
            needed = formulas.prompts_for_effect(self.head, spread, critical, power=self.power)
        return _row(what[0], of, n, what[1], could, self.head, needed, reason)


def power(source: str | Path | Sequence[str | Path], **sizes: float) -> pd.DataFrame:
    """What could be told, and what it would take: one row a question.

    Args:
        source: folder of a measured run, or of several runs that differ in their seeds; or a recipe, packaged or a
            file, for which the noise is assumed (`reason` says what is).
        sizes: fields of `EffectSizes`: layers (5), rate (0.1), head (0.5 nats), power (0.9).

    Returns:
        question; of (between which checkpoints, of which prompts); n and its unit (prompts, pairs, seeds);
        could_tell: the least move, difference or effect that n tell with that power; wanted; n_needed for it, no
        value where no number is enough; reason: what is assumed, or why a number is missing.

    Raises:
        MechrefusalError: no such run or recipe, a run without measurements, or a size that is none.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    effects = EffectSizes(**sizes)
    if not sources:
        raise MechrefusalError("there is no run or recipe to plan from: name one")
    if len(sources) == 1 and not (Path(sources[0]) / "recipe.yaml").is_file():
        return tables.frame("power", _of_recipe(load_recipe(sources[0]), effects))
    runs = [Run.open(Path(each)) for each in sources]
    if len(runs) == 1:
        return of_run(runs[0], _measured(runs[0]), choose_prompts(runs[0].recipe), effects)
    parts = [of_run(run, _measured(run), choose_prompts(run.recipe), effects) for run in runs]
    parts = [part.assign(of=f"{run.folder.name}: " + part["of"]) for run, part in zip(runs, parts, strict=True)]
    over_seeds = tables.frame("power", _of_seeds(runs, effects))
    return tables.frame("power", pd.concat([*parts, over_seeds], ignore_index=True))


def of_run(run: Run, checkpoints: Sequence[Checkpoint], prompts: StudyPrompts, sizes: EffectSizes) -> pd.DataFrame:
    """Table `power` of these checkpoints of a run, which are all measured, and of its prompts."""
    rows = [*_moves(run, checkpoints, prompts, sizes), *_rates(run, checkpoints, sizes)]
    for table, what in (("knockout_prompts", KNOCK_OUT), ("patching_pairs", PATCHING)):
        for checkpoint in checkpoints:
            values = tables.read(table, run.measurements(checkpoint))
            if len(values):
                rows.append(_heads(values, what, checkpoint.id, sizes))
    return tables.frame("power", rows)


def _row(question: str, of: str, n: float, unit: str, could: float, size: float, needed: float, reason: str) -> dict:
    return dict(zip(tables.columns("power"), (question, of, n, unit, could, size, needed, reason), strict=True))


def _measured(run: Run) -> list[Checkpoint]:
    checkpoints = [c for c in run.checkpoints() if run.finished(LAST, c.id) is not None]
    if not checkpoints:
        raise MechrefusalError(f"run {run.folder} has no measurements: run 'mechrefusal measure {run.folder}' first")
    return checkpoints


def _moves(run: Run, checkpoints: Sequence[Checkpoint], prompts: StudyPrompts, sizes: EffectSizes) -> Iterator[dict]:
    by_id, n_layers = profiles(run, checkpoints, prompts.validation), {}
    for c in checkpoints:
        directions = tables.read("directions", run.measurements(c))
        n_layers[c.id] = int(directions["layer"].max()) + 1 if len(directions) else 0
    for a, b in Pairs(checkpoints, given=run.recipe.checkpoints):
        limit, of = same_depth(n_layers[a.id]), f"{a.id} and {b.id}"
        first, second = by_id[a.id], scaled(by_id[b.id], n_layers=n_layers[b.id], to=n_layers[a.id])
        if first is None or second is None:
            yield sizes.move(of, nan, "no candidates were scored")
            continue
        difference = depth_difference(first, second, admissible=run.recipe.measuring.admissible)
        if not isfinite(difference.low):
            yield sizes.move(of, difference.n, "a checkpoint has no admissible candidate")
            continue
        reason = f"{limit:g} layers count as the same depth"
        yield sizes.move(of, difference.n, reason, error=sqrt(sum(difference.variance)), limit=limit)


def _rates(run: Run, checkpoints: Sequence[Checkpoint], sizes: EffectSizes) -> Iterator[dict]:
    verdicts = metrics.plain(tables.read("verdicts", run.measurements()))
    for a, b in Pairs(checkpoints):
        for name in (HARMFUL, HARMLESS, UTILITY):
            sides = []
            for each in (a, b):
                here = (verdicts["arm"] == each.arm) & (verdicts["step"] == each.step)
                answers = verdicts[here & (verdicts["suite"] == name)]
                sides.append(metrics.refused(answers).astype(float).set_axis(answers["prompt_id"]))
            both = pd.concat(sides, axis=1, join="inner")
            if len(both):
                change = paired_difference(both.iloc[:, 0], both.iloc[:, 1], both.index)
                changed = (change.only_a or 0) + (change.only_b or 0)
                # Half a prompt more, as none that changed does not mean that none ever will.
                yield sizes.difference(f"{a.id} and {b.id}, {name}", change.n, (changed + 0.5) / (change.n + 1))


def _heads(values: pd.DataFrame, what: tuple[str, str], of: str, sizes: EffectSizes) -> dict:
    by, value = ("pair", "raw") if "pair" in values else ("prompt_id", "value")
    if "mode" in values:
        values = values[values["mode"] == values["mode"].iloc[0]]
    cells = [name for name in ("component", "site", "layer", "head", "position") if name in values]
    table = values.pivot_table(index=by, columns=cells, values=value).dropna(axis=1).to_numpy(float)
    critical = formulas.map_critical(table)
    if len(table) < 2 or not isfinite(critical):
        return sizes.effect(what, of, len(table), "too few to know their noise", nan, nan)
    # Of what moves at all: most heads do nothing on any prompt.
    spread = float(np.quantile(table.std(axis=0, ddof=1), 0.9))
    tests = f"{table.shape[1]} tested together (|t| > {critical:.1f})"
    reason = f"nats; {tests}, nine in ten have a noise below {spread:.2f}"
    return sizes.effect(what, of, len(table), reason, spread, critical)


def _of_seeds(runs: Sequence[Run], sizes: EffectSizes) -> Iterator[dict]:
    """Differences of the last checkpoints of two arms, run by run."""
    differences: dict[str, list[float]] = {}
    for run in runs:
        rates = {}
        for c in {c.arm: c for c in _measured(run)}.values():
            table = tables.read("gate", run.measurements(c))
            rates[c.arm] = dict(zip(table["criterion"], table["value"], strict=True))
        for first, second in combinations(rates, 2):
            for name in rates[first].keys() & rates[second].keys():
                difference = rates[second][name] - rates[first][name]
                differences.setdefault(f"{first} and {second}, {name}", []).append(difference)
    for of, by_seed in sorted(differences.items()):
        n = len(by_seed)
        spread = float(np.std(by_seed, ddof=1)) if n > 1 else nan
        could, needed, reason = nan, nan, "" if n > 2 else f"{n} seeds hardly know their own noise"
        if n > 1 and spread > 1e-9:
            grid = np.linspace(0.05, 100, 2000)
            could = spread * float(next((size for size in grid if _t_power(size, n) >= sizes.power), nan))
            needed = float(next((k for k in range(2, 2000) if _t_power(sizes.rate / spread, k) >= sizes.power), nan))
        yield _row("difference of rates, over seeds", of, n, "seeds", could, sizes.rate, needed, reason)


def _t_power(size: float, n: int) -> float:
    """Power of the paired t test of 5% at a standardised mean difference."""
    critical, shift = stats.t.ppf(1 - formulas.ALPHA / 2, n - 1), size * sqrt(n)
    return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))


def _of_recipe(recipe: Recipe, sizes: EffectSizes) -> Iterator[dict]:
    measuring, n = recipe.measuring, recipe.measuring.n_validation
    for name, at_32 in PROFILES.items():
        reason = "assumed: a model of 30 layers, an error as simulated (docs/calibration.md)"
        yield sizes.move(
            f"two checkpoints, {name} profile", n, reason, error=at_32 * sqrt(32 / n), limit=same_depth(30)
        )
    counts = {HARMFUL: measuring.n_evaluation, HARMLESS: measuring.n_evaluation, UTILITY: measuring.n_utility}
    for name, n in counts.items():
        if n:
            yield sizes.difference(f"two checkpoints, {name}", n, DISCORDANT, assumed=True)
    for what, n in ((KNOCK_OUT, recipe.causal.n_knocked_out), (PATCHING, measuring.n_pairs)):
        if n:
            reason = "assumed: effects in units of their standard deviation between prompts"
            yield sizes.effect(what, "one head of 270", n, reason, 1.0, CELLS_CRITICAL)
