"""What an evaluation found, for a terminal: main rates of every checkpoint, suite and judge, and what changed."""

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mechrefusal.report import wording

MAIN = {
    "harmful": ("attack_success", "score", "any_refusal", "degenerate"),
    "harmless": ("answered", "any_refusal", "partial_refusal", "degenerate"),
}
"""Metrics shown of each side, in this order, where they were measured."""
SHOWN = 12
"""Differences shown: those with the smallest p."""


def evaluated(rates: pd.DataFrame, differences: pd.DataFrame) -> Group:
    """One table a suite, side and judge, and the clearest differences.

    Args:
        rates, differences: tables `suite_rates` and `suite_differences`.

    Returns:
        `rich` tables. Cells are plain text: nothing in a name is read as markup.
    """
    parts: list = []
    whole = rates[rates["by"] == "all"]
    for (suite, side, judge), own in whole.groupby(["suite", "side", "judge"], sort=False):
        parts += [_table(str(suite), str(side), str(judge), own), Text()]
    return Group(*parts, _clearest(differences))


def _table(suite: str, side: str, judge: str, own: pd.DataFrame) -> Table:
    found = Table(
        title=Text(f"{wording.plain(suite)}, {side} prompts"),
        caption=Text(f"n and 95% intervals; judge: {wording.plain(judge)}"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    there = [metric for metric in MAIN[side] if metric in set(own["metric"])]
    found.add_column("checkpoint", no_wrap=True)
    for metric in there:
        found.add_column(metric.replace("_", " "))
    for (arm, step, attack, under), rows in own.groupby(["arm", "step", "attack", "intervention"], sort=False):
        told = [wording.plain(text) for text in (attack, under) if text != "none"]
        name = f"{wording.plain(arm)} {wording.whole(step)}" + (f" ({', '.join(told)})" if told else "")
        by = rows.set_index("metric")
        found.add_row(Text(name), *(_cell(by.loc[metric]) if metric in by.index else "" for metric in there))
    return found


def _cell(row: pd.Series) -> str:
    nulls = f", {wording.whole(row['nulls'])} null" if row["nulls"] else ""
    return (
        f"{wording.rate(row['value'])} ({wording.rate(row['low'])}–{wording.rate(row['high'])}) "
        f"n={wording.whole(row['n'])}{nulls}"
    )


def _clearest(differences: pd.DataFrame) -> Table | Text:
    rows = differences[differences["low"].gt(0) | differences["high"].lt(0)]
    if rows.empty:
        return Text("No difference between checkpoints whose 95% interval excludes 0.")
    found = Table(
        title=Text("Differences whose 95% interval excludes 0, on the same prompts"),
        caption=Text(
            f"{len(rows)} of {len(differences)}, the {min(SHOWN, len(rows))} with the smallest p of McNemar's exact "
            "test; p of each row alone"
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("from", "to", "suite", "metric", "difference", "p"):
        found.add_column(name, overflow="fold")
    for row in rows.sort_values("mcnemar_p", kind="stable").head(SHOWN).itertuples():
        under = "" if row.intervention == "none" else f" ({wording.plain(row.intervention)})"
        ends = f"{wording.plain(row.arm_a)} {row.step_a}", f"{wording.plain(row.arm_b)} {row.step_b}{under}"
        value = f"{wording.number(row.difference, signed=True)} [{wording.number(row.low)}, {wording.number(row.high)}]"
        what = f"{row.metric.replace('_', ' ')}, {row.side}"
        p = wording.number(row.mcnemar_p, 4)
        found.add_row(*(Text(cell) for cell in (*ends, wording.plain(row.suite), what, value, p)))
    return found
