"""The headline of a run for a terminal, in tables that fit 100 columns."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mechrefusal.report import evaluation_findings, findings, gate, headline, language, wording
from mechrefusal.report.reading import MeasuredRun, read_run


def summary(run_folder: Path | str) -> Group:
    """Gate, behaviour and carrier of every checkpoint of a measured run, and where its time went.

    Returns:
        `rich` tables: the gate, by how much it is missed; refusal and attack success rates with n and 95% intervals;
        the carrier (or why there is none) with its scores and the top heads; one table a judge of suites, where there
        was an evaluation; wall times. Cells are plain text: nothing in a token is read as markup.

    Raises:
        MechrefusalError: the run was not measured, or a table cannot be read.
    """
    run = read_run(run_folder)
    lines = headline.headlines(run)
    warned = language.of_measurements(run.checkpoints)
    said = [Text(warned, style="bold")] if warned else []
    made = [*said, gates(run), behaviour(lines), carriers(lines), *suites(run.benchmarks("rates")), *times(run)]
    parts = [part for table in made for part in (Text(), table)]
    return Group(*parts[1:])


def gates(run: MeasuredRun) -> Table | Text:
    """One row a checkpoint: every criterion of the gate, and by how much it is missed."""
    found = gate.context(run)
    if not found["measured"]:
        return Text("The gate was not measured: table 'gate' is absent or empty.", style="italic")
    judges = ", ".join(map(language.described, found["judges"])) or "none"
    said = f"{found['summary']}. Rate, n = answers, 95% interval. Unsure: the interval holds the threshold."
    table = _table("Gate", f"{said} Judge: {judges}.{corrected_by(found['corrected_by'], 'Last line')}")
    table.add_column("checkpoint", no_wrap=True)
    table.add_column("gate", no_wrap=True)
    for name, needs in found["names"]:
        table.add_column(Text(f"{wording.token(name)}\n{needs}"))
    for one in found["all"]:
        cells = [one.named(name) for name, _ in found["names"]]
        table.add_row(
            Text(f"{wording.plain(one.checkpoint.arm)} {one.checkpoint.step}"),
            Text(one.word, style="" if one.passed else "bold"),
            *(Text(_criterion(c) if c else wording.MISSING) for c in cells),
        )
    return table


def _criterion(c: gate.Criterion) -> str:
    lines = [f"{wording.rate(c.value)} n={c.n}", c.interval, c.state, f"c {c.corrected}" if c.corrected else ""]
    return "\n".join(line for line in lines if line)


def times(run: MeasuredRun) -> list[Table]:
    """Wall times: of the run's stages (table `stages`), and of the steps of all measurements (table `timings`)."""
    made = []
    stages = run.across["stages"]
    if len(stages):
        seconds = stages["seconds"]
        at_once = _at_once(run.manifest)
        beside = f"; up to {at_once} checkpoints were measured at once" if at_once > 1 else ""
        table = _table("Wall time", f"Stages of the run, in all {wording.seconds(seconds.sum())}{beside}.")
        table.add_column("stage", overflow="fold")
        for name in ("time", "share"):
            table.add_column(name, justify="right", no_wrap=True)
        for stage, value in zip(stages["stage"], seconds, strict=True):
            share = value / seconds.sum() if seconds.sum() else float("nan")
            table.add_row(Text(wording.plain(stage)), wording.seconds(value), wording.percent(share))
        made.append(table)
    timings = run.together("timings")
    if len(timings):
        made.append(_measured(timings))
    return made


def _at_once(manifest: str | None) -> int:
    """How many checkpoints were measured at once, so that their times do not add up to a wall time."""
    try:
        return max(json.loads(manifest or "{}").get("at_once", {}).values(), default=1)
    except (ValueError, AttributeError, TypeError):
        return 1


