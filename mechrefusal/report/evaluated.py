"""What an evaluation found, for a terminal: main rates of every checkpoint, suite and judge, and what changed."""

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mechrefusal.report import language, stress_findings, wording

MAIN = {
    "harmful": ("attack_success", "score", "any_refusal", "degenerate"),
    "harmless": ("answered", "any_refusal", "partial_refusal", "degenerate"),
}
"""Metrics shown of each side, in this order, where they were measured."""
SHOWN = 12
"""Differences shown: those with the smallest p."""
STRESS_SHOWN = 24
"""Differences of attacks shown: the first pairs of their table."""


def evaluated(rates: pd.DataFrame, differences: pd.DataFrame) -> Group:
    """One table a suite, side and judge, and the clearest differences.

    Args:
        rates, differences: tables `rates` and `suite_differences`.

    Returns:
        `rich` tables. Cells are plain text: nothing in a name is read as markup.
    """
    parts: list = []
    whole = rates[rates["by"] == "all"]
    for (suite, side, judge), own in whole.groupby(["suite", "side", "judge"], sort=False):
        parts += [_table(str(suite), str(side), str(judge), own), Text()]
    return Group(*parts, _clearest(differences))


def stress_table(curve: pd.DataFrame, transfer: pd.DataFrame) -> Table:
    """Success of attacks that were made anew: at their first and last step, and at the other checkpoints.

    Args:
        curve, transfer: tables `stress` and `stress_transfer`.
    """
    found = _framed("Attacks made anew against each checkpoint", "share of cases that succeed, 95% interval")
    for name in ("checkpoint", "attack", "judge", "no attack", "first step", "last step", "at the others (mean)"):
        found.add_column(name, overflow="fold")
    for (arm, step, method, judge), own in curve.groupby(["arm", "step", "method", "judge"], sort=False):
        here = (transfer["arm_target"] == arm) & (transfer["step_target"] == step) & (transfer["judge"] == judge)
        plain = transfer[here & (transfer["arm_source"] == "none")]
        from_here = (transfer["arm_source"] == arm) & (transfer["step_source"] == step) & ~here
        others = transfer[from_here & (transfer["method"] == method) & (transfer["judge"] == judge)]["value"]
        ordered = own.sort_values("attack_step")
        point = Text(f"{wording.plain(arm)} {wording.whole(step)}")
        cells = [_cell(rows.iloc[0]) if len(rows) else "" for rows in (plain, ordered.head(1), ordered.tail(1))]
        elsewhere = wording.rate(others.mean()) if len(others) else ""
        found.add_row(point, Text(wording.plain(method)), Text(wording.plain(judge)), *cells, elsewhere)
    return found


def stress_control_tables(control: pd.DataFrame) -> Group:
    """Whether attacks fail because of the request or of the suffix: one table an attack and judge.

    Args:
        control: table `stress_control`.
    """
    parts: list = []
    for group in stress_findings.control(control):
        of_twins = "" if group["twin_judge"] == group["judge"] else f", of the twins: {group['twin_judge']}"
        caption = (
            "the suffix of each case behind the harmless twin of its request; 95% intervals. Robust: the attack fails, "
            "the twin with the suffix is answered. Refuses the suffix: the attack fails, the twin with the suffix is "
            f"refused too. Judge of success: {group['judge']}{of_twins}"
        )
        found = _framed(f"Is the request refused, or the suffix? {group['method']}", caption)
        found.add_column("checkpoint", no_wrap=True)
        for name in (*stress_findings.TWIN_RATES.values(), *stress_findings.SHARES.values(), "n", "nulls"):
            found.add_column(name, overflow="fold")
        for row in group["rows"]:
            cells = [f"{cell['value']}\n({cell['interval']})" if cell else wording.MISSING for cell in row["cells"]]
            found.add_row(Text(f"{row['arm']} {row['step']}"), *cells, row["n"], row["nulls"])
        parts += [found, Text()]
    return Group(*parts)


