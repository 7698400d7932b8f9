"""The page of one checkpoint: the attribution report."""

import json
from functools import cached_property
from typing import Any

import pandas as pd

from mechrefusal.report import carrier_findings, evaluation_findings, figures, gate, headline, wording
from mechrefusal.report.reading import MeasuredCheckpoint, MeasuredRun
from mechrefusal.report.sections import Page
from mechrefusal.statistics.choosing import BEST
from mechrefusal.study.table_rows import best_place

ROWS_A_GROUP, LONGEST_TEXT = 60, 2000
NO_EFFECT = {"denoising": 0.0, "noising": 1.0}


class CheckpointPage(Page):
    """What is known of one checkpoint. Its attributes are named by `pages/checkpoint.yaml`."""

    name = "checkpoint"

    def __init__(self, run: MeasuredRun, checkpoint: MeasuredCheckpoint, *, show_completions: bool = False) -> None:
        self.checkpoint = checkpoint
        super().__init__(run, show_completions=show_completions)
        self.line, self.gate = headline.headline(checkpoint, n_heads=6), gate.of(checkpoint)

    @property
    def id(self) -> str:
        """The checkpoint's."""
        return self.checkpoint.id

    def table(self, name: str) -> pd.DataFrame:
        """A table of the checkpoint."""
        return self.checkpoint.tables[name]

    @property
    def neighbours(self) -> list[tuple[str, MeasuredCheckpoint]]:
        """The checkpoints before and after, each with an arrow."""
        place, others = self.run.checkpoints.index(self.checkpoint), self.run.checkpoints
        return [("←", each) for each in others[max(0, place - 1) : place]] + [
            ("→", each) for each in others[place + 1 :][:1]
        ]

    @property
    def because(self) -> str:
        """Why there is no carrier, as the end of a sentence; empty where there is one."""
        return "" if self.line.carrier is not None else f": {self.line.no_carrier}"

    @property
    def answers(self) -> list[str]:
        """What stands first: where the carrier is and how sure that is, and what it does."""
        return list(filter(None, (*carrier_findings.where(self.line), *self.certainty, *self.beside)))

    @property
    def certainty(self) -> list[str]:
        """How sure the choice is, and what later measures look at where there is no carrier."""
        return carrier_findings.certainty(self.checkpoint)

    @property
    def beside(self) -> list[str]:
        """What the carrier was ablated to and what zero does, where zero lies, what answers show."""
        return carrier_findings.beside(self.checkpoint)

    @property
    def opening(self) -> dict[str, Any] | None:
        """The refusal metric, its tokens as lists."""
        if not len(self.table("openings")):
            return None
        row = {str(name): value for name, value in self.table("openings").iloc[0].items()}
        lists = {name: json.loads(row[name]) for name in ("refusal_tokens", "compliance_tokens")}
        return row | {name: [wording.token(token) for token in tokens] for name, tokens in lists.items()}

    @property
    def instead(self) -> tuple[int, int] | None:
        """(position, layer) of the best candidate that stands in for a carrier, or None."""
        table = self.table("carrier")
        return best_place(table.iloc[0]) if len(table) and table["reference_kind"].iloc[0] == BEST else None

    def candidates(self, *, to_zero: bool) -> pd.DataFrame:
        """Table `carriers`; with `to_zero` the scores under zero take the place of the others.

        Where more than the reference candidate has scores under zero these have maps of their own, and the others go
        without them; else there is nothing to draw of zero.
        """
        table = self.table("carriers")
        has_maps = table["bypass_zero"].notna().sum() > 1 and self.line.ablated_to != "zero"
        if to_zero:
            zero = {name: table[f"{name}_zero"] for name in (*figures.CARRIER_SCORES, "admissible")}
            return table.assign(**zero)[["position", "layer", *zero, "winner"]].iloc[: None if has_maps else 0]
        return table.drop(columns=[name for name in table if has_maps and name.endswith("_zero")])

    @cached_property
    def patching_limit(self) -> float | None:
        """Where the scale of attention, MLPs and heads ends: their furthest from no effect, over all modes."""
        parts = self.table("patching").query("site in ['attn_out', 'mlp_out', 'z']")
        far = (parts["effect"] - parts["mode"].map(NO_EFFECT).astype(float)).abs().max()
        return None if wording.is_missing(far) or far == 0 else float(far)

    @property
    def token_limit(self) -> float:
        """|projection| at which the colour of a token saturates."""
        values = self.table("tokens")["value"].abs().dropna()
        return float(values.quantile(0.98)) if len(values) else 1.0

    @cached_property
    def coloured(self) -> list[tuple[str, str, list[tuple[str, str, str]]]]:
        """(set, id, tokens with their projection and a colour) of example prompts; none without a projection."""
        table = self.table("tokens")
        return [
            (
                wording.plain(name),
                wording.plain(prompt),
                [
                    (wording.plain(row.token), wording.number(row.value), _colour(row.value, self.token_limit))
                    for row in rows.sort_values("index").itertuples()
                ],
            )
            for (name, prompt), rows in table.groupby(["set", "prompt_id"], sort=False)
            if table["value"].notna().any()
        ]

    @property
    def generations(self) -> list[dict[str, Any]]:
        """Judged answers by group."""
        return generation_groups(self.table("verdicts"), show_completions=self.show_completions)


def generation_groups(table: pd.DataFrame, *, show_completions: bool) -> list[dict[str, Any]]:
    """Judged answers by (suite, attack, intervention); those to harmful requests are shortened unless asked for.

    Args:
        table: table `verdicts` of one checkpoint, of the study's own suites.
    """
    groups = []
    keys = ["suite", "side", "attack", "intervention"]
    for (name, side, attack, intervention), rows in table.groupby(keys, sort=False):
        harmful = wording.is_harmful(side, attack)
        limit = wording.SHORT_COMPLETION if harmful and not show_completions else LONGEST_TEXT
        shown = rows.head(ROWS_A_GROUP)
        shown = shown.assign(
            completion=[wording.shortened(text, limit) for text in shown["completion"]],
            prompt=[wording.shortened(text, LONGEST_TEXT) for text in shown["prompt"]],
            refused=shown["label"].isin(evaluation_findings.REFUSALS),
        )
        groups.append(
            {
                "suite": str(name),
                "attack": str(attack),
                "intervention": str(intervention),
                "harmful": harmful,
                "n": len(rows),
                "refused": int(rows["label"].isin(evaluation_findings.REFUSALS).sum()),
                "judged": int(rows["label"].notna().sum()),
                "rows": shown.to_dict("records"),
            }
        )
    return groups


def _colour(value: float, limit: float) -> str:
    """Red for positive, blue for negative, the stronger the further from zero."""
    if wording.is_missing(value):
        return "transparent"
    return f"rgba({'178,24,43' if value > 0 else '33,102,172'},{min(1.0, abs(value) / limit) * 0.75:.2f})"
