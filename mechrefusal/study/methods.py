"""The methods side by side: what each arm gave, where its refusal sits, and whose carrier works where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import median
from typing import Any

import pandas as pd

from mechrefusal import tables
from mechrefusal.evaluation import metrics
from mechrefusal.evaluation.metrics import NONE
from mechrefusal.geometry.separability import ALL_LAYERS
from mechrefusal.models import Checkpoint
from mechrefusal.statistics import intervals
from mechrefusal.study import guided
from mechrefusal.study.across import SHARED
from mechrefusal.study.arms import PlannedArm
from mechrefusal.study.gate import HARMFUL, HARMLESS, UTILITY
from mechrefusal.study.move_verdicts import by_transfer
from mechrefusal.study.table_rows import carrier_place

RANK = {"rows": "layers", "scaling": "unit", "weight": "sigma_squared"}
"""The variant of table `effective_rank` that arms are compared by: it needs no admissible candidate."""


REMOVAL_KL = 0.1
"""The largest cost of an ablation, nats, that removal is compared at: what a carrier may cost as published."""
OWN = -1
"""`draw` in table `removal_prompts`: along the checkpoint's own direction, not a random one."""


@dataclass(frozen=True)
class Rate:
    """A rate of the answers to one of the study's own suites, by its name in the tables."""

    name: str
    suite: str
    metric: str

    def outcomes(self, verdicts: pd.DataFrame, *, attack: str = NONE) -> pd.Series:
        """0 or 1 for each prompt by its id, NaN where the judge gave nothing; empty where none was asked.

        Args:
            verdicts: of one checkpoint by one judge of refusal.
            attack: that the prompts were put under.
        """
        asked = verdicts[(verdicts["suite"] == self.suite) & (verdicts["intervention"] == NONE)]
        asked = asked[asked["attack"] == attack]
        if asked.empty:
            return pd.Series(dtype=float)
        values = metrics.by_metric(asked, side=str(asked["side"].iloc[0]), kind=metrics.REFUSAL)[self.metric]
        return pd.Series(values.to_numpy(float), index=asked["prompt_id"].astype(str))


SUCCESS = Rate("attack_success", HARMFUL, metrics.SUCCESS)
RATES = (
    Rate("refused", HARMFUL, "any_refusal"),
    Rate("answered", HARMLESS, metrics.ANSWERED),
    Rate("overrefused", "overrefusal", "any_refusal"),
    Rate("useful", UTILITY, metrics.ANSWERED),
)
"""What a method gives without an attack, and what it costs."""


OF_EACH = (
    "verdicts", "gate", "carrier", "removal", "removal_prompts", "separability", "separability_draws",
)  # fmt: skip


@dataclass(frozen=True)
class Methods:
    """What was measured of the checkpoints that are compared.

    Fields:
        arms: as the recipe plans them.
        attacks: methods of its attacks.
        each: the tables `OF_EACH` of every checkpoint, by name and then by its id.
        ranks, transfers: tables `effective_rank` and `transfer`.
        n_layers: of each checkpoint's model, by id.
    """

    checkpoints: Sequence[Checkpoint]
    arms: Sequence[PlannedArm]
    attacks: Sequence[str]
    each: Mapping[str, Mapping[str, pd.DataFrame]]
    ranks: pd.DataFrame
    transfers: pd.DataFrame
    n_layers: Mapping[str, int]

    @property
    def lasts(self) -> dict[str, Checkpoint]:
        """The last checkpoint of every arm, shared ones included."""
        return {c.arm: c for c in sorted(self.checkpoints, key=lambda c: c.step)}

    @property
    def attack(self) -> str:
        """The first attack of the recipe, empty where there is none."""
        return next(iter(self.attacks), "")


def methods(measured: Methods) -> pd.DataFrame:
    """Table `methods`: one row a checkpoint.

    The shares of `given` and `taken` are those of `relocation` (measure transfer): one model, one metric, the same
    prompts, and what a checkpoint's own carrier does is that of every prompt under what the other prompts choose. They
    have no interval of their own: table `transfer` has that of every pair.
    """
    return tables.frame("methods", [_row(measured, checkpoint) for checkpoint in measured.checkpoints])