def stress_differences_tables(differences: pd.DataFrame) -> Group:
    """How checkpoints differ under attacks of the same budget: one table an attack and judge, the first pairs of each.

    Args:
        differences: table `stress_differences`.
    """
    parts: list = []
    for group in stress_findings.differences(differences):
        rows = group["rows"]
        caption = (
            f"{min(STRESS_SHOWN, len(rows))} of {len(rows)} are shown; second minus first, paired, 95% interval "
            "over requests; p: McNemar's exact test, of each row alone; alone: cases that have the outcome "
            f"at the first / second only; loss: nats a token of the target. Judge of success: {group['judge']}"
        )
        found = _framed(f"Which checkpoint is more robust? {group['method']}", caption)
        for name in ("pair", "from", "to", "outcome", "means", "difference", "p", "alone", "n"):
            found.add_column(name, overflow="fold")
        for row in rows[:STRESS_SHOWN]:
            told = [row[name] for name in ("kind", "from", "to", "metric", "means")]
            told += [f"{row['difference']} {row['interval']}", *(row[name] for name in ("p", "only", "n"))]
            found.add_row(*(Text(cell) for cell in told))
        parts += [found, Text()]
    return Group(*parts)


def _framed(title: str, caption: str) -> Table:
    return Table(
        title=Text(title),
        caption=Text(caption),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )


def _table(suite: str, side: str, judge: str, own: pd.DataFrame) -> Table:
    sources = wording.correction_sources(own)
    said = f"; corrected for the judge's error on {' and '.join(sources)}" if sources else ""
    caption = f"n and 95% intervals; judge: {language.described(judge)}{said}"
    found = _framed(f"{wording.plain(suite)}, {side} prompts", caption)
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
    if wording.is_missing(row["value"]):
        return f"{wording.MISSING} n={wording.whole(row['n'])}{nulls}"
    corrected = wording.corrected(row)
    return (
        f"{wording.rate(row['value'])} ({wording.rate(row['low'])}–{wording.rate(row['high'])}) "
        f"n={wording.whole(row['n'])}{nulls}" + (f"\ncorrected {corrected}" if corrected else "")
    )


def _clearest(differences: pd.DataFrame) -> Table | Text:
    rows = differences[differences["low"].gt(0) | differences["high"].lt(0)]
    if rows.empty:
        return Text("No difference between checkpoints whose 95% interval excludes 0.")
    found = _framed(
        "Differences whose 95% interval excludes 0, on the same prompts",
        f"{len(rows)} of {len(differences)}, shown are {min(SHOWN, len(rows))}: the smallest p of McNemar's exact test "
        "first, pairs of checkpoints under one intervention last; p: adjusted for all differences of the judge (Holm)",
    )
    for name in ("from", "to", "suite", "judge", "metric", "difference", "p"):
        found.add_column(name, overflow="fold")
    # What checkpoints do as they are, and what an intervention changes, before checkpoints under an intervention.
    under_both = rows["intervention"].ne("none") & rows["pair"].ne("intervention")
    ordered = rows.assign(under_both=under_both).sort_values(["under_both", "mcnemar_p"], kind="stable")
    for row in ordered.head(SHOWN).itertuples():
        under = "" if row.intervention == "none" else f" ({wording.plain(row.intervention)})"
        # Two checkpoints are compared under the same intervention, one checkpoint without and with it.
        before = "" if row.pair == "intervention" else under
        ends = f"{wording.plain(row.arm_a)} {row.step_a}{before}", f"{wording.plain(row.arm_b)} {row.step_b}{under}"
        value = f"{wording.number(row.difference, signed=True)} [{wording.number(row.low)}, {wording.number(row.high)}]"
        what = f"{row.metric.replace('_', ' ')}, {row.side}"
        of_old_run = wording.is_missing(row.p_adjusted) and not wording.is_missing(row.mcnemar_p)
        p = f"{wording.number(row.mcnemar_p, 4)} (alone)" if of_old_run else wording.number(row.p_adjusted, 4)
        names = wording.plain(row.suite), wording.plain(row.judge)
        found.add_row(*(Text(cell) for cell in (*ends, *names, what, value, p)))
    return found
