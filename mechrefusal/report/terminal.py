"""The headline of a run, and what commands found, for a terminal: tables that fit 100 columns."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mechrefusal.report import (
    arm_findings,
    evaluation_findings,
    gate,
    grids,
    headline,
    language,
    story,
    stress_findings,
    wording,
)
from mechrefusal.report.grids import Cell, Grid
from mechrefusal.report.headline import Headline
from mechrefusal.report.reading import MeasuredRun, read_run

SHOWN = 12
"""Differences between checkpoints shown: those with the smallest p."""
STRESS_SHOWN = 24
"""Differences of attacks shown: the first pairs of their table."""


def summary(run_folder: Path | str) -> Group:
    """What the index of the report says first, then gate, behaviour and carrier of every checkpoint, and wall times.

    Returns:
        `rich` tables: the gate, by how much it is missed; refusal and attack success rates with n and 95% intervals;
        the carrier (or why there is none) with its scores and the top heads; the arms side by side, where there are
        several, and what guides change; one table a judge, suite and side, where
        there was an evaluation; wall times. Cells are plain text: nothing in a token is read as markup.

    Raises:
        MechrefusalError: the run was not measured, or a table cannot be read.
    """
    return summary_of(read_run(run_folder))


def summary_of(run: MeasuredRun) -> Group:
    """The same of a run that was read."""
    lines = headline.headlines(run)
    warned = language.of_measurements(run.checkpoints)
    parts: list[Table | Text] = [Text(warned, style="bold")] if warned else []
    parts += [Text.assemble((f"{words}. ", "bold"), sentences) for words, sentences in story.paragraphs(run, lines)]
    parts += [
        gates(run),
        behaviour(lines),
        carriers(lines),
        *(grid_table(*one) for one in arm_findings.in_short(run)),
        *suites(run.benchmarks("rates"), interventions=False),
        *times(run),
    ]
    return _spaced(parts)


def evaluated(rates: pd.DataFrame, differences: pd.DataFrame) -> Group:
    """What an evaluation found: main rates of every checkpoint, suite and judge, and the clearest differences.

    Args:
        rates, differences: tables `rates` and `suite_differences`.
    """
    return _spaced([*suites(rates), _clearest(differences)])


def suites(rates: pd.DataFrame, *, interventions: bool = True) -> list[Table]:
    """One table a judge, suite and side (table `rates`), a row in it a checkpoint."""
    return [
        grid_table(one.title, f"rate and 95% interval; {one.caption}", one.grid)
        for one in evaluation_findings.suite_rates(rates, interventions=interventions)
    ]


def stress_table(curve: pd.DataFrame, transfer: pd.DataFrame) -> Table:
    """Success of attacks that were made anew: at their first and last step, and at the other checkpoints.

    Args:
        curve, transfer: tables `stress` and `stress_transfer`.
    """
    grid = stress_findings.ends_grid(stress_findings.ends(curve, transfer))
    return grid_table("Attacks made anew against each checkpoint", "share of cases that succeed, 95% interval", grid)


def stress_control_tables(control: pd.DataFrame) -> Group:
    """Whether attacks fail because of the request or of the suffix: one table an attack and judge."""
    note = (
        "the suffix of each case behind the harmless twin of its request; 95% intervals. Robust: the attack fails, the "
        "twin with the suffix is answered. Refuses the suffix: the attack fails, the twin with the suffix is refused "
        "too"
    )
    tables = stress_findings.control(control)
    return _spaced(
        [grid_table("Is the request refused, or the suffix?", f"{one.caption}; {note}", one.grid()) for one in tables]
    )


def stress_differences_tables(differences: pd.DataFrame) -> Group:
    """How checkpoints differ under attacks of the same budget (table `stress_differences`): the first pairs of each."""
    tables = []
    for one in stress_findings.differences(differences):
        shown = min(STRESS_SHOWN, len(one.table))
        caption = (
            f"{one.caption}; {shown} of {len(one.table)} are shown; second minus first, paired, 95% interval over "
            "requests; p: McNemar's exact test, of each row alone; alone: cases that have the outcome there only; "
            "loss: nats a token of the target"
        )
        tables.append(grid_table("Which checkpoint is more robust?", caption, one.grid(STRESS_SHOWN)))
    return _spaced(tables)


def gates(run: MeasuredRun) -> Table | Text:
    """One row a checkpoint: every criterion of the gate, and by how much it is missed."""
    gates_of_run = [gate.of(checkpoint) for checkpoint in run.checkpoints]
    last = {checkpoint.id for checkpoint in run.last_of_each_arm}
    if not (grid := gate.grid(gates_of_run)):
        return Text("The gate was not measured.", style="italic")
    passed = gate.summary([one for one in gates_of_run if one.checkpoint.id in last])
    return grid_table("Gate", f"{passed} {gate.caption(gates_of_run)}", grid)


def times(run: MeasuredRun) -> list[Table]:
    """Wall times: of the run's stages (table `stages`), and of the steps of all measurements (table `timings`)."""
    tables, stages, timings = [], run.across["stages"], run.together("timings")
    if len(stages):
        seconds, beside = stages["seconds"], run.beside_each_other
        shares = stages.assign(share=seconds / seconds.sum() if seconds.sum() else float("nan"))
        grid = grids.grid(shares, {"stage:text": "stage", "seconds:seconds": "time", "share:percent": "share"})
        tables.append(
            grid_table("Wall time", f"Stages of the run, added up {wording.seconds(seconds.sum())}{beside}.", grid)
        )
    if len(timings):
        n = len(timings[["arm", "step"]].drop_duplicates())
        total = wording.seconds(timings["seconds"].sum())
        caption = f"All checkpoints ({n}), in all {total}. Skipped: what could not be taken there."
        columns = {
            "stage:text": "step", "seconds:seconds": "time", "share:percent": "share", "longest:seconds": "longest",
            "at:text": "at", "skipped:text": "skipped",
        }  # fmt: skip
        tables.append(grid_table("Wall time of the measurements", caption, grids.grid(_measured(timings), columns)))
    return tables


