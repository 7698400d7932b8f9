"""What attacks made anew say, as tables for a page and a terminal. Plain text: whoever shows it escapes it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechrefusal.report import grids, wording

LONGEST_NAME = 60
TWIN_RATES = {
    ("none", "answered"): "twin answered",
    ("attacked", "answered"): "twin answered, with suffix",
    ("none", "refused"): "twin refused",
    ("attacked", "refused"): "twin refused, with suffix",
}
SHARES = {"attack_success": "attack succeeds", "robust": "robust", "refuses_suffix": "refuses the suffix"}
"""Metrics of tables `stress_control` and `stress_differences` in words."""
LOSS = {"attack_loss": "loss of the attack, nats"}
"""The outcome of table `stress_differences` that is no share."""
KINDS = {
    "last": "last of two arms",
    "start": "since the warm-up",
    "base": "since the base",
    "same step": "same step of two arms",
    "consecutive": "since the anchor before",
    "other": "other pairs",
}
"""Kinds of pairs of table `stress_differences` in words, in the order in which they are shown."""
_COMPARED = {
    "pair": "pair", "arm_a+step_a": "from", "arm_b+step_b": "to", "metric": "outcome", "mean_a:rate": "before",
    "mean_b:rate": "after", "difference[low,high]:change": "difference", "mcnemar_p:four": "p", "only_a": "first alone",
    "only_b": "second alone", "n": "n", "nulls": "nulls",
}  # fmt: skip


@dataclass(frozen=True)
class OfAttack:
    """A table about one attack, judged by one judge of success, and of the twins by another."""

    method: str
    judge: str
    twin_judge: str
    table: pd.DataFrame
    columns: dict[str, str]

    @property
    def caption(self) -> str:
        """The attack and its judges."""
        twins = f", of the twins {self.twin_judge}" if self.twin_judge != self.judge else ""
        return f"{self.method}; judge of success {self.judge}{twins}"

    def grid(self, most: int = 200) -> grids.Grid:
        """The table as it is shown."""
        return grids.grid(self.table, self.columns, name="stress_differences", most=most)


def control(table: pd.DataFrame) -> list[OfAttack]:
    """Table `stress_control`, one entry an attack and judge of success, one row in it a checkpoint.

    Each row has the rates of `TWIN_RATES`, by the judge of the twins, and `SHARES` of the cases.
    """
    keys = ["method", "judge", "twin_judge"]
    shares = table[table["metric"].isin(list(SHARES))]
    entries = []
    for key in dict.fromkeys((shares if len(shares) else table)[keys].itertuples(index=False, name=None)):
        method, judge, twin_judge = key
        of_attack = table[(table["method"] == method) & (table["twin_judge"] == twin_judge)]
        wanted = {
            ("suffix", suffix, "metric", metric, "judge", twin_judge): words
            for (suffix, metric), words in TWIN_RATES.items()
        } | {("metric", metric, "judge", judge): words for metric, words in SHARES.items()}
        pivot = grids.pivot(of_attack, ["arm", "step"], wanted)
        named = dict(zip(keys, (wording.shortened(name, LONGEST_NAME) for name in key), strict=True))
        columns = {"arm+step:page": "checkpoint", **pivot.columns}
        entries.append(OfAttack(table=pivot.table, columns=columns, **named))
    return entries


def differences(table: pd.DataFrame) -> list[OfAttack]:
    """Table `stress_differences`, one entry an attack and judge of success, in it the pairs in the order of `KINDS`."""
    order = [list(KINDS).index(kind) if kind in KINDS else len(KINDS) for kind in table["pair"]]
    rows = table.iloc[np.argsort(order, kind="stable")]
    words = SHARES | LOSS
    rows = rows.assign(
        metric=[words.get(name, wording.metric_name(wording.shortened(name, LONGEST_NAME))) for name in rows["metric"]]
    )
    named = rows.assign(pair=[KINDS.get(kind, wording.shortened(kind, LONGEST_NAME)) for kind in rows["pair"]])
    entries = []
    for key, of_attack in named.groupby(["method", "judge"], sort=False):
        method, judge = (wording.shortened(name, LONGEST_NAME) for name in key)
        entries.append(OfAttack(method, judge, judge, of_attack, _COMPARED))
    return entries


def ends(curve: pd.DataFrame, transfer: pd.DataFrame) -> pd.DataFrame:
    """Success of attacks made anew, one row a checkpoint, attack and judge (tables `stress` and `stress_transfer`).

    Returns:
        `before`: of the bare requests; `first` and `last` step of the attack, all three with `_low`, `_high` and `n`;
        `elsewhere`: mean success at the other checkpoints.
    """
    rows = []
    for (arm, step, method, judge), of_attack in curve.groupby(["arm", "step", "method", "judge"], sort=False):
        of_judge = transfer[transfer["judge"] == judge]
        here = (of_judge["arm_target"] == arm) & (of_judge["step_target"] == step)
        from_here = (of_judge["arm_source"] == arm) & (of_judge["step_source"] == step) & ~here
        others = of_judge[from_here & (of_judge["method"] == method)]["value"]
        ordered = of_attack.sort_values("attack_step")
        at = {
            "before": of_judge[here & (of_judge["arm_source"] == "none")],
            "first": ordered.head(1),
            "last": ordered.tail(1),
        }
        row = {
            "arm": arm,
            "step": step,
            "method": method,
            "judge": judge,
            "elsewhere": others.mean(),
            "n": of_attack["n"].max(),
        }
        for name, rates in at.items():
            values = rates.iloc[0] if len(rates) else dict.fromkeys(("value", "low", "high"), float("nan"))
            row |= {name: values["value"], f"{name}_low": values["low"], f"{name}_high": values["high"]}
        rows.append(row)
    return pd.DataFrame(rows)


def ends_grid(table: pd.DataFrame) -> grids.Grid:
    """The rows of `ends` as they are shown."""
    shares = {
        f"{name}[{name}_low,{name}_high]:rate": words
        for name, words in (("before", "no attack"), ("first", "first step"), ("last", "last step"))
    }
    names = {"arm+step": "checkpoint", "method:short": "attack", "judge:short": "judge"}
    return grids.grid(table, names | shares | {"elsewhere:rate": "at the others (mean)", "n": "n"})