def _row(measured: Methods, checkpoint: Checkpoint) -> dict[str, Any]:
    identity = checkpoint.id
    verdicts, gate, carrier = (measured.each[name][identity] for name in ("verdicts", "gate", "carrier"))
    without = [str(carrier.iloc[0]["reason"])] if len(carrier) else ["the carrier was not measured"]
    row: dict[str, Any] = {
        "arm": checkpoint.arm,
        "step": checkpoint.step,
        "is_last": measured.lasts[checkpoint.arm] == checkpoint,
        **_planned(checkpoint.arm, measured.arms),
        "gate": bool(gate["passed"].all()) if len(gate) else None,
        "judge": str(verdicts["judge"].iloc[0]) if len(verdicts) else "",
        "attack": measured.attack,
    }
    for rate in RATES:
        row |= _estimated(rate.name, rate.outcomes(verdicts))
    attacked = SUCCESS.outcomes(verdicts, attack=measured.attack) if measured.attack else pd.Series(dtype=float)
    row |= _estimated(SUCCESS.name, attacked)
    depth = measured.n_layers[identity]
    ends = dict.fromkeys(("layer", "layer_low", "layer_high"))
    if len(carrier) and carrier_place(carrier.iloc[0]) is not None:
        ends, without = {name: carrier.iloc[0][name] for name in ends}, []
    row |= ends | {"n_layers": depth, "depth": nan if ends["layer"] is None else float(ends["layer"]) / depth}
    row |= _rank(measured.ranks, checkpoint)
    row |= _separability(measured.each["separability"][identity])
    others = [c for c in measured.lasts.values() if c.arm not in (*SHARED, checkpoint.arm)]
    row |= _shares("given", [_share(measured, checkpoint, other) for other in others])
    row |= _shares("taken", [_share(measured, other, checkpoint) for other in others])
    row |= _removal(measured.each["removal"][identity])
    return row | {"reason": "; ".join(filter(None, without))}


def _planned(arm: str, arms: Sequence[PlannedArm]) -> dict[str, str]:
    """How an arm was trained, as the recipe plans it."""
    planned = next((each for each in arms if each.name == arm), None)
    if planned is None:
        return dict.fromkeys(("method", "guide", "along", "twin"), "")
    guide = guided.guide_of(planned)
    twins = (pair for pair in guided.counterparts(arms) if pair.second == arm)
    return {
        "method": planned.method.name,
        "guide": guided.told(planned),
        "along": guide.direction if guide is not None and guide.has_terms else "",
        "twin": next((pair.first for pair in twins if pair.relation != guided.BESIDE_CONTROL), ""),
    }


def _estimated(name: str, outcomes: pd.Series) -> dict[str, float]:
    known = outcomes.dropna()
    rate = intervals.rate(int(known.sum()), len(known))
    ends = rate.columns(name) if rate.n else dict.fromkeys((name, f"{name}_low", f"{name}_high"), nan)
    return ends | {f"{name}_n": rate.n}


def _rank(ranks: pd.DataFrame, checkpoint: Checkpoint) -> dict[str, float]:
    rows = ranks[(ranks["arm"] == checkpoint.arm) & (ranks["step"] == checkpoint.step)]
    for name, value in RANK.items():
        rows = rows[rows[name] == value]
    found = {"value": nan, "low": nan, "high": nan} if rows.empty else rows.iloc[0]
    return {"rank": found["value"], "rank_low": found["low"], "rank_high": found["high"]}


def mean_separability(table: pd.DataFrame) -> Mapping[Any, Any]:
    """The row of table `separability` of the mean over layers; NaN where there is none."""
    rows = table[table["layer"] == ALL_LAYERS].to_dict("records")
    return rows[0] if rows else {"value": nan, "low": nan, "high": nan, "n": 0}


def _separability(table: pd.DataFrame) -> dict[str, float]:
    """How far apart harmful and harmless prompts lie, the mean over layers."""
    found = mean_separability(table)
    return {"separability": found["value"], "separability_low": found["low"], "separability_high": found["high"]}


def best_removal(table: pd.DataFrame) -> pd.Series | None:
    """The row of table `removal` of the best ablation within `REMOVAL_KL`; None where there is none."""
    within = table[(table["level"] <= REMOVAL_KL) & table["refused"].notna()].sort_values("level")
    return None if within.empty else within.iloc[-1]


def after_removal(removal: pd.DataFrame, prompts: pd.DataFrame) -> pd.Series:
    """Whether each held-out harmful prompt is refused under that ablation, by its id; empty where there is none."""
    if (best := best_removal(removal)) is None:
        return pd.Series(dtype=float)
    rows = prompts[(prompts["set"] == "held-out") & (prompts["draw"] == OWN) & (prompts["measure"] == "refused")]
    rows = rows[rows["trial"] == best["trial"]]
    return pd.Series(rows["value"].to_numpy(float), index=rows["prompt_id"].astype(str))


def _removal(table: pd.DataFrame) -> dict[str, float]:
    """What is left of refusal under the best ablation within `REMOVAL_KL`."""
    columns = {
        "removal_kl": "level", "removal_refused": "refused", "removal_low": "low", "removal_high": "high",
        "removal_untouched": "untouched", "removal_random": "random_refused",
    }  # fmt: skip
    if (row := best_removal(table)) is None:
        return dict.fromkeys(columns, nan) | {"removal_n": 0}
    return {name: float(row[column]) for name, column in columns.items()} | {"removal_n": int(row["n"])}


def _share(measured: Methods, source: Checkpoint, target: Checkpoint) -> float:
    """What the source's carrier takes away at the target, as a share of what the target's own does."""
    return by_transfer(source, target, measured.transfers).value


def _shares(name: str, shares: Sequence[float]) -> dict[str, float]:
    known = [share for share in shares if isfinite(share)]
    middle, least, most = (median(known), min(known), max(known)) if known else (nan, nan, nan)
    return {name: middle, f"{name}_least": least, f"{name}_most": most, f"{name}_n": len(known)}
