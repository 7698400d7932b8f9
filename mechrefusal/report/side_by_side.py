"""What an intervention did to a checkpoint's answers, for a terminal: rates, and answers side by side."""

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mechrefusal.report import language, wording

SHOWN = 8
"""Answers shown where they are shortened."""


def side_by_side(table: pd.DataFrame, rates: pd.DataFrame, *, show_completions: bool = False) -> Group:
    """Rates of baseline and intervened answers with their 95% intervals, and the answers side by side.

    Args:
        table, rates: those of `study.Ablated`.
        show_completions: all answers in full; else the beginnings of the first few.

    Returns:
        Two `rich` tables and what they are of. Cells are plain text: nothing in an answer is read as markup.
    """
    first = table.iloc[0]
    before, after = table["baseline_refused"], table["intervened_refused"]
    counts = (
        f"n = {len(table)} prompts, weights {first['weights']}, judge {language.described(first['judge'])}. "
        f"Refused before, not after: {int((before & ~after).sum())}; after, not before: {int((~before & after).sum())}."
    )
    if warned := language.of_ablation(table):
        counts = f"{counts}\n{warned}"
    title = Text(wording.plain(first["intervention"]), style="italic")
    return Group(title, _rates(rates), Text(counts), Text(), _answers(table, show_completions=show_completions))


def _rates(rates: pd.DataFrame) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("answers", no_wrap=True)
    for metric in dict.fromkeys(rates["metric"]):
        shown.add_column(wording.metric_name(metric), no_wrap=True)
    for answers, rows in rates.groupby("answers", sort=False):
        cells = [
            f"{wording.rate(row.value)} ({wording.rate(row.low)}–{wording.rate(row.high)})" for row in rows.itertuples()
        ]
        shown.add_row(str(answers), *cells)
    return shown


def _answers(table: pd.DataFrame, *, show_completions: bool) -> Table:
    rows = table if show_completions else table.head(SHOWN)
    left_out = len(table) - len(rows)
    notes = [] if show_completions else ["Shortened; --show_completions shows them in full."]
    notes += [f"{left_out} more prompts are not shown."] if left_out else []
    shown = Table(
        caption=Text(" ".join(notes)) if notes else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_lines=show_completions,
    )
    shown.add_column("prompt", ratio=1)
    for name in ("baseline", "intervened"):
        shown.add_column(name, ratio=1)
    write = wording.plain if show_completions else wording.shortened
    for row in rows.to_dict("records"):
        cells = [Text(write(row["prompt"]))]
        for name in ("baseline", "intervened"):
            cells.append(Text.assemble(("refused: " if row[f"{name}_refused"] else "", "bold"), write(row[name])))
        shown.add_row(*cells)
    return shown
