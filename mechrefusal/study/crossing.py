"""Activations of one checkpoint put into another: which site of the trained model makes the base refuse, and back."""

from collections.abc import Collection, Mapping
from functools import partial
from itertools import combinations

import pandas as pd

from mechrefusal import tables
from mechrefusal.causal.cross_patching import both_directions
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.models import Checkpoint, load_hooked
from mechrefusal.progress import console
from mechrefusal.study.across import SHARED, WhyApart, comparable, starts_of
from mechrefusal.study.caching import Made
from mechrefusal.study.run import Run
from mechrefusal.study.selection import Asked

STAGE = "cross patching"
"""Its units are a pair of checkpoints each."""


def crossing(
    run: Run,
    checkpoints: list[Checkpoint],
    asked: Asked,
    n_layers: Mapping[str, int],
    *,
    why_apart: WhyApart = comparable,
    version: int = 1,
) -> pd.DataFrame:
    """Table `cross_patching`: where arms start and the last checkpoint of each, and these with each other, both ways.

    They start from the base, or from the end of a warm-up; without either, at their own first checkpoint.

    On harmful and on as many harmless validation prompts.
    Each pair is kept by itself. Both are scored by the metric of the later checkpoint, the one that refuses; pairs that
    cannot be patched have a row that says why. `version`: of the stage.
    """
    wanted, parts = run.recipe.causal, []
    prompts = {
        "harmful": asked.validation.harmful.take(wanted.n_crossed).texts,
        "harmless": asked.validation.harmless.take(wanted.n_crossed).texts,
    }
    for one, other in _pairs(checkpoints, run.recipe.checkpoints):
        metric = RefusalMetric.from_json(tables.read("openings", run.measurements(other))["token_ids"].iloc[0])
        layers, apart = range(0, n_layers[one.id], wanted.layer_step), why_apart(one, other)
        given = {
            "version": version,
            "weights": [one.weights, other.weights],
            "metric": metric.as_json(),
            "prompts": prompts,
            "layers": list(layers),
            "n_rotations": wanted.n_rotations,
            "apart": apart,
        }
        make = partial(_made, run, one, other, prompts, metric, layers, apart)
        parts.append(run.cached(STAGE, _between(one, other), given, make).table("cross_patching"))
    return pd.concat(parts, ignore_index=True) if parts else tables.frame("cross_patching", [])


def _between(one: Checkpoint, other: Checkpoint) -> str:
    return f"{one.id} and {other.id}"


def _made(
    run: Run,
    one: Checkpoint,
    other: Checkpoint,
    prompts: Mapping[str, list[str]],
    metric: RefusalMetric,
    layers: range,
    apart: str,
) -> Made:
    """The rows of one pair, both ways, on either set of prompts."""
    between, rotations = _between(one, other), run.recipe.causal.n_rotations
    console.print(f"patching between {between}", highlight=False, soft_wrap=True)
    with run.timed(f"patch between {between}"):
        parts = [
            _crossed(one, other, texts, metric, layers, rotations, apart).assign(set=name)
            for name, texts in prompts.items()
        ]
    table = tables.frame("cross_patching", pd.concat(parts, ignore_index=True))
    return Made({run.measurements() / "pairs" / between / "cross_patching.parquet": table})


def _pairs(checkpoints: list[Checkpoint], given: Collection[str]) -> list[tuple[Checkpoint, Checkpoint]]:
    shared = [c for c in checkpoints if c.arm in SHARED]
    trained = sorted((c for c in checkpoints if c.arm not in SHARED), key=lambda c: c.step)
    ends = {c.arm: c for c in trained}
    firsts = {c.arm: c for c in reversed(trained)}
    starts = {arm: next(iter(starts_of(arm, shared, given)), first) for arm, first in firsts.items()}
    between = list(combinations(ends.values(), 2))
    return [(starts[arm], end) for arm, end in ends.items() if starts[arm] != end] + between


def _crossed(
    one: Checkpoint,
    other: Checkpoint,
    texts: list[str],
    metric: RefusalMetric,
    layers: range,
    rotations: int,
    apart: str,
) -> pd.DataFrame:
    known = {one.id: one, other.id: other}
    try:
        if apart:
            raise MechrefusalError(f"not compared: {apart}")
        loaders = {name: partial(load_hooked, checkpoint) for name, checkpoint in known.items()}
        found = both_directions(loaders, texts, metric, layers=layers, draws=rotations).table
    except MechrefusalError as error:
        nothing = dict.fromkeys(tables.columns("cross_patching")) | {"layer": -1, "head": -1, "n": 0}
        nothing |= {"reason": str(error)}
        found = pd.DataFrame([{**nothing, "source": a, "target": b} for a, b in (known, reversed(list(known)))])
    for side in ("source", "target"):
        found[f"arm_{side}"] = [known[name].arm for name in found[side]]
        found[f"step_{side}"] = [known[name].step for name in found[side]]
    return found.drop(columns=["source", "target"])
