"""The first page: the story, the table of checkpoints, and how everything moves over optimiser steps."""

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

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
from mechrefusal.report.figures import catalogue
from mechrefusal.report.figures.cross_patches import PAIR, head_sites, of_set
from mechrefusal.report.figures.suites import of
from mechrefusal.report.frontiers import own_frontiers
from mechrefusal.report.order import arm_order
from mechrefusal.report.panels import Panel
from mechrefusal.report.reading import MeasuredRun
from mechrefusal.report.sections import Page

SETS = ("harmful", "harmless")
_STORY = "Where refusal sits, and how often the model refuses"


class IndexPage(Page):
    """What the whole run says. Its attributes are named by `pages/index.yaml`."""

    name = "index"
    shared_top = 10

    def __init__(self, run: MeasuredRun) -> None:
        super().__init__(run)
        self.lines = headline.headlines(run)
        self.story = story.paragraphs(run, self.lines)
        self.gates = [gate.of(checkpoint) for checkpoint in run.checkpoints]
        last = {checkpoint.id for checkpoint in run.last_of_each_arm}
        self.ends = [one for one in self.gates if one.checkpoint.id in last]
        self.behaves, self.carries = headline.behaviour(self.lines), headline.carriers(self.lines)
        self.judges = ", ".join(map(language.described, headline.judges(self.lines)))
        self.language = language.of_measurements(run.checkpoints)
        self.english, self.gate_caption = language.SAID, gate.caption(self.gates)
        one = len(run.checkpoints) == 1
        self.alone = "There is one checkpoint, and nothing to compare it with: give several, or a base." if one else ""

    @cached_property
    def story_figure(self) -> list[Panel]:
        """The figure that tells it all: how deep the carrier is, beside refusal and over-refusal."""
        carrier, rates = self.table("carrier"), self.table("rates")
        draw = partial(figures.depth_story, carrier, rates)
        return [self.panels.add("depth_story", draw, title=_STORY, rows=carrier)] if len(carrier) else []

    def table(self, name: str) -> Any:
        """A table of the run; of what was answered that of the study's own suites."""
        return self.run.together(name) if name == "rates" else super().table(name)

    @cached_property
    def frontiers(self) -> list[Panel]:
        """Attack success of every attack against over-refusal and utility, on the study's own suites."""
        return own_frontiers(self, self.lines)

    @cached_property
    def relocations(self) -> list[dict[str, Any]]:
        """Whether refusal moved, by pair of checkpoints."""
        return findings.relocations(self.run.across["relocation"])

    def behaviour(self) -> list[Panel]:
        """Rates over steps: refusals, what is answered, and the success of every attack."""
        rates = self.table("rates")
        rates = rates[(rates["intervention"] == "none") & (rates["by"] == "all")]
        wanted = [(headline.REFUSAL_METRIC, name, "none") for name in headline.ASKED_SETS]
        wanted += [("answered", "utility", "none")]
        wanted += [(headline.ATTACK_METRIC, *key) for key in headline.attack_columns(self.lines)]
        keys = ("metric", "suite", "attack")
        spec = {"draw": "rates", "each": [*keys, "judge"]}
        chosen = [of(rates, **dict(zip(keys, key, strict=True))).sort_values("judge", kind="stable") for key in wanted]
        return [panel for rows in chosen for panel in self.draw({**spec, "rows": rows})]

    def carriers(self) -> list[Panel]:
        """Depth of the carrier, by kind of model: layers of unlike models have no axis in common."""
        drawn = []
        for checkpoints in self.run.kinds:
            of_kind = self.run.together("carrier", among=checkpoints)
            depth = max((checkpoint.n_layers for checkpoint in checkpoints), default=0) or None
            if len(of_kind):
                draw = partial(figures.carrier_layers, of_kind, n_layers=depth)
                drawn.append(self.panels.add("carrier_layers", draw, rows=of_kind))
        return drawn

    @property
    def zero_words(self) -> list[str]:
        """How far zero lies from the harmless mean at the last checkpoint of each arm."""
        last = {checkpoint.id for checkpoint in self.run.last_of_each_arm}
        known = [line for line in self.lines if line.zero and line.checkpoint.id in last]
        pairs = [(line, carrier_findings.distance(line.zero.distance, of=line.zero.of)) for line in known if line.zero]
        return [f"{line.checkpoint.label}: {words}" for line, words in pairs if words]

    @property
    def crossed_heads(self) -> list[dict[str, Any]]:
        """The heads of each source that move the target most."""
        return causal_findings.crossed_heads(self.run.across["cross_patching"])

    def crossed(self) -> Iterator[tuple[str, list[Panel]]]:
        """Patches across checkpoints, one group two arms, both ways; all heads have one scale, whatever the pair."""
        table = self.run.across["cross_patching"]
        most = table.loc[table["head"] >= 0, "raw"].abs().max()
        limit = None if wording.is_missing(most) or most == 0 else float(most)
        ends = table[["arm_source", "arm_target"]].itertuples(index=False, name=None)
        between = [tuple(sorted(pair, key=arm_order)) for pair in ends]
        for one, other in dict.fromkeys(between):
            rows, drawn = table[[pair == (one, other) for pair in between]], []
            for prompts in SETS:
                subset = of_set(rows, prompts)
                for site in head_sites(table):
                    title = f"{catalogue.words('site').get(site, 'Heads')}, {prompts} prompts"
                    look = {"prompts": prompts, "site": site, "title": title, "limit": limit}
                    at_site = subset[subset["site"] == site]
                    drawn += self.draw({"draw": "cross_patching", "rows": at_site, "with": look, "title": title})
                title = f"Layers, {prompts} prompts"
                if (subset["head"] < 0).any():
                    look = {"prompts": prompts, "title": title}
                    drawn += self.draw({"draw": "cross_patching_layers", "rows": subset, "with": look, "title": title})
            n_pairs = rows[list(PAIR)].drop_duplicates().shape[0]
            yield f"{wording.plain(one)} and {wording.plain(other)}, both ways ({n_pairs} pairs)", drawn

    def shared_heads(self) -> list[Panel]:
        """Heads that several checkpoints share, among those whose heads are the same ones."""
        drawn = []
        for checkpoints in self.run.kinds:
            kind = f", {checkpoints[0].label} and like it" if len(self.run.kinds) > 1 else ""
            patched, knocked = (self.run.together(name, among=checkpoints) for name in ("patching", "knockout"))
            for rows, value, words in (
                (patched.query("site == 'z' and mode == 'denoising'"), "raw", "By patching (denoising)"),
                (knocked.query("component == 'head'"), "refusal", "By knock-out"),
            ):
                if len(rows[["arm", "step"]].drop_duplicates()) > 1:
                    look = {"value": value, "k": self.shared_top, "title": words + kind}
                    drawn += self.draw({"draw": "shared_heads", "rows": rows, "with": look, "title": words + kind})
        return drawn
