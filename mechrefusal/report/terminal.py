"""The headline of a run for a terminal, in tables that fit 100 columns."""

from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mechrefusal.report import evaluation_findings, headline, wording
from mechrefusal.report.reading import read_run


def summary(run_folder: Path | str) -> Group:
    """Behaviour and carrier of every checkpoint of a measured run.

    Returns:
        Two `rich` tables: refusal and attack success rates with n and 95% intervals; the carrier (or why there is none)
        with its scores and the top heads; and one table a judge of suites, where there was an evaluation. Cells are
        plain text: nothing in a token is read as markup.

    Raises:
        MechrefusalError: the run was not measured, or a table cannot be read.
    """
    run = read_run(run_folder)
    lines = headline.headlines(run)
    found = [part for table in suites(run.across["suite_rates"]) for part in (Text(), table)]
    return Group(behaviour(lines), Text(), carriers(lines), *found)


def suites(rates: pd.DataFrame) -> list[Table]:
    """One table a judge (table `suite_rates`): a row a suite, side and checkpoint, without interventions."""
    made = []
    for judge in evaluation_findings.headline(rates):
        table = _table(
            "Suites", f"rate and 95% interval, without interventions. Judge of {judge['kind']}: {judge['judge']}."
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
                shown = [f"{cell['value']} {cell['interval']}" if cell else wording.MISSING for cell in known]
                name = f"{wording.shortened(row['arm'], 14)} {row['step']}{under}"
                table.add_row(Text(asked), Text(name), *map(Text, shown), row["n"])
            table.add_section()
        made.append(table)
    return made


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
        means = rows[["loss_first", "loss", "steps", "forward_tokens", "dropped", "seconds"]].astype(float).mean()
        digits = zip(means, (3, 3, 0, 0, 1, 2), strict=True)
        table.add_row(Text(str(method)), str(len(rows)), *(wording.number(value, n) for value, n in digits))
    return table


def behaviour(lines: list[headline.Headline]) -> Table:
    """One row a checkpoint: refusal rates by prompt set, attack success rates by attack."""
    attacks = headline.attack_columns(lines)
    judges = ", ".join(headline.judges(lines)) or "none"
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
    table = _table(
        "Carrier",
        f"Top heads by {ranked}."
        if ranked
        else "Heads were not ranked: neither patching nor attribution was measured.",
    )
    table.add_column("checkpoint", no_wrap=True)
    table.add_column("carrier", ratio=1)
    for name in ("bypass", "induce", "kl"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("top heads", no_wrap=True)
    for line in lines:
        heads = Text(
            "\n".join(f"{head.name} {wording.number(head.value, signed=True)}" for head in line.heads[:3])
            or wording.MISSING
        )
        found = line.carrier
        if found is None:
            table.add_row(_name(line), Text(line.no_carrier, style="italic"), *[wording.MISSING] * 3, heads)
            continue
        where = f"layer {found.layer}, position {wording.whole(found.position)} {wording.token(found.token)}"
        table.add_row(
            _name(line),
            Text(where),
            wording.number(found.bypass),
            wording.number(found.induce),
            wording.number(found.kl, 3),
            heads,
        )
    return table


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
