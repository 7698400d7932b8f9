"""What stands on the page of one checkpoint."""

import json
from functools import partial
from typing import Any

import pandas as pd
from markupsafe import Markup

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import (
    causal_section,
    circuits,
    evaluation_findings,
    figures,
    gate,
    geometry_section,
    headline,
    language,
    wording,
)
from mechrefusal.report.panels import Panel, Panels
from mechrefusal.report.reading import MeasuredCheckpoint, MeasuredRun

RATES = ("any_refusal", "degenerate", headline.ATTACK_METRIC, "answered")
ROWS_A_GROUP = 60
LONGEST_TEXT = 2000
LARGEST_ATTENTION = 150_000


def context(run: MeasuredRun, checkpoint: MeasuredCheckpoint, *, show_completions: bool) -> dict[str, Any]:
    """Everything that the template `checkpoint.html` needs."""
    panels, place = Panels(), run.checkpoints.index(checkpoint)
    shown_tokens, shown_attention, left_out = _circuits(checkpoint)
    tables = checkpoint.tables
    return {
        "run": run,
        "checkpoint": checkpoint,
        "gate": gate.of(checkpoint),
        "line": headline.headline(checkpoint, n_heads=6),
        "before": run.checkpoints[place - 1] if place else None,
        "after": run.checkpoints[place + 1] if place + 1 < len(run.checkpoints) else None,
        "rates": _rates(tables["rates"]),
        "language": language.of_measurements([checkpoint]),
        "opening": _opening(tables["openings"]),
        "scores": [panels.add(partial(figures.scores, tables["scores"]))] if len(tables["scores"]) else [],
        "carrier_row": tables["carrier"].to_dict("records")[0] if len(tables["carrier"]) else None,
        "carriers": geometry_section.carriers(checkpoint, panels),
        "wins": geometry_section.wins(checkpoint, panels),
        "zero_maps": geometry_section.zero_maps(checkpoint, panels),
        "zeros": geometry_section.zeros(checkpoint, panels),
        "certainty": geometry_section.certainty(checkpoint),
        "beside": geometry_section.beside(checkpoint),
        "directions": _directions(checkpoint, panels),
        "selection": _selection(tables["directions"]),
        "geometry": geometry_section.context(checkpoint, panels),
        "interventions": _interventions(tables["rates"], panels),
        "cause": causal_section.context(checkpoint, panels),
        "tokens": shown_tokens,
        "attention": shown_attention,
        "attention_left_out": left_out,
        "generations": generation_groups(tables["verdicts"], show_completions=show_completions),
        "show_completions": show_completions,
        "rows_a_group": ROWS_A_GROUP,
        "short": wording.SHORT_COMPLETION,
        "times": [panels.add(partial(figures.durations, tables["timings"], title="Stages of this measurement"))]
        if len(tables["timings"])
        else [],
    }


