"""The first page: the story, the table of checkpoints, and how everything moves over optimiser steps."""

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import pandas as pd

from mechrefusal.report import (
    carrier_findings,
    causal_findings,
    figures,
    findings,
    gate,
    headline,
    language,
    story,
    wording,
)
from mechrefusal.report.figures.cross_patches import PAIR, head_sites, of_set
from mechrefusal.report.figures.forest import NONE, layered
from mechrefusal.report.figures.frontier_points import SUCCESS
from mechrefusal.report.figures.screening import SITES
from mechrefusal.report.figures.suites import of
from mechrefusal.report.frontiers import frontier_panel, pressed
from mechrefusal.report.order import arm_order, checkpoint_order
from mechrefusal.report.panels import Panel
from mechrefusal.report.reading import MeasuredRun
from mechrefusal.report.sections import Page
from mechrefusal.report.training_page import probe_panels

SETS = ("harmful", "harmless")
_CARRIER_SCORES = {
    "bypass": ("Bypass of the carrier", "refusal score"),
    "induce": ("Induce of the carrier", "refusal score"),
    "kl": ("Divergence of the carrier", "KL (nats)"),
}


class IndexPage(Page):
    """What the whole run says. Its attributes are named by `pages/index.yaml`."""

    name = "index"
    shared_top = 10

    def __init__(self, run: MeasuredRun, *, show_completions: bool = False) -> None:
        super().__init__(run, show_completions=show_completions)
        self.lines = headline.headlines(run)
        self.gates = gate.of_run(run)

    @cached_property
    def story(self) -> list[tuple[str, str]]:
        """(heading, sentences): what a reader is told first."""
        return story.told(self.run)

    @property
    def language(self) -> str:
        """A warning where English rules judge what is not English."""
        return language.of_measurements(self.run.checkpoints)

    @property
    def english(self) -> str:
        """What the built-in rules read."""
        return language.SAID

    @property
    def judges(self) -> list[str]:
        """Judges behind the rates of the table of checkpoints."""
        return headline.judges(self.lines)

    @property
    def attacks(self) -> list[tuple[tuple[str, str], str]]:
        """Columns of attack success."""
        return [(key, headline.attack_label(key)) for key in headline.attack_columns(self.lines)]

    @property
    def ablated_to(self) -> list[str]:
        """What carriers were ablated to."""
        return sorted({line.ablated_to for line in self.lines} - {wording.MISSING})

    @cached_property
    def story_figure(self) -> list[Panel]:
        """The figure that tells it all: how deep the carrier is, beside refusal and over-refusal."""
        carrier, rates = self.run.together("carrier"), self.run.together("rates")
        if not len(carrier) and not len(rates):
            return []
        draw = partial(figures.depth_story, carrier, rates)
        return [
            self.panels.add(
                "depth_story", draw, title="Where refusal sits, and how often the model refuses", rows=carrier
            )
        ]

    @cached_property
    def frontiers(self) -> list[Panel]:
        """Attack success of every attack against over-refusal and utility, on the study's own suites."""
        rates = of(self.run.together("rates"), by="all", intervention="none")
        attacks = headline.attack_columns(self.lines) if len(of(rates, metric=SUCCESS)) else []
        return [
            frontier_panel(
                self,
                rates,
                f"{pressed(attack)}: success against {words}",
                harmful=name,
                harmless=harmless,
                against=against,
                attack=attack,
            )
            for name, attack in attacks
            for harmless, against, words in (
                ("overrefusal", "refusal", "over-refusal"),
                ("utility", "answered", "utility"),
            )
        ]

    @property
    def alone(self) -> str:
        """Why nothing is compared where there is one checkpoint."""
        one = len(self.run.checkpoints) == 1
        return "There is one checkpoint, and nothing to compare it with: give several, or a base." if one else ""

    @property
    def models(self) -> pd.DataFrame:
        """What each checkpoint is."""
        table = self.run.across["checkpoints"]
        order = sorted(range(len(table)), key=lambda place: checkpoint_order(tuple(table[["arm", "step"]].iloc[place])))
        return table.iloc[order]

    @cached_property
    def relocations(self) -> list[dict[str, Any]]:
        """Whether refusal moved, by pair of checkpoints."""
        return findings.relocations(self.run.across["relocation"])

    @property
    def says_what_decides(self) -> bool:
        """Whether it is known of anything how many prompts would decide it."""
        return findings.says_what_decides(self.run.across["relocation"])

    def behaviour(self) -> list[Panel]:
        """Rates over steps: refusals, what is answered, and the success of every attack."""
        rates = self.run.together("rates")
        rates = rates[(rates["intervention"] == "none") & (rates["by"] == "all")]
        wanted = [(headline.REFUSAL_METRIC, name, "none") for name in headline.ASKED_SETS]
        wanted += [("answered", "utility", "none")]
        wanted += [(headline.ATTACK_METRIC, *key) for key, _ in self.attacks]
        drawn = []
        for metric, suite, attack in wanted:
            own = rates[(rates["metric"] == metric) & (rates["suite"] == suite) & (rates["attack"] == attack)]
            for judge in sorted(set(own["judge"])):
                draw = partial(figures.rates, own, judge=judge, suite=suite, metric=metric, attack=attack)
                drawn.append(self.panels.add("rates", draw, rows=own[own["judge"] == judge]))
        return drawn

    def carriers(self) -> list[Panel]:
        """Depth of the carrier, by kind of model as unlike models have no axis in common, and its scores."""
        table, drawn = self.run.together("carrier"), []
        for checkpoints in self.run.kinds if len(table) else []:
            own = self.run.together("carrier", among=checkpoints)
            depth = max((checkpoint.n_layers for checkpoint in checkpoints), default=0) or None
            if len(own):
                draw = partial(figures.carrier_layers, own, n_layers=depth)
                drawn.append(self.panels.add("carrier_layers", draw, rows=own))
        for column, (title, unit) in _CARRIER_SCORES.items() if table["layer"].notna().any() else []:
            draw = partial(figures.trajectory, table, value=column, title=title, unit=unit)
            drawn.append(self.panels.add("trajectory", draw, title=title, rows=table[["arm", "step", column]]))
        return drawn

    @cached_property
    def effects(self) -> list[tuple[str, dict[str, Any]]]:
        """What interventions do to answers: one row a checkpoint and judge."""
        return [
            (f"{checkpoint.arm} {checkpoint.step}", found)
            for checkpoint in self.run.checkpoints
            for found in carrier_findings.effects(checkpoint.tables["rates"])
        ]

    @property
    def effect_columns(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """(kind of prompts, interventions with their words) that hold something."""
        known = {key for _, found in self.effects for key in found["cells"]}
        columns = [
            (kind, [(name, words) for name, words in names.items() if (kind, name) in known])
            for kind, names in carrier_findings.EFFECTS.items()
        ]
        return [(kind, names) for kind, names in columns if names]

    @property
    def carrier(self) -> pd.DataFrame:
        """Table `carrier` of all checkpoints."""
        return self.run.together("carrier")

    @property
    def zero_distances(self) -> pd.DataFrame:
        """Table `directions` where it says how far zero lies."""
        table = self.run.together("directions")
        return table if table["zero_distance"].notna().any() else table.iloc[:0]

    @property
    def zero_words(self) -> list[str]:
        """How far zero lies from the harmless mean at the last checkpoint of each arm."""
        last = {checkpoint.id for checkpoint in self.run.last_of_each_arm}
        told = [
            (line.checkpoint.label, carrier_findings.distance(line.zero.distance, of=line.zero.of))
            for line in self.lines
            if line.zero and line.checkpoint.id in last
        ]
        return [f"{label}: {words}" for label, words in told if words]

    @property
    def drift_by_layer(self) -> pd.DataFrame:
        """Rows of measures that were taken at several layers."""
        table = self.run.across["drift"]
        layers = table[table["layer"] >= 0].groupby("measure")["layer"].nunique()
        return table[table["measure"].isin(layers[layers > 1].index)]

    @property
    def overlap_over_steps(self) -> pd.DataFrame:
        """Table `overlap` without what stands on the checkpoints' pages, layer by layer."""
        return _without_layers(self.run.together("overlap"))

    @property
    def coupling_over_steps(self) -> pd.DataFrame:
        """The same of table `coupling`."""
        return _without_layers(self.run.together("coupling"))

    @property
    def crossed_heads(self) -> list[dict[str, Any]]:
        """The heads of each source that move the target most."""
        return causal_findings.crossed_heads(self.run.across["cross_patching"])

    def crossed(self) -> Iterator[tuple[str, list[Panel]]]:
        """Patches across checkpoints, one group two arms, both ways; all heads have one scale, whatever the pair."""
        table = self.run.across["cross_patching"]
        most = table.loc[table["head"] >= 0, "raw"].abs().max()
        limit = None if wording.is_missing(most) or most == 0 else float(most)
        between = [
            tuple(sorted(ends, key=arm_order))
            for ends in table[["arm_source", "arm_target"]].itertuples(index=False, name=None)
        ]
        for one, other in dict.fromkeys(between):
            rows, drawn = table[[ends == (one, other) for ends in between]], []
            for prompts in SETS:
                asked = of_set(rows, prompts)
                for site in head_sites(table):
                    title = f"{SITES.get(site, 'Heads')}, {prompts} prompts"
                    look: dict[str, Any] = {"prompts": prompts, "site": site, "title": title, "limit": limit}
                    if len(own := asked[asked["site"] == site]):
                        draw = partial(figures.cross_patching, own, **look)
                        drawn.append(self.panels.add("cross_patching", draw, title=title, rows=own))
                if len(own := asked[asked["head"] < 0]):
                    title = f"Layers, {prompts} prompts"
                    draw = partial(figures.cross_patching_layers, asked, prompts=prompts, title=title)
                    drawn.append(self.panels.add("cross_patching_layers", draw, title=title, rows=own))
            pairs = rows[list(PAIR)].drop_duplicates().shape[0]
            yield f"{wording.plain(one)} and {wording.plain(other)}, both ways ({pairs} pairs)", drawn

    def shared_heads(self) -> list[Panel]:
        """Heads that several checkpoints share, among those whose heads are the same ones."""
        drawn = []
        for checkpoints in self.run.kinds:
            kind = f", {checkpoints[0].label} and like it" if len(self.run.kinds) > 1 else ""
            patched, knocked = (self.run.together(name, among=checkpoints) for name in ("patching", "knockout"))
            patched = patched[(patched["site"] == "z") & (patched["mode"] == "denoising")]
            knocked = knocked[knocked["component"] == "head"]
            for own, value, title in (
                (patched, "raw", f"By patching (denoising){kind}"),
                (knocked, "refusal", f"By knock-out{kind}"),
            ):
                if len(own[["arm", "step"]].drop_duplicates()) > 1:
                    draw = partial(figures.shared_heads, own, value=value, k=self.shared_top, title=title)
                    drawn.append(self.panels.add("shared_heads", draw, title=title, rows=own))
        return drawn

    def probes(self) -> list[Panel]:
        """Probes that were asked while arms were trained."""
        return probe_panels(self)

    @property
    def measuring(self) -> pd.DataFrame:
        """Wall time of each step of the measurement, over all checkpoints."""
        return self.run.together("timings").groupby("stage", as_index=False)["seconds"].sum()


def _without_layers(table: pd.DataFrame) -> pd.DataFrame:
    everywhere = [name for name in layered(table) if not ((table["measure"] == name) & (table["layer"] == NONE)).any()]
    return table[~table["measure"].isin(everywhere)]
