"""What differs between arms on the same prompts: their ends, and guided arms beside their twins without a guide."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite, nan
from typing import Any

import pandas as pd

from mechrefusal import tables
from mechrefusal.evaluation import paired_difference
from mechrefusal.evaluation.metrics import NONE
from mechrefusal.geometry import separability
from mechrefusal.models import Checkpoint
from mechrefusal.statistics import maps
from mechrefusal.statistics.choosing import Admissible
from mechrefusal.statistics.depth import Profile, depth_difference
from mechrefusal.study.across import SHARED, Pairs
from mechrefusal.study.depths import scaled
from mechrefusal.study.guided import counterparts
from mechrefusal.study.methods import RATES, SUCCESS, Methods, Rate, after_removal, mean_separability
from mechrefusal.study.table_rows import carrier_place

START, ENDS = "start", "methods"
REMOVAL, CARRIER_LAYER, SEPARABILITY = "removal_refused", "carrier_layer", "separability"


@dataclass(frozen=True)
class _Pair:
    relation: str
    a: Checkpoint
    b: Checkpoint
    is_last: bool


def method_differences(
    measured: Methods,
    pairs: Pairs,
    profiles: Mapping[str, Profile | None],
    behaviours: Mapping[str, str],
    admissible: Admissible,
) -> pd.DataFrame:
    """Table `method_differences`: paired differences of rates, what removal leaves, depth and separability.

    Rates: `evaluation.paired_difference` (Newcombe's interval for paired rates, McNemar's exact test), on the prompts
    that both were asked; attack cases of one behaviour stand or fall together. Depth: `statistics.depth_difference`, as
    for `relocation`: between models of unlike depth, layers of the second are counted as shares of the first's.
    Separability: `geometry.separability.difference`, the mean over layers.

    Args:
        pairs: the ends of arms are compared as it pairs them; guided arms at every step that both have.
        profiles: of each checkpoint, by id (`depths.profile`).
        behaviours: of every attack case, by its id.
    """
    rows: list[dict[str, Any]] = []
    for pair in _pairs(measured, pairs):
        rows += _compared(measured, pair, profiles, behaviours, admissible)
    table = pd.DataFrame(rows, columns=[name for name in tables.columns("method_differences") if name != "p_adjusted"])
    adjusted = maps.holm(table["mcnemar_p"].to_numpy(float))
    return tables.frame("method_differences", table.assign(p_adjusted=adjusted))


def _pairs(measured: Methods, pairs: Pairs) -> Iterator[_Pair]:
    lasts, related = measured.lasts, counterparts(measured.arms)
    by_arm: dict[str, list[Checkpoint]] = {}
    for checkpoint in measured.checkpoints:
        by_arm.setdefault(checkpoint.arm, []).append(checkpoint)
    guided = {(pair.first, pair.second): pair.relation for pair in related}
    for a, b in pairs.ends():
        if (a.arm, b.arm) not in guided and (b.arm, a.arm) not in guided:
            is_start = a.arm in SHARED or a.arm == b.arm
            yield _Pair(START if is_start else ENDS, a, b, is_last=True)
    for pair in related:
        for a, b in product(by_arm.get(pair.first, []), by_arm.get(pair.second, [])):
            ends = lasts[pair.first] == a and lasts[pair.second] == b
            if a.step == b.step or ends:
                yield _Pair(pair.relation, a, b, is_last=ends)


def _compared(
    measured: Methods,
    pair: _Pair,
    profiles: Mapping[str, Profile | None],
    behaviours: Mapping[str, str],
    admissible: Admissible,
) -> Iterator[dict[str, Any]]:
    ends = {"arm_a": pair.a.arm, "step_a": pair.a.step, "arm_b": pair.b.arm, "step_b": pair.b.step}
    known = {"relation": pair.relation, **ends, "is_last": pair.is_last}
    asked = [(rate, NONE) for rate in RATES] + [(SUCCESS, attack) for attack in measured.attacks]
    for rate, attack in asked:
        row = _rate(measured, pair, rate, attack, behaviours if attack != NONE else {})
        yield known | {"measure": rate.name, "attack": attack} | row
    yield known | {"measure": REMOVAL, "attack": NONE} | _removal(measured, pair)
    yield known | {"measure": CARRIER_LAYER, "attack": NONE} | _depth(measured, pair, profiles, admissible)
    yield known | {"measure": SEPARABILITY, "attack": NONE} | _separability(measured, pair)


def _rate(measured: Methods, pair: _Pair, rate: Rate, attack: str, behaviours: Mapping[str, str]) -> dict[str, Any]:
    verdicts = [measured.each["verdicts"][c.id] for c in (pair.a, pair.b)]
    judges = [sorted(set(table["judge"])) for table in verdicts]
    first, second = (rate.outcomes(table, attack=attack) for table in verdicts)
    return {"judge": ", ".join(judges[0])} | _paired(first, second, behaviours)


def _removal(measured: Methods, pair: _Pair) -> dict[str, Any]:
    """What is left of refusal under the best ablation of either within a KL, on the same held-out prompts."""
    removals = [measured.each["removal"][c.id] for c in (pair.a, pair.b)]
    first, second = (
        after_removal(table, measured.each["removal_prompts"][c.id])
        for table, c in zip(removals, (pair.a, pair.b), strict=True)
    )
    row = _paired(first, second, {})
    judges = sorted({str(judge) for table in removals for judge in table["judge"].dropna() if judge})
    without = [c.id for c, each in zip((pair.a, pair.b), (first, second), strict=True) if each.empty]
    reason = f"no ablation was tried at {' and '.join(without)}" if without else row["reason"]
    return {"judge": ", ".join(judges)} | row | {"reason": reason}


def _paired(first: pd.Series, second: pd.Series, behaviours: Mapping[str, str]) -> dict[str, Any]:
    """The difference of two rates on the prompts that both were asked."""
    ids = [name for name in first.index if name in second.index]
    groups = [behaviours.get(name) for name in ids] if behaviours else None
    change = paired_difference(first[ids], second[ids], ids, groups)
    reason = "" if change.n else "not both were asked such prompts" if not len(ids) else "the judge gave nothing"
    return {
        **{name: getattr(change, name) for name in ("mean_a", "mean_b", "difference", "low", "high", "n")},
        "mcnemar_p": change.mcnemar_p if change.n else nan,
        "reason": reason,
    }


def _depth(
    measured: Methods, pair: _Pair, profiles: Mapping[str, Profile | None], admissible: Admissible
) -> dict[str, Any]:
    """How many layers the carrier of the second lies behind that of the first."""
    ends, n_layers = (pair.a, pair.b), [measured.n_layers[c.id] for c in (pair.a, pair.b)]
    means: Sequence[float] = [_layer(measured, c) for c in ends]
    row = {"judge": "", "mean_a": means[0], "mean_b": means[1], "mcnemar_p": nan}
    nothing = {"difference": nan, "low": nan, "high": nan, "n": 0}
    if without := [c for c, mean in zip(ends, means, strict=True) if not isfinite(mean)]:
        return row | nothing | {"reason": f"no carrier at {' and '.join(c.id for c in without)}"}
    first, second = profiles.get(ends[0].id), profiles.get(ends[1].id)
    if first is None or second is None:
        unknown = ends[0].id if first is None else ends[1].id
        return row | nothing | {"reason": f"the scores of {unknown} were not kept prompt by prompt"}
    second = scaled(second, n_layers=n_layers[1], to=n_layers[0])
    assert second is not None
    between = depth_difference(first, second, admissible=admissible)
    reason = "" if isfinite(between.low) else f"no interval from {between.n} prompts"
    values = {"difference": between.value, "low": between.low, "high": between.high, "n": between.n}
    return row | values | {"reason": reason}


def _separability(measured: Methods, pair: _Pair) -> dict[str, Any]:
    """How much further apart harmful and harmless prompts lie, on bootstraps of the same prompts."""
    ends = (pair.a, pair.b)
    means = [mean_separability(measured.each["separability"][c.id]) for c in ends]
    values = [float(each["value"]) for each in means]
    row = {"judge": "", "mean_a": values[0], "mean_b": values[1], "mcnemar_p": nan}
    if not all(map(isfinite, values)):
        missing = [c.id for c, value in zip(ends, values, strict=True) if not isfinite(value)]
        return row | {"difference": nan, "low": nan, "high": nan, "n": 0,
                      "reason": f"separability was not measured at {' and '.join(missing)}"}  # fmt: skip
    first, second = (
        measured.each["separability_draws"][c.id].sort_values("draw")["value"].to_numpy(float) for c in ends
    )
    change = separability.difference(values[0], values[1], first, second, int(means[0]["n"]))
    reason = "" if isfinite(change.low) else f"no interval from {change.n} prompts"
    return row | change.columns("difference", "") | {"n": change.n, "reason": reason}


def _layer(measured: Methods, checkpoint: Checkpoint) -> float:
    carrier = measured.each["carrier"][checkpoint.id]
    place = carrier_place(carrier.iloc[0]) if len(carrier) else None
    return nan if place is None else float(place[1])