def _rates(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the table of rates: of what was asked to see what the checkpoint does, and not to make directions."""
    shown = table[(table["by"] == "all") & table["metric"].isin(RATES)]
    return shown[~shown["suite"].isin(("direction_harmful", "direction_harmless"))].to_dict("records")


def generation_groups(table: pd.DataFrame, *, show_completions: bool) -> list[dict[str, Any]]:
    """Judged answers by (suite, attack, intervention); those to harmful requests are shortened unless asked for.

    Args:
        table: table `verdicts` of one checkpoint, of the study's own suites.
    """
    groups = []
    for (name, side, attack, intervention), rows in table.groupby(
        ["suite", "side", "attack", "intervention"], sort=False
    ):
        harmful = wording.is_harmful(side, attack)
        limit = wording.SHORT_COMPLETION if harmful and not show_completions else LONGEST_TEXT
        groups.append(
            {
                "suite": str(name),
                "attack": str(attack),
                "intervention": str(intervention),
                "harmful": harmful,
                "n": len(rows),
                "refused": int(rows["label"].isin(evaluation_findings.REFUSALS).sum()),
                "judged": int(rows["label"].notna().sum()),
                "rows": [_answer(row, limit) for row in rows.head(ROWS_A_GROUP).to_dict("records")],
            }
        )
    return groups


def _answer(row: dict[str, Any], limit: int) -> dict[str, Any]:
    label = None if wording.is_missing(row["label"]) else row["label"]
    return {
        "prompt_id": wording.plain(row["prompt_id"]),
        "category": wording.plain(row["category"]),
        "prompt": wording.shortened(row["prompt"], LONGEST_TEXT),
        "completion": wording.shortened(row["completion"], limit),
        "refused": None if label is None else label in evaluation_findings.REFUSALS,
        "degenerate": label == "degenerate",
    }


def _opening(table: pd.DataFrame) -> dict[str, Any] | None:
    if not len(table):
        return None
    row = table.iloc[0].to_dict()
    return {
        **row,
        "refusal_tokens": _token_list(row["refusal_tokens"]),
        "compliance_tokens": _token_list(row["compliance_tokens"]),
    }


def _token_list(text: str) -> list[str]:
    return [wording.token(token) for token in json.loads(text)]


def _directions(checkpoint: MeasuredCheckpoint, panels: Panels) -> list[Panel]:
    table = checkpoint.tables["directions"]
    if not len(table):
        return []
    norm = partial(
        figures.layer_by_position, table, value="norm", title="Norm of the direction", unit="norm", centre=None
    )
    halves = partial(
        figures.layer_by_position, table, value="split_half_cosine", title="Split-half cosine", unit="cosine", limit=1.0
    )
    return [panels.add(norm, title="Norm of the direction"), panels.add(halves, title="Split-half cosine")]


def _selection(table: pd.DataFrame) -> str:
    if not len(table):
        return ""
    row = table.iloc[0]
    counts = f"{wording.whole(row['n_harmful'])} harmful and {wording.whole(row['n_harmless'])} harmless prompts"
    return f"{counts}; selection of prompts: {wording.plain(row['selection']) or wording.MISSING}"


def _interventions(rates: pd.DataFrame, panels: Panels) -> list[Panel]:
    asked = rates[(rates["metric"] == headline.REFUSAL_METRIC) & (rates["attack"] == "none")]
    if not len(asked[asked["intervention"] != "none"]):
        return []
    drawn = []
    for judge in sorted(set(asked["judge"])):
        drawn.append(panels.add(partial(figures.interventions, asked[asked["judge"] == judge])))
    return drawn


def _circuits(checkpoint: MeasuredCheckpoint) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Coloured prompts, attention patterns, and how many prompts' attention was left out for the size of the page."""
    table, attention = checkpoint.tables["tokens"], checkpoint.tables["attention"]
    values = table["value"].abs().dropna()
    limit = float(values.quantile(0.98)) if len(values) else 1.0
    coloured: list[dict[str, Any]] = []
    projected = table if len(values) else table.iloc[:0]  # without a carrier the table holds the tokens only
    for place, ((name, prompt), rows) in enumerate(projected.groupby(["set", "prompt_id"], sort=False)):
        drawn = circuits.coloured_tokens(rows, limit=limit).fragment(f"tokens-{place}")
        coloured.append({"set": str(name), "prompt_id": wording.plain(prompt), "element": drawn})
    patterns: list[dict[str, Any]] = []
    cells, left_out = 0, 0
    for place, (prompt, rows) in enumerate(attention.groupby("prompt_id", sort=False)):
        size = int(max(rows["destination"].max(), rows["source"].max())) + 1
        cells += size * size * len(rows.groupby(["layer", "head"]))
        if cells > LARGEST_ATTENTION and patterns:
            left_out += 1
            continue
        patterns.append(
            {
                "prompt_id": wording.plain(prompt),
                **_pattern(rows, _prompt_tokens(table, prompt, size), f"attention-{place}"),
            }
        )
    return coloured, patterns, left_out


def _pattern(rows: pd.DataFrame, tokens: list[str] | None, identifier: str) -> dict[str, Any]:
    try:
        drawn = circuits.attention(rows, tokens)
    except MechrefusalError as error:
        return {"element": Markup(""), "saturation": "", "reason": str(error)}
    return {
        "element": drawn.fragment(identifier),
        "saturation": wording.number(drawn.properties["maxValue"], 3),
        "reason": "",
    }


def _prompt_tokens(table: pd.DataFrame, prompt: Any, size: int) -> list[str] | None:
    """Token strings of the prompt whose length fits, the harmful one first: `attention` does not name the set."""
    found = table[table["prompt_id"] == prompt]
    for _, rows in sorted(found.groupby("set"), key=lambda group: group[0] != "harmful"):
        if len(rows) == size:
            return [str(token) for token in rows.sort_values("index")["token"]]
    return None
