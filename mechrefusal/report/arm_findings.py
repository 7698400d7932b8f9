"""What table `methods` says of every arm, as a table of a page and in short for a terminal."""

from typing import Any

import pandas as pd

from mechrefusal.files import checkpoint_id
from mechrefusal.report import grids, wording
from mechrefusal.report.figures.catalogue import word
from mechrefusal.report.grids import Cell, Grid, Head
from mechrefusal.report.order import BASE, SHARED, arm_order
from mechrefusal.report.reading import MeasuredRun

RATES = (
    ("refused", "harmful refused"),
    ("overrefused", "safe refused"),
    ("answered", "harmless answered"),
    ("useful", "plain answered"),
    ("attack_success", "attack succeeds"),
)
"""Rates of table `methods`, and their heads."""
GUIDES = ("guided", "control", "beside control")
"""Relations of two arms that differ in their guide alone."""
_SHORT = ("refused", "overrefused", "attack_success")


def ends(methods: pd.DataFrame) -> pd.DataFrame:
    """The last row of every arm: where arms start first, the base only where there is no warm-up."""
    rows = methods[methods["is_last"]]
    started = (rows["arm"] != BASE) | ~(rows["arm"].isin(SHARED) & (rows["arm"] != BASE)).any()
    rows = rows[started]
    return rows.iloc[sorted(range(len(rows)), key=lambda place: arm_order(rows["arm"].iloc[place]))]


def in_short(run: MeasuredRun) -> list[tuple[str, str, Grid]]:
    """(title, caption, table): one row an arm where there are several, and what guides change; for a terminal."""
    if not run.has_several_arms:
        return []
    caption = (
        "The last checkpoint of each. Rates with n and 95% intervals. Rank: effective rank of the directions of all "
        "layers. Its carrier elsewhere: what it takes away at the other arms, as a share of what their own carriers do "
        "there (median, least–most); theirs here: the other way round."
    )
    found = [("Arms", caption, grid(run.across["methods"], short=True))]
    if changes := guides(run.across["method_differences"]):
        caption = (
            "The second arm minus the first, last checkpoints, same prompts, 95% interval; p: McNemar's exact test, "
            "adjusted for all rates of the table (Holm). Control: a guide by random directions."
        )
        found.append(("What a guide changes", caption, changes))
    return found


def grid(methods: pd.DataFrame, *, short: bool = False) -> Grid:
    """One row an arm, at its last checkpoint.

    Args:
        short: only what a terminal has room for.
    """
    rows = ends(methods)
    attack = next(iter({name for name in rows["attack"] if name}), "")
    rates = [(name, words) for name, words in RATES if not short or name in _SHORT]
    heads = {"arm": "arm", "gate": "gate"} | dict(rates) | {"layer": "carrier", "rank": "rank"}
    heads |= {"given": "its carrier elsewhere", "taken": "theirs here"}
    apart = not short and bool(rows["separability"].notna().any())
    heads |= {"separability": "d′"} if apart else {}
    removal = not short and bool(rows["removal_refused"].notna().any())
    heads |= {"removal_refused": "left by removal"} if removal else {}
    if attack:
        heads["attack_success"] += f": {wording.shortened(attack, 20)}"
    known = grids.meanings("methods")
    cells = [_row(row, [name for name, _ in rates]) for row in rows.to_dict("records")]
    for line, row in zip(cells, rows.to_dict("records"), strict=True):
        line += [_separability(row)] * apart + [_removal(row)] * removal
    return Grid([Head(words, known[name]) for name, words in heads.items()], cells)


def _separability(row: dict[Any, Any]) -> Cell:
    """How far apart harmful and harmless prompts lie, the mean over layers."""
    ends = (row["separability_low"], row["separability_high"])
    beside = "" if any(map(wording.is_missing, ends)) else wording.ends(*ends, 1)
    return Cell(wording.number(row["separability"], 1), beside)


def _removal(row: dict[Any, Any]) -> Cell:
    """What an ablation leaves of refusal, beside no ablation and random directions."""
    if wording.is_missing(row["removal_refused"]):
        return Cell(wording.MISSING)
    beside = wording.rate_interval(row["removal_low"], row["removal_high"])
    beside += f"; KL ≤ {wording.number(row['removal_kl'])}; untouched {wording.rate(row['removal_untouched'])}"
    random = row["removal_random"]
    beside += "" if wording.is_missing(random) else f"; random {wording.rate(random)}"
    return Cell(f"{wording.rate(row['removal_refused'])} n={wording.whole(row['removal_n'])}", beside)


def guides(differences: pd.DataFrame) -> Grid:
    """What guides change at the last checkpoints: one row a pair of twins and measure that has a value."""
    rows = differences[differences["relation"].isin(GUIDES) & differences["is_last"]]
    rows = rows[rows["difference"].notna()]
    shown = rows.assign(
        pair=[f"{wording.shortened(row.arm_a, 24)} → {wording.shortened(row.arm_b, 24)}" for row in rows.itertuples()],
        kind=[word("relation", name) for name in rows["relation"]],
        what=[
            word("method_measure", row.measure) + ("" if row.attack == "none" else f": {wording.plain(row.attack)}")
            for row in rows.itertuples()
        ],
    )
    columns = {
        "pair:text": "from → to", "kind:text": "kind", "what:text": "measure", "mean_a:number": "from",
        "mean_b:number": "to", "difference[low,high]:change": "difference", "p_adjusted:four": "p", "n:whole": "n",
    }  # fmt: skip
    return grids.grid(shown, columns, name="method_differences")


def _row(row: dict[Any, Any], rates: list[str]) -> list[Cell]:
    told = [wording.plain(row["method"])] if row["method"] not in ("", row["arm"]) else []
    told += [f"guide {wording.shortened(row['guide'], 60)}"] if row["guide"] else []
    told += ["random directions (control)"] if row["along"] == "random" else []
    name = f"{wording.shortened(row['arm'], 24)} {row['step']}"
    gate = wording.MISSING if wording.is_missing(row["gate"]) else "passed" if row["gate"] else "missed"
    cells = [
        Cell(name, "; ".join(told), page=checkpoint_id(str(row["arm"]), int(row["step"]))),
        Cell(gate, is_strong=gate == "missed"),
    ]
    for rate in rates:
        n = "" if wording.is_missing(row[rate]) else f" n={wording.whole(row[f'{rate}_n'])}"
        interval = wording.rate_interval(row[f"{rate}_low"], row[f"{rate}_high"]) if n else ""
        cells.append(Cell(f"{wording.rate(row[rate])}{n}", interval))
    layer = wording.plain(row["reason"]) or wording.MISSING
    if not wording.is_missing(row["layer"]):
        layer = f"layer {wording.whole(row['layer'])} of {row['n_layers']}"
    low, high = (wording.whole(row[f"layer_{end}"]) for end in ("low", "high"))
    sure = "" if wording.is_missing(row["layer"]) or low == wording.MISSING else f"{low}–{high}"
    rank = "" if wording.is_missing(row["rank"]) else wording.ends(row["rank_low"], row["rank_high"], 1)
    cells += [Cell(layer, sure), Cell(wording.number(row["rank"], 1), rank)]
    for share in ("given", "taken"):
        around = f"{wording.rate(row[f'{share}_least'])}–{wording.rate(row[f'{share}_most'])}"
        several = row[f"{share}_n"] > 1
        cells.append(Cell(wording.rate(row[share]), f"{around}; {row[f'{share}_n']} arms" if several else ""))
    return cells
