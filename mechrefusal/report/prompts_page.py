"""Prompts with what every checkpoint answered, for a table that is searched and filtered in the browser."""

from typing import Any

import pandas as pd

from mechrefusal.files import checkpoint_id
from mechrefusal.report import wording
from mechrefusal.report.reading import MeasuredRun
from mechrefusal.report.sections import Page

LONGEST_PROMPT, LONGEST_ANSWER = 600, 240


class PromptsPage(Page):
    """The browser of prompts."""

    name = "prompts"


def prompts_data(run: MeasuredRun, *, show_completions: bool = False) -> dict[str, Any]:
    """Every prompt with its label and answer at each checkpoint and intervention, and tokens by projection.

    Answers to harmful prompts, and under any attack, are shortened unless `show_completions`. Of several judges the
    first of refusals is taken. A prompt under an attack is a row of its own.
    """
    table = run.across["verdicts"]
    rows: dict[tuple, dict[str, Any]] = {}
    for verdict in _one_judge(table).itertuples():
        key = (verdict.suite, verdict.attack, verdict.prompt_id)
        row = rows.setdefault(key, _row(verdict))
        short = wording.is_harmful(verdict.side, verdict.attack) and not show_completions
        limit = wording.SHORT_COMPLETION if short else 2000 if show_completions else LONGEST_ANSWER
        row["by"][f"{checkpoint_id(verdict.arm, verdict.step)}|{verdict.intervention}"] = {
            "label": "" if wording.is_missing(verdict.label) else wording.metric_name(wording.plain(verdict.label)),
            "completion": wording.shortened(verdict.completion, limit),
        }
    coloured, furthest = _tokens(run)
    return {
        "rows": [*rows.values(), *coloured],
        "checkpoints": [checkpoint.id for checkpoint in run.checkpoints],
        "interventions": sorted(set(table["intervention"]), key=lambda name: (name != "none", name)) or ["none"],
        "limit": furthest,
    }


def _one_judge(table: pd.DataFrame) -> pd.DataFrame:
    """One verdict an answer: that of the first judge of refusals, or of the first there is."""
    answer = ["arm", "step", "suite", "attack", "intervention", "prompt_id"]
    place = (table["kind"] != "refusal").astype(int)
    return table.assign(place=place).sort_values("place", kind="stable").drop_duplicates(answer).sort_index()


def _row(verdict: Any) -> dict[str, Any]:
    suite = wording.set_name(wording.shortened(verdict.suite)) + (
        "" if verdict.attack == "none" else f", {wording.shortened(verdict.attack)}"
    )
    return {
        "id": wording.shortened(verdict.prompt_id),
        "suite": suite,
        "side": verdict.side,
        "prompt": wording.shortened(verdict.prompt, LONGEST_PROMPT),
        "by": {},
        "tokens": {},
    }


def _tokens(run: MeasuredRun) -> tuple[list[dict[str, Any]], float]:
    """Example prompts token by token, each with its projection on the carrier, and where the colour saturates."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    values = run.together("tokens")["value"].abs().dropna()
    for checkpoint in run.checkpoints:
        table = checkpoint.tables["tokens"]
        if not table["value"].notna().any():
            continue
        for (kind, prompt), of_prompt in table.groupby(["set", "prompt_id"], sort=False):
            ordered = of_prompt.sort_values("index")
            text = "".join(wording.plain(token) for token in ordered["token"])
            row: dict[str, Any] = {"id": wording.shortened(prompt), "suite": f"twins of the pairs, {kind}"}
            row |= {"side": str(kind), "prompt": wording.shortened(text, LONGEST_PROMPT), "by": {}, "tokens": {}}
            row = rows.setdefault((str(kind), str(prompt)), row)
            row["tokens"][checkpoint.id] = [
                [wording.plain(each.token), None if wording.is_missing(each.value) else round(float(each.value), 3)]
                for each in ordered.itertuples()
            ]
    return list(rows.values()), round(float(values.quantile(0.98)), 3) if len(values) else 1.0
