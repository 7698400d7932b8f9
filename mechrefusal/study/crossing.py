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
from mechrefusal.study.run import Run, fingerprint
from mechrefusal.study.selection import Asked

RULES = 2
"""Counted up where what is measured changes: pairs that were patched by other rules are patched anew."""


def crossing(
    run: Run,
    checkpoints: list[Checkpoint],
    asked: Asked,
    n_layers: Mapping[str, int],
    *,
    why_apart: WhyApart = comparable,
) -> pd.DataFrame:
    """Table `cross_patching`: where arms start and the last checkpoint of each, and these with each other, both ways.

    They start from the base, or from the end of a warm-up; without either, at their own first checkpoint.

    On harmful and on as many harmless validation prompts.
    A pair that was patched with the same settings and metric is not patched again. Both are scored by the metric of the
    later checkpoint, the one that refuses; pairs that cannot be patched have a row that says why.
    """
    wanted, table = run.recipe.causal, tables.read("cross_patching", run.measurements())
    if wanted.n_crossed == 0:
        return table
    texts = {
        "harmful": asked.validation.harmful.take(wanted.n_crossed),
        "harmless": asked.validation.harmless.take(wanted.n_crossed),
    }
    for one, other in _pairs(checkpoints, run.recipe.checkpoints):
        metric = RefusalMetric.from_json(tables.read("openings", run.measurements(other))["token_ids"].iloc[0])
        prompts = [side.ids for side in texts.values()]
        stamp = fingerprint(
            [RULES, one.weights, other.weights, metric.as_json(), *prompts, wanted.layer_step, wanted.n_rotations]
        )
        key = f"{one.id} {other.id}"
        if run.manifest.get("crossed", {}).get(key) == stamp:
            continue
        console.print(f"patching between {one.id} and {other.id}", highlight=False, soft_wrap=True)
        layers, apart = range(0, n_layers[one.id], wanted.layer_step), why_apart(one, other)
        with run.timed(f"patch between {one.id} and {other.id}"):
            parts = [
                _crossed(one, other, side.texts, metric, layers, wanted.n_rotations, apart).assign(set=name)
                for name, side in texts.items()
            ]
            rows = pd.concat(parts, ignore_index=True)
        rows = tables.frame("cross_patching", rows)
        own = _between(table, one, other) | _between(table, other, one)
        table = pd.concat([part for part in (table[~own], rows) if len(part)], ignore_index=True)
        tables.write(table, "cross_patching", run.measurements())
        run.update({"crossed": {key: stamp}})
    return table


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
        found = both_directions(loaders, texts, metric, layers=layers, draws=rotations)
    except MechrefusalError as error:
        nothing = dict.fromkeys(tables.columns("cross_patching")) | {"layer": -1, "head": -1, "n": 0}
        nothing |= {"reason": str(error)}
        found = pd.DataFrame([{**nothing, "source": a, "target": b} for a, b in (known, reversed(list(known)))])
    for side in ("source", "target"):
        found[f"arm_{side}"] = [known[name].arm for name in found[side]]
        found[f"step_{side}"] = [known[name].step for name in found[side]]
    return found.drop(columns=["source", "target"])


def _between(table: pd.DataFrame, source: Checkpoint, target: Checkpoint) -> pd.Series:
    ends = {"source": source, "target": target}
    here = pd.Series(data=True, index=table.index)
    for side, checkpoint in ends.items():
        here &= (table[f"arm_{side}"] == checkpoint.arm) & (table[f"step_{side}"] == checkpoint.step)
    return here