def _measured(timings: pd.DataFrame) -> pd.DataFrame:
    """One row a step of the measurement, summed over checkpoints."""
    rows, total = [], timings["seconds"].sum()
    for stage, of_stage in timings.groupby("stage", sort=False):
        seconds, known = of_stage["seconds"].sum(min_count=1), of_stage.dropna(subset=["seconds"])
        at = known.loc[known["seconds"].idxmax()] if len(known) else None
        where = wording.MISSING if at is None else f"{wording.shortened(at['arm'], 14)} {at['step']}"
        longest, skipped = float("nan") if at is None else at["seconds"], int((of_stage["note"] != "").sum())
        share = seconds / total if total else float("nan")
        rows.append((stage, seconds, share, longest, where, str(skipped) if skipped else wording.MISSING))
    return pd.DataFrame(rows, columns=["stage", "seconds", "share", "longest", "at", "skipped"])


def judges_and_people(agreement: pd.DataFrame) -> Table:
    """How far judges agree with people on labelled answers (`study.label`)."""
    columns = {
        "judge:text": "judge", "question:words": "question", "share:rate": "agree", "kappa": "kappa", "n:whole": "n",
        "sensitivity:rate": "sensitivity", "specificity:rate": "specificity",
    }  # fmt: skip
    caption = "On the labelled answers. Sensitivity, specificity: for any refusal."
    return grid_table("Judges and people", caption, grids.grid(agreement, columns))


def attack_costs(cases: pd.DataFrame) -> Table:
    """One row a source and method: what attack cases gained and cost (table `cases`)."""
    sources = ", ".join(dict.fromkeys(str(source) for source in cases["source"]))
    caption = (
        f"Against {wording.plain(sources)}. Means a case. Loss: cross-entropy of the target, nats a token. Tokens: run "
        "forward. Dropped: candidates that did not survive as text."
    )
    means = ["loss_first", "loss", "steps", "forward_tokens", "dropped", "seconds"]
    grouped = cases.groupby(["source", "method"], sort=False)
    table = grouped[means].mean().assign(cases=grouped.size()).reset_index()
    columns = {
        "method:text": "method", "cases:whole": "cases", "loss_first:three": "loss before", "loss:three": "after",
        "steps:whole": "steps", "forward_tokens:whole": "tokens", "dropped:one": "dropped", "seconds:number": "seconds",
    }  # fmt: skip
    return grid_table("Attack cases", caption, grids.grid(table, columns))


def power_table(rows: pd.DataFrame) -> Table:
    """What could be told, and what it would take (`study.power`)."""
    columns = {
        "question:reason": "question", "of:reason": "of", "n:whole": "n", "unit": "", "could_tell:number": "could tell",
        "wanted:number": "asked for", "n_needed:whole": "n that tells it", "reason:reason": "noise",
    }  # fmt: skip
    caption = "The least that would be told with that power; the n that would tell what is asked for."
    return grid_table("Power", caption, grids.grid(rows, columns))


