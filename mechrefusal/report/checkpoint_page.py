"""The page of one checkpoint: the attribution report."""

import json
from functools import cached_property, partial
from typing import Any

import pandas as pd
from markupsafe import Markup

from mechrefusal.report import (
    carrier_findings,
    causal_findings,
    evaluation_findings,
    figures,
    findings,
    gate,
    headline,
    language,
    order,
    wording,
)
from mechrefusal.report.figures.forest import layered, single
from mechrefusal.report.figures.heatmaps import position_tokens
from mechrefusal.report.figures.probe_layers import TARGETS
from mechrefusal.report.figures.screening import SITES
from mechrefusal.report.panels import Panel
from mechrefusal.report.reading import MeasuredCheckpoint, MeasuredRun
from mechrefusal.report.sections import Page
from mechrefusal.statistics.choosing import BEST
from mechrefusal.study.places import best_place

RATES = ("any_refusal", "degenerate", headline.ATTACK_METRIC, "answered")
MADE_OF = ("direction_harmful", "direction_harmless")
"""Suites that are asked to make directions, and not to see what a checkpoint does."""
ROWS_A_GROUP, LONGEST_TEXT = 60, 2000
NO_EFFECT = {"denoising": 0.0, "noising": 1.0}
_ONE_SCALE = ("attn_out", "mlp_out", "z")
_ONTO = {
    "refusal_logits": ("the refusal logits", "logits"),
    "carrier": ("the carrier", "projection"),
    BEST: ("the best candidate (no carrier)", "projection"),
}