def _measured(timings: pd.DataFrame) -> Table:
    """One row a step of the measurement, summed over checkpoints."""
    total, n = timings["seconds"].sum(), len(timings[["arm", "step"]].drop_duplicates())
    said = f"All checkpoints ({n}), in all {wording.seconds(total)}. Skipped: what could not be taken there."
    table = _table("Wall time of the measurements", said)
    table.add_column("step", overflow="fold")
    for name in ("time", "share", "longest", "at", "skipped"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage, rows in timings.groupby("stage", sort=False):
        seconds, known = rows["seconds"].sum(min_count=1), rows.dropna(subset=["seconds"])
        at = known.loc[known["seconds"].idxmax()] if len(known) else None
        skipped = int((rows["note"] != "").sum())
        table.add_row(
            Text(wording.plain(stage)),
            wording.seconds(seconds),
            wording.percent(seconds / total if total else float("nan")),
            wording.seconds(None if at is None else at["seconds"]),
            Text(wording.MISSING if at is None else f"{wording.shortened(at['arm'], 14)} {at['step']}"),
            str(skipped) if skipped else wording.MISSING,
        )
    return table


def suites(rates: pd.DataFrame) -> list[Table]:
    """One table a judge (table `rates`): a row a suite, side and checkpoint, without interventions."""
    made = []
    for judge in evaluation_findings.headline(rates):
        table = _table(
            "Suites",
            f"rate and 95% interval, without interventions. Judge of {judge['kind']}: "
            f"{language.described(judge['judge'])}." + corrected_by(judge["corrected_by"], "Below it"),
        )
        table.add_column("prompts", max_width=24, overflow="fold")
        table.add_column("checkpoint", no_wrap=True)
        refusal = judge["kind"] == "refusal"
        names = ("any refusal", "attack success", "answered") if refusal else ("attack success", "score")
        for name in names:
            table.add_column(name, no_wrap=True)
        table.add_column("n", justify="right", no_wrap=True)
        for part in judge["suites"]:
            rows = [row for row in part["rows"] if not row["intervention"]]
            for place, row in enumerate(rows):
                cells = dict(zip(part["metrics"], row["cells"], strict=True))
                known = [cells.get(name) for name in names]
                asked = f"{part['suite']}, {part['side']}" if place == 0 else ""
                under = f" {wording.token(row['attack'], 12)}" if row["attack"] else ""
                shown = [_suite_cell(cell) for cell in known]
                name = f"{wording.shortened(row['arm'], 14)} {row['step']}{under}"
                table.add_row(Text(asked), Text(name), *map(Text, shown), row["n"])
            table.add_section()
        made.append(table)
    return made


def corrected_by(sources: Sequence[str], where: str) -> str:
    """What the corrected rates are, in a sentence; empty where there are none."""
    if not sources:
        return ""
    return f" {where}: corrected (c) for the judge's error as measured on {' and '.join(sources)}."


def _suite_cell(cell: dict[str, Any] | None) -> str:
    if not cell:
        return wording.MISSING
    return f"{cell['value']} {cell['interval']}" + (f"\nc {cell['corrected']}" if cell["corrected"] else "")


def judges_and_people(agreement: pd.DataFrame) -> Table:
    """How far judges agree with people on labelled answers (`study.label`)."""
    table = _table("Judges and people", "On the labelled answers. Sensitivity, specificity: for any refusal.")
    for name in ("judge", "question"):
        table.add_column(name, overflow="fold")
    for name in ("agree", "kappa", "n", "sensitivity", "specificity"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in agreement.to_dict("records"):
        names = (wording.plain(row["judge"]), wording.metric_name(row["question"]), wording.rate(row["share"]))
        rates = (wording.rate(row["sensitivity"]), wording.rate(row["specificity"]))
        table.add_row(*map(Text, (*names, wording.number(row["kappa"]), wording.whole(row["n"]), *rates)))
    return table


def attack_costs(cases: pd.DataFrame) -> Table:
    """One row a source and method: what attack cases gained and cost (table `cases`)."""
    sources = ", ".join(dict.fromkeys(str(source) for source in cases["source"]))
    table = _table(
        "Attack cases",
        f"Against {wording.plain(sources)}. Means a case. Loss: cross-entropy of the target, nats a token. Tokens: run "
        "forward. Dropped: candidates that did not survive as text.",
    )
    table.add_column("method", no_wrap=True)
    for name in ("cases", "loss before", "after", "steps", "tokens", "dropped", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for (_, method), rows in cases.groupby(["source", "method"], sort=False):
        means = rows[["loss_first", "loss", "steps", "forward_tokens", "dropped", "seconds"]].mean()
        digits = zip(means, (3, 3, 0, 0, 1, 2), strict=True)
        table.add_row(Text(str(method)), str(len(rows)), *(wording.number(value, n) for value, n in digits))
    return table


def power_table(rows: pd.DataFrame) -> Table:
    """What could be told, and what it would take (`study.power`)."""
    table = _table("Power", "The least that would be told with that power; the n that would tell what is asked for.")
    table.add_column("question", max_width=28, overflow="fold")
    table.add_column("of", max_width=40, overflow="fold")
    for name in ("n", "could tell", "asked for", "n that tells it"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("noise", overflow="fold")
    for row in findings.powers(rows):
        names = ("question", "of", "n", "could_tell", "wanted", "n_needed", "reason")
        table.add_row(*(Text(row[name]) for name in names))
    return table


def behaviour(lines: list[headline.Headline]) -> Table:
    """One row a checkpoint: refusal rates by prompt set, attack success rates by attack."""
    attacks = headline.attack_columns(lines)
    judges = ", ".join(map(language.described, headline.judges(lines))) or "none"
    table = _table("Behaviour", f"rate, n = prompts; below it the 95% interval. Judge: {judges}.")
    table.add_column("checkpoint", no_wrap=True)
    for name in ("refuses\nharmful", "refuses\nharmless", "over-\nrefusal"):
        table.add_column(name)
    for key in attacks:
        table.add_column(Text(f"attack success:\n{wording.token(headline.attack_label(key))}"))
    several = len(headline.judges(lines)) > 1
    for line in lines:
        cells = [_rates(line.refusals.get(name, []), several_judges=several) for name in headline.ASKED_SETS]
        cells += [_rates(line.attacks.get(key, []), several_judges=several) for key in attacks]
        table.add_row(_name(line), *cells)
    return table


def carriers(lines: list[headline.Headline]) -> Table:
    """One row a checkpoint: where the carrier stands and what it does, or why there is none."""
    ranked = " and ".join(sorted({line.ranked_by for line in lines if line.ranked_by}))
    heads_by = "Heads were not ranked: no patching, no attribution."
    if ranked:
        heads_by = f"Top heads by {ranked}; ● p < 0.05, adjusted for all heads."
    to = ", ".join(sorted({line.ablated_to for line in lines} - {wording.MISSING})) or "not recorded"
    zero = "To zero: the same direction (or the best candidate) ablated to zero; adm.: it would be admissible so."
    table = _table("Carrier", f"Ablated to: {to}. {zero} {heads_by}")
    table.add_column("checkpoint", no_wrap=True)
    table.add_column("carrier", ratio=1)
    for name in ("bypass", "induce", "kl", "to zero:\nbypass", "\nkl", "\nadm."):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("top heads", no_wrap=True)
    for line in lines:
        heads = Text(
            "\n".join(
                f"{head.name} {wording.number(head.value, signed=True)}{' ●' * head.is_told}" for head in line.heads[:3]
            )
            or wording.MISSING
        )
        found = line.carrier
        if found is None:
            table.add_row(
                _name(line), Text(line.no_carrier, style="italic"), *[wording.MISSING] * 3, *_under_zero(line), heads
            )
            continue
        where = f"layer {found.layer}, position {wording.whole(found.position)} {wording.token(found.token)}"
        table.add_row(
            _name(line),
            Text(where),
            wording.number(found.bypass),
            wording.number(found.induce),
            wording.number(found.kl, 3),
            *_under_zero(line),
            heads,
        )
    return table


def _under_zero(line: headline.Headline) -> list[str]:
    found = line.zero
    return [wording.number(found.bypass), wording.number(found.kl, 3), found.answer] if found else [wording.MISSING] * 3


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        caption=Text(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def _name(line: headline.Headline) -> Text:
    return Text(f"{wording.plain(line.checkpoint.arm)} {line.checkpoint.step}")


def _rates(rates: list[headline.Rate], *, several_judges: bool) -> Text:
    shown = [
        f"{wording.rate(r.value)} n={r.n}\n{r.interval}" + (f"\n{r.judge}" if several_judges else "") for r in rates
    ]
    return Text("\n".join(shown) or wording.MISSING)
