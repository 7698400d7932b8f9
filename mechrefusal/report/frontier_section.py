"""Frontiers: of the study's own rates on the index, of suites and of attacks made anew on the evaluation page."""

from functools import partial
from itertools import islice
from typing import Any

import pandas as pd

from mechrefusal.report import evaluation_findings, figures, headline, wording
from mechrefusal.report.figures.frontier_points import SUCCESS
from mechrefusal.report.figures.suites import of, texts
from mechrefusal.report.panels import Panel, Panels
from mechrefusal.report.reading import MeasuredRun

MOST_GROUPS = 24
_AGAINST = {"refusal": "over-refusal", "answered": "utility"}


def of_run(run: MeasuredRun, panels: Panels) -> list[Panel]:
    """Attack success of every attack against over-refusal and utility, on the study's own suites."""
    rates, drawn = of(run.together("rates"), by="all", intervention="none"), []
    success = of(rates, metric=SUCCESS)
    for name, attack in headline.attack_columns(headline.headlines(run)) if len(success) else []:
        for harmless, against in (("overrefusal", "refusal"), ("utility", "answered")):
            title = f"{_pressed(attack)}: success against {_AGAINST[against]}"
            look = {"harmful": name, "harmless": harmless, "against": against, "attack": attack, "title": title}
            drawn.append(_add(run, panels, rates, look, title))
    return drawn


def of_suites(run: MeasuredRun, panels: Panels) -> list[dict[str, Any]]:
    """One group a harmful suite, attack and judge of success (or method of table `stress`), one panel a harmless suite.

    Against over-refusal on suites whose prompts look unsafe, against the answered rate on the others.
    """
    rates = of(run.benchmarks("rates"), by="all", intervention="none")
    harmless = _harmless(rates)
    groups = []
    for suite, attack, judge in islice(_harmful(rates), MOST_GROUPS):
        title = f"{wording.shortened(suite, 40)}, {_pressed(attack).lower()}; judge {wording.shortened(judge, 40)}"
        look = {"harmful": suite, "attack": attack, "success_judge": judge}
        groups.append({"title": title, "panels": [_against(run, panels, rates, look, one) for one in harmless]})
    stress = run.across["stress"]
    methods = dict.fromkeys(zip(texts(stress["method"]), texts(stress["judge"]), strict=True))
    for method, judge in methods:
        title = (
            f"{wording.shortened(method, 40)}, made anew against each checkpoint; judge {wording.shortened(judge, 40)}"
        )
        look = {"harmful": "made anew", "attack": method, "success_judge": judge, "stress": stress}
        found = [_against(run, panels, rates, look, one) for one in harmless]
        groups.append({"title": title, "panels": found})
    return [group for group in groups if group["panels"]]


def _against(run: MeasuredRun, panels: Panels, rates: pd.DataFrame, look: dict[str, Any], suite: str) -> Panel:
    against = "refusal" if evaluation_findings.looks_unsafe(suite) else "answered"
    title = f"Success against {_AGAINST[against]} on {wording.shortened(suite, 40)}"
    return _add(run, panels, rates, {**look, "harmless": suite, "against": against, "title": title}, title)


def _add(run: MeasuredRun, panels: Panels, rates: pd.DataFrame, look: dict[str, Any], title: str) -> Panel:
    depth = max((checkpoint.n_layers for checkpoint in run.checkpoints), default=0) or None
    look = {**look, "title": wording.for_plotly(title)}
    return panels.add(partial(figures.frontier, rates, run.together("carrier"), n_layers=depth, **look), title=title)


def _harmful(rates: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(suite, attack, judge) with an attack success; suites of harmful requests before XSTest's contrasts."""
    own = of(rates, side="harmful", metric=SUCCESS)
    found = dict.fromkeys(zip(*(texts(own[name]) for name in ("suite", "attack", "judge")), strict=True))
    return sorted(found, key=lambda key: (evaluation_findings.looks_unsafe(key[0]), key[1] != "none"))


def _harmless(rates: pd.DataFrame) -> list[str]:
    """Harmless suites, those that look unsafe first."""
    found = dict.fromkeys(texts(of(rates, side="harmless", kind="refusal")["suite"]))
    return sorted(found, key=lambda suite: not evaluation_findings.looks_unsafe(suite))


def _pressed(attack: str) -> str:
    return "No attack" if attack == "none" else wording.shortened(attack, 40)