class CheckpointPage(Page):
    """What is known of one checkpoint. Its attributes are named by `pages/checkpoint.yaml`."""

    name = "checkpoint"

    def __init__(self, run: MeasuredRun, checkpoint: MeasuredCheckpoint, *, show_completions: bool = False) -> None:
        self.checkpoint = checkpoint
        super().__init__(run, show_completions=show_completions)
        self.line = headline.headline(checkpoint, n_heads=6)
        self.gate = gate.of(checkpoint)

    @property
    def id(self) -> str:
        """The checkpoint's."""
        return self.checkpoint.id

    def table(self, name: str) -> pd.DataFrame:
        """A table of the checkpoint."""
        return self.checkpoint.tables[name]

    @property
    def targets(self) -> list[str]:
        """What linear probes tell apart, in the order in which it is shown."""
        return list(TARGETS)

    @property
    def neighbours(self) -> list[tuple[str, MeasuredCheckpoint]]:
        """The checkpoints before and after, each with an arrow."""
        place, all_of_them = self.run.checkpoints.index(self.checkpoint), self.run.checkpoints
        before = [("←", all_of_them[place - 1])] if place else []
        return before + [("→", each) for each in all_of_them[place + 1 : place + 2]]

    @property
    def ends_warm_up(self) -> bool:
        """Whether all arms go on from here."""
        return self.checkpoint.arm == order.WARM_UP and self.checkpoint.step == self.run.warm_up

    @property
    def carrier_row(self) -> dict[str, Any] | None:
        """The row of table `carrier`."""
        return self.table("carrier").iloc[0].to_dict() if len(self.table("carrier")) else None

    @property
    def because(self) -> str:
        """Why there is no carrier, as the end of a sentence; empty where there is one."""
        return "" if self.line.carrier else f": {self.line.no_carrier}"

    @property
    def no_carrier(self) -> str:
        """The same as a sentence."""
        return "" if self.line.carrier else wording.sentence(self.line.no_carrier)

    @property
    def answers(self) -> list[str]:
        """What stands first: the carrier, how sure it is, what it does."""
        return [said for said in (*self.where, self.stability, self.reference, *self.beside) if said]

    @property
    def where(self) -> list[str]:
        """Where the carrier is and what it scores, or that there is none."""
        row, carrier, depth = self.carrier_row, self.line.carrier, self.checkpoint.n_layers
        if row is None:
            return [self.no_carrier]
        counts = [wording.whole(row[name]) for name in ("n_admissible", "n_candidates")]
        counted = f"{counts[0]} of {counts[1]} scored candidates are admissible"
        if carrier is None:
            return [f"{wording.sentence(f'{self.line.no_carrier} ({counted})')} This is a result of the checkpoint."]
        unseen = f" (on prompts that did not choose it {carrier.unseen})" if carrier.unseen else ""
        place = f"position {wording.whole(carrier.position)} {wording.token(carrier.token)}"
        scores = f"induce {wording.number(carrier.induce)}, kl {wording.number(carrier.kl, 3)}"
        baseline = [wording.number(row[f"baseline_{side}"]) for side in ("harmful", "harmless")]
        return [
            f"Carrier at layer {carrier.layer}{f' of {depth}' if depth else ''}, {place}: "
            f"bypass {wording.number(carrier.bypass)}{unseen}, {scores}. Without intervention the refusal score is "
            f"{baseline[0]} on harmful and {baseline[1]} on harmless prompts. {counted}."
        ]

    # Rates, and how refusal is read

    @property
    def rates(self) -> pd.DataFrame:
        """Rates of what was asked to see what the checkpoint does."""
        table = self.table("rates")
        return table[(table["by"] == "all") & table["metric"].isin(RATES) & ~table["suite"].isin(MADE_OF)]

    @property
    def language(self) -> str:
        """A warning where English rules judge what is not English."""
        return language.of_measurements([self.checkpoint])

    @property
    def opening(self) -> dict[str, Any] | None:
        """The refusal metric, its tokens as lists."""
        if not len(self.table("openings")):
            return None
        row = {str(name): value for name, value in self.table("openings").iloc[0].items()}
        tokens = {
            name: [wording.token(t) for t in json.loads(row[name])] for name in ("refusal_tokens", "compliance_tokens")
        }
        return row | tokens

    # The carrier

    @property
    def carrier(self) -> pd.DataFrame:
        """Table `carrier`."""
        return self.table("carrier")

    @property
    def tokens(self) -> dict[int, str]:
        """Token of each position after the instruction."""
        return position_tokens(self.table("directions"))

    @property
    def instead(self) -> tuple[int, int] | None:
        """(position, layer) of the best candidate that stands in for a carrier, or None."""
        row = self.carrier_row
        return best_place(row) if row and row["reference_kind"] == BEST else None

    @property
    def _all_scored_to_zero(self) -> bool:
        """Whether more than the reference candidate alone has scores under zero beside others that are not."""
        known = self.table("carriers")["bypass_zero"].notna().sum()
        return bool(known > 1) and self.line.ablated_to != "zero"

    @property
    def candidates(self) -> pd.DataFrame:
        """Table `carriers`; without the scores under zero where these have maps of their own."""
        table = self.table("carriers")
        return (
            table.drop(columns=[name for name in table if name.endswith("_zero")])
            if self._all_scored_to_zero
            else table
        )

    @property
    def candidates_to_zero(self) -> pd.DataFrame:
        """The candidates with their scores under zero in place of the others."""
        table = self.table("carriers")
        zero = {name: table[f"{name}_zero"] for name in (*figures.CARRIER_SCORES, "admissible")}
        return table.assign(**zero)[["position", "layer", *zero, "winner"]].iloc[
            : None if self._all_scored_to_zero else 0
        ]

    @property
    def bootstrapped(self) -> pd.DataFrame:
        """Table `carriers` where bootstraps were made."""
        table = self.table("carriers")
        return table if table["win_frequency"].notna().any() else table.iloc[:0]

    @property
    def stability(self) -> str:
        """How sure the choice is."""
        return findings.stability(self.carrier_row) if self.carrier_row else ""

    @property
    def reference(self) -> str:
        """What later measures look at where there is no carrier."""
        token = self.tokens.get(self.instead[0], "") if self.instead else ""
        return findings.reference(self.carrier_row, self.table("carriers"), token) if self.carrier_row else ""

    @property
    def selection(self) -> str:
        """Of which prompts directions are means."""
        if not len(self.table("directions")):
            return ""
        row = self.table("directions").iloc[0]
        counts = f"{wording.whole(row['n_harmful'])} harmful and {wording.whole(row['n_harmless'])} harmless prompts"
        return f"Means over {counts}; selection of prompts: {wording.plain(row['selection']) or wording.MISSING}."

    @property
    def named_carrier(self) -> pd.DataFrame:
        """Table `carrier` with the names of arm and step as the run has them."""
        return self.carrier.assign(arm=self.checkpoint.arm, step=self.checkpoint.step)

    @property
    def zero_distances(self) -> pd.DataFrame:
        """Table `directions` where it says how far zero lies."""
        table = self.table("directions").assign(arm=self.checkpoint.arm, step=self.checkpoint.step)
        return table if table["zero_distance"].notna().any() else table.iloc[:0]

    @property
    def beside(self) -> list[str]:
        """What the carrier was ablated to and what zero does, where zero lies, what answers show."""
        zero, row = self.line.zero, self.carrier_row
        said = [carrier_findings.beside_zero(row, zero)] if row else []
        said += [carrier_findings.distance(zero.distance, of=zero.of)] if zero else []
        found = carrier_findings.effects(self.table("rates"))
        return said + [carrier_findings.effect_words(one, judged=len(found) > 1) for one in found]

    def interventions(self) -> list[Panel]:
        """Refusals under interventions, one figure a judge."""
        rates = self.table("rates")
        asked = rates[(rates["metric"] == headline.REFUSAL_METRIC) & (rates["attack"] == "none")]
        if not (asked["intervention"] != "none").any():
            return []
        judged = [asked[asked["judge"] == judge] for judge in sorted(set(asked["judge"]))]
        return [self.panels.add("interventions", partial(figures.interventions, own), rows=own) for own in judged]

    # Geometry

    @property
    def smallest_subspace(self) -> str:
        """How many directions are enough."""
        return findings.smallest_subspace(self.table("subspaces"))

    @property
    def baseline(self) -> float | None:
        """Refusal score of harmful prompts without intervention."""
        return float(self.carrier["baseline_harmful"].iloc[0]) if len(self.carrier) else None

    @property
    def utility_couplings(self) -> list[str]:
        """One sentence a pair of curves."""
        return findings.utility_couplings(self.table("utility_coupling"))

    def overlap(self) -> list[Panel]:
        """How refusals of safe prompts share refusal's direction."""
        return self._estimates(self.table("overlap"), "Over-refusal overlap")

    def coupling(self) -> list[Panel]:
        """How harmfulness and refusal hang together."""
        return self._estimates(self.table("coupling"), "Harmfulness and refusal")

    def _estimates(self, table: pd.DataFrame, title: str) -> list[Panel]:
        """Measures of one place in one figure, those taken layer by layer in one each."""
        drawn = []
        if len(single(table)):
            draw = partial(figures.estimates, table, title=title)
            drawn.append(self.panels.add("estimates", draw, title=title, rows=single(table)))
        for measure in layered(table):
            draw = partial(figures.estimates_by_layer, table, measure=measure)
            name, own = f"{wording.metric_name(measure).capitalize()} by layer", table[table["measure"] == measure]
            drawn.append(self.panels.add("estimates_by_layer", draw, title=name, rows=own))
        return drawn

    # Cause and attribution

    @property
    def pairs(self) -> str:
        """How many pairs are patched."""
        return causal_findings.pairs(self.table("pairs"))

    @cached_property
    def patching_limit(self) -> float | None:
        """Where the scale of attention, MLPs and heads ends: their furthest from no effect in both modes."""
        parts = self.table("patching")
        parts = parts[parts["site"].isin(_ONE_SCALE)]
        return (parts["effect"] - parts["mode"].map(NO_EFFECT).fillna(0.0)).abs().max() if len(parts) else None

    @property
    def patching_scale(self) -> float | None:
        """The same; None where nothing has an effect."""
        return (
            float(self.patching_limit) if not wording.is_missing(self.patching_limit) and self.patching_limit else None
        )

    @property
    def agreement(self) -> pd.DataFrame:
        """Table `attribution_agreement` with sites in words."""
        table = self.table("attribution_agreement")
        return table.assign(site=[SITES.get(site, wording.metric_name(wording.plain(site))) for site in table["site"]])

    @cached_property
    def attributions(self) -> list[dict[str, Any]]:
        """One entry a read-out: what tells harmful from harmless, then each set of prompts with its sums."""
        table, compared, groups = self.table("attribution"), self.table("attribution_compared"), []
        for onto in dict.fromkeys([*table["onto"], *compared["onto"]]):
            words, unit = _ONTO.get(onto, (onto, ""))
            own, rows = compared[compared["onto"] == onto], table[table["onto"] == onto]
            differing = [
                self.panels.add(name, partial(draw, own, unit=unit), title=title, rows=own, heads_of=heads_of)
                for name, draw, title, heads_of in (
                    ("attribution_difference", figures.attribution_difference, "Heads: harmful − harmless", self.id),
                    ("top_components", figures.top_components, "Components that differ most", ""),
                )
                if len(own)
            ]
            sets = [
                (name, self._of_set(rows[rows["set"] == name], unit), causal_findings.sums(rows[rows["set"] == name]))
                for name in ("harmful", "harmless")
                if name in set(rows["set"])
            ]
            groups.append(
                {
                    "onto": wording.plain(words),
                    "chance": causal_findings.chance(own),
                    "differing": differing,
                    "sets": sets,
                }
            )
        return groups

    def _of_set(self, rows: pd.DataFrame, unit: str) -> list[Panel]:
        heads = rows[rows["component"] == "head"]
        draw = partial(figures.layer_by_head, heads, value="value", title="Heads", unit=unit)
        return [
            self.panels.add("layer_by_head", draw, title="Heads", rows=heads, heads_of=self.id),
            self.panels.add(
                "mlps", partial(figures.mlps, rows, unit=unit), title="MLPs", rows=rows[rows["component"] == "mlp"]
            ),
        ]

    @property
    def top_tokens(self) -> list[dict[str, Any]]:
        """Tokens that the top heads read refusal from."""
        return causal_findings.top_tokens(self.table("token_sources"))

    @property
    def knock_outs(self) -> str:
        """Without which component refusal falls furthest."""
        return causal_findings.knock_outs(self.table("knockout"))

    @property
    def head_set(self) -> str:
        """Whether a few heads hold half of refusal."""
        return causal_findings.head_set(self.table("head_sets"))

    @property
    def head_sets(self) -> pd.DataFrame:
        """Sets that hold a head."""
        table = self.table("head_sets")
        return table[table["size"] > 0]

    @property
    def circuit(self) -> str:
        """How large the circuit is and how faithful."""
        return causal_findings.circuit(self.table("circuit_nodes"), self.table("faithfulness"))

    @property
    def circuit_edges(self) -> pd.DataFrame:
        """Table `circuit_edges`."""
        return self.table("circuit_edges")

    # Texts

    @property
    def token_limit(self) -> float:
        """|projection| at which the colour of a token saturates."""
        values = self.table("tokens")["value"].abs().dropna()
        return float(values.quantile(0.98)) if len(values) else 1.0

    @cached_property
    def coloured(self) -> list[dict[str, Any]]:
        """Example prompts, each token with its projection and a colour."""
        table = self.table("tokens")
        if not table["value"].notna().any():
            return []
        return [
            {
                "set": wording.plain(name),
                "prompt_id": wording.plain(prompt),
                "tokens": [
                    (wording.plain(row.token), wording.number(row.value), _colour(row.value, self.token_limit))
                    for row in rows.sort_values("index").itertuples()
                ],
            }
            for (name, prompt), rows in table.groupby(["set", "prompt_id"], sort=False)
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


def _colour(value: float, limit: float) -> Markup:
    """Red for positive, blue for negative, the stronger the further from zero."""
    if wording.is_missing(value):
        return Markup("transparent")
    red, green, blue = (178, 24, 43) if value > 0 else (33, 102, 172)
    return Markup(f"rgba({red},{green},{blue},{min(1.0, abs(value) / limit) * 0.75:.2f})")