def behaviour(lines: list[Headline]) -> Table:
    """One row a checkpoint: refusal rates by prompt set, attack success rates by attack."""
    judges = ", ".join(map(language.described, headline.judges(lines))) or "none"
    caption = f"rate, n = prompts; below it the 95% interval. Judge: {judges}."
    return grid_table("Behaviour", caption, headline.behaviour(lines))


def carriers(lines: list[Headline]) -> Table:
    """One row a checkpoint: where the carrier stands and what it does, or why there is none."""
    ranked = " and ".join(sorted({line.ranked_by for line in lines if line.ranked_by}))
    heads = (
        f"by {ranked}; ● p < 0.05, adjusted for all heads" if ranked else "were not ranked: no patching, no attribution"
    )
    to = ", ".join(sorted({line.ablated_to for line in lines} - {wording.MISSING})) or "not recorded"
    caption = (
        f"Ablated to: {to}. To zero: the same direction (or the best candidate) ablated to zero; admissible: it would "
        f"be so. Top heads {heads}."
    )
    return grid_table("Carrier", caption, headline.carriers(lines))


def grid_table(title: str, caption: str, grid: Grid) -> Table:
    """A grid of a page as a table of a terminal: details stand below their values, and long texts are folded."""
    rows = [[_lines(cell) for cell in row] for row in grid.rows]
    table = Table(
        title=Text(title),
        title_justify="left",
        caption=Text(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for place, head in enumerate(grid.heads):
        longest = max((len(line) for row in rows for line in row[place].split("\n")), default=0)
        words = textwrap.fill(head.words, max(10, min(longest, 24)), break_long_words=False)
        justify: Literal["left", "right"] = "right" if head.is_number else "left"
        # In a narrow terminal words fold and numbers stay whole.
        least = longest if head.is_number else min(longest, 5)
        table.add_column(Text(words), justify=justify, overflow="fold", no_wrap=head.is_number, min_width=least)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _lines(cell: Cell) -> str:
    text = cell.text.replace(", ", "\n") if cell.heads_of else cell.text
    return "\n".join(filter(None, (text, *cell.detail.split("; "))))


def _clearest(differences: pd.DataFrame) -> Table | Text:
    rows = differences[differences["low"].gt(0) | differences["high"].lt(0)]
    if rows.empty:
        return Text("No difference between checkpoints whose 95% interval excludes 0.")
    # What checkpoints do as they are, and what an intervention changes, before checkpoints under an intervention.
    under_both = rows["intervention"].ne("none") & rows["pair"].ne("intervention")
    ordered = rows.assign(under_both=under_both).sort_values(["under_both", "mcnemar_p"], kind="stable").head(SHOWN)
    under = ["" if name == "none" else f" ({wording.plain(name)})" for name in ordered["intervention"]]
    # Two checkpoints are compared under the same intervention, one checkpoint without and with it.
    before = ["" if pair == "intervention" else name for pair, name in zip(ordered["pair"], under, strict=True)]
    shown = ordered.assign(
        a=[
            f"{wording.plain(row.arm_a)} {row.step_a}{name}"
            for row, name in zip(ordered.itertuples(), before, strict=True)
        ],
        b=[
            f"{wording.plain(row.arm_b)} {row.step_b}{name}"
            for row, name in zip(ordered.itertuples(), under, strict=True)
        ],
        what=[f"{wording.metric_name(row.metric)}, {row.side}" for row in ordered.itertuples()],
    )
    columns = {
        "a:text": "from", "b:text": "to", "suite:text": "suite", "judge:text": "judge", "what:text": "metric",
        "difference[low,high]:change": "difference", "p_adjusted:four": "p",
    }  # fmt: skip
    caption = (
        f"{len(rows)} of {len(differences)}, shown are {len(shown)}: the smallest p of McNemar's exact test first, "
        "pairs of checkpoints under one intervention last; p: adjusted for all differences of the judge (Holm)"
    )
    return grid_table(
        "Differences whose 95% interval excludes 0, on the same prompts", caption, grids.grid(shown, columns)
    )


def _spaced(parts: Sequence[Table | Text]) -> Group:
    return Group(*[part for each in parts for part in (Text(), each)][1:])
