"""Frontiers: attack success against what robustness costs, of the study's own suites and of benchmarks."""

from functools import partial
from itertools import islice
from typing import Any

import pandas as pd

from mechrefusal.report import evaluation_findings, figures, headline, wording
from mechrefusal.report.figures.frontier_points import SUCCESS
from mechrefusal.report.figures.suites import of, texts
from mechrefusal.report.panels import Panel
from mechrefusal.report.sections import Page

MOST_GROUPS = 24
_AGAINST = {"refusal": "over-refusal", "answered": "utility"}
_COSTS = (("overrefusal", "refusal", "over-refusal"), ("utility", "answered", "utility"))
TWINS = ("guided", "control")
"""Relations of table `method_differences` between an arm and its twin with a guide."""


def frontier_panel(page: Page, rates: pd.DataFrame, title: str, **look: Any) -> Panel:
    """One frontier (`figures.frontier`) with the carriers of the run; arms are joined with their twins with a guide."""
    depth = max((checkpoint.n_layers for checkpoint in page.run.checkpoints), default=0) or None
    joined = twins(page.run.across["method_differences"])
    look = {"n_layers": depth, "twins": joined, "title": wording.for_plotly(title), **look}
    draw = partial(figures.frontier, rates, page.run.together("carrier"), **look)
    shown = of(rates, suite=look["harmful"]), of(rates, suite=look["harmless"])
    return page.panels.add("frontier", draw, title=title, rows=pd.concat(shown))


def own_frontiers(page: Page, lines: list[headline.Headline]) -> list[Panel]:
    """Attack success of every attack against over-refusal and utility, on the study's own suites."""
    rates = of(page.run.together("rates"), by="all", intervention="none")
    attacks = headline.attack_columns(lines) if len(of(rates, metric=SUCCESS)) else []
    panels = []
    for (name, attack), (harmless, against, words) in [(key, cost) for key in attacks for cost in _COSTS]:
        look = {"harmful": name, "harmless": harmless, "against": against, "attack": attack}
        panels.append(frontier_panel(page, rates, f"{pressed(attack)}: success against {words}", **look))
    return panels


def suite_frontiers(page: Page, rates: pd.DataFrame) -> list[tuple[str, list[Panel]]]:
    """One group a harmful suite, attack and judge of success (or method of table `stress`), one panel a harmless suite.

    Against over-refusal on suites whose prompts look unsafe, against the answered rate on the others.
    """
    rates, stress = of(rates, by="all", intervention="none"), page.run.across["stress"]
    wanted = [
        (f"{wording.shortened(suite, 40)}, {pressed(attack).lower()}; judge {wording.shortened(judge, 40)}",
         {"harmful": suite, "attack": attack, "success_judge": judge})
        for suite, attack, judge in islice(_harmful(rates), MOST_GROUPS)
    ]  # fmt: skip
    wanted += [
        (f"{wording.shortened(method, 40)}, made anew against each checkpoint; judge {wording.shortened(judge, 40)}",
         {"harmful": "made anew", "attack": method, "success_judge": judge, "stress": stress})
        for method, judge in dict.fromkeys(zip(texts(stress["method"]), texts(stress["judge"]), strict=True))
    ]  # fmt: skip
    groups = [(summary, [_against(page, rates, look, one) for one in _harmless(rates)]) for summary, look in wanted]
    return [group for group in groups if group[1]]


def pressed(attack: str) -> str:
    """The attack that harmful prompts are asked under, in words."""
    return "No attack" if attack == "none" else wording.shortened(attack, 40)


def twins(differences: pd.DataFrame) -> list[tuple[str, str]]:
    """(arm, the same with a guide), controls included."""
    pairs = differences[differences["relation"].isin(TWINS)]
    return list(dict.fromkeys(pairs[["arm_a", "arm_b"]].itertuples(index=False, name=None)))


def _against(page: Page, rates: pd.DataFrame, look: dict[str, Any], suite: str) -> Panel:
    against = "refusal" if evaluation_findings.looks_unsafe(suite) else "answered"
    title = f"Success against {_AGAINST[against]} on {wording.shortened(suite, 40)}"
    return frontier_panel(page, rates, title, **look, harmless=suite, against=against)


def _harmful(rates: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(suite, attack, judge) with an attack success; suites of harmful requests before XSTest's contrasts."""
    successes = of(rates, side="harmful", metric=SUCCESS)
    keys = dict.fromkeys(zip(*(texts(successes[name]) for name in ("suite", "attack", "judge")), strict=True))
    return sorted(keys, key=lambda key: (evaluation_findings.looks_unsafe(key[0]), key[1] != "none"))


def _harmless(rates: pd.DataFrame) -> list[str]:
    """Harmless suites, those that look unsafe first."""
    names = dict.fromkeys(texts(of(rates, side="harmless", kind="refusal")["suite"]))
    return sorted(names, key=lambda suite: not evaluation_findings.looks_unsafe(suite))
