"""What stands in `report/evaluation.html`: suites, judges, and attacks made anew, at every checkpoint."""

from functools import partial
from typing import Any

import pandas as pd

from mechrefusal.report import evaluation_findings, figures, frontier_section, language, stress_findings, wording
from mechrefusal.report.figures.suites import NUMBERS, of, readable, texts
from mechrefusal.report.panels import Panel, Panels
from mechrefusal.report.reading import MeasuredRun

MAIN = {"harmful": ("attack_success", "any_refusal", "score"), "harmless": ("any_refusal", "answered")}
"""Rates that are drawn over steps."""
MOST_DIFFERENCES = 60
"""Rows of one table of differences of attacks that are shown; the pairs that matter most come first."""
_BY_CATEGORY = {"harmful": ("attack_success", "score"), "harmless": ("any_refusal",)}


def context(run: MeasuredRun, *, show_completions: bool) -> dict[str, Any]:
    """Everything that the template `evaluation.html` needs."""
    panels, across = Panels(), run.across
    rates, verdicts = run.benchmarks("rates"), run.benchmarks("verdicts")
    return {
        "run": run,
        "checkpoint_ids": {checkpoint.id for checkpoint in run.checkpoints},
        "headline": evaluation_findings.headline(rates),
        "language": language.of_verdicts(verdicts),
        "rates": _rates(rates, panels),
        "frontiers": frontier_section.of_suites(run, panels),
        "differences": _differences(across["suite_differences"], panels),
        "losses": _losses(across["answer_losses"], panels),
        "stress": _stress(across["stress"], panels),
        "transfers": _transfers(across["stress_transfer"], panels),
        "control": stress_findings.control(across["stress_control"]),
        "control_names": [*stress_findings.TWIN_RATES.values(), *stress_findings.SHARES.values()],
        "shares": _shares(across["stress_control"], panels),
        "stress_differences": stress_findings.differences(across["stress_differences"]),
        "most_differences": MOST_DIFFERENCES,
        "agreement": evaluation_findings.agreement(across["judge_agreement"]),
        "n_judges": texts(rates["judge"]).nunique(),
        "leaks": evaluation_findings.leaks(across["leaks"]),
        "leaks_looked_for": (run.folder / "measurements" / "leaks.parquet").is_file(),
        "samples": evaluation_findings.samples(verdicts, show_completions=show_completions),
        "show_completions": show_completions,
        "short": wording.SHORT_COMPLETION,
    }


def _rates(table: pd.DataFrame, panels: Panels) -> list[dict[str, Any]]:
    """One group a suite: rates over steps, then by category, for every side, judge and attack."""
    groups = []
    for suite in dict.fromkeys(texts(table["suite"])):
        own = of(table, suite=suite)
        judges = [judge for judge, _ in evaluation_findings.judges(own)]
        found = set(zip(*(texts(own[key]) for key in ("side", "judge", "attack")), strict=True))
        lines: list[Panel] = []
        maps: list[Panel] = []
        for side, judge, attack in sorted(found, key=lambda key: (judges.index(key[1]), key[2] != "none", *key)):
            rows = of(own, side=side, judge=judge, attack=attack)
            asked: dict[str, Any] = {"suite": suite, "side": side, "judge": judge, "attack": attack}
            for metric in MAIN.get(side, MAIN["harmful"]):
                if len(of(rows, metric=metric, by="all")):
                    draw = partial(figures.rates, rows, metric=metric, **asked)
                    lines.append(panels.add(draw, title=_title(metric, suite, side)))
            maps += _categories(rows, panels, asked)
        groups.append({"suite": wording.shortened(suite), "lines": lines, "maps": maps})
    return groups


def _categories(rows: pd.DataFrame, panels: Panels, asked: dict[str, Any]) -> list[Panel]:
    drawn = []
    for by in ("group", "category"):
        own = of(rows, by=by, intervention="none")
        metrics = [m for m in _BY_CATEGORY.get(asked["side"], ("any_refusal",)) if len(of(own, metric=m))][:1]
        for metric in metrics:
            draw = partial(figures.suite_categories, own, metric=metric, by=by, **asked)
            drawn.append(panels.add(draw, title=f"{_title(metric, asked['suite'], asked['side'])}, by {by}"))
    return drawn


def _differences(table: pd.DataFrame, panels: Panels) -> list[dict[str, Any]]:
    """One group a suite: a forest a side, judge, attack, rate and intervention; one of what interventions change."""
    keys = ["side", "judge", "attack", "metric"]
    kinds = texts(table["pair"])
    groups = []
    for suite in dict.fromkeys(texts(table["suite"])):
        own, drawn = of(table, suite=suite), []
        for values in sorted(set(zip(*(texts(own[key]) for key in keys), strict=True))):
            asked: dict[str, Any] = dict(zip(keys, values, strict=True))
            if asked["metric"] not in MAIN.get(asked["side"], (asked["metric"],)):
                continue
            title = f"Change of {_title(asked['metric'], suite, asked['side']).lower()}"
            rows = of(own, **asked)
            between = rows[(kinds[rows.index] != "intervention").to_numpy()]
            for intervention in dict.fromkeys(texts(between["intervention"])):
                look = {"suite": suite, "intervention": intervention, **asked}
                drawn.append(panels.add(partial(figures.suite_differences, rows, **look), title=title))
            if len(between) < len(rows):
                look = {"suite": suite, "pairs": "interventions", **asked}
                drawn.append(panels.add(partial(figures.suite_differences, rows, **look), title=title))
        if drawn:
            groups.append({"suite": wording.shortened(suite), "panels": drawn})
    return groups


def _losses(table: pd.DataFrame, panels: Panels) -> list[Panel]:
    return [
        panels.add(
            partial(figures.answer_losses, table, suite=suite), title=f"Loss of answers: {wording.shortened(suite)}"
        )
        for suite in dict.fromkeys(texts(table["suite"]))
    ]


def _stress(table: pd.DataFrame, panels: Panels) -> list[Panel]:
    """One figure a judge: success by step of the attacks that were made anew."""
    rows = readable(_named(table), "attack_step", *NUMBERS)
    rows = rows[rows["attack_step"].notna()]
    return [
        panels.add(partial(figures.stress_curves, rows, judge=judge), title="Success by attack step")
        for judge in sorted(set(texts(table["judge"])))
    ]


def _transfers(table: pd.DataFrame, panels: Panels) -> list[Panel]:
    """One figure an attack and judge; the behaviours without an attack are in each."""
    rows = readable(
        readable(table, *NUMBERS, arm="arm_source", step="step_source"), arm="arm_target", step="step_target"
    )
    found = dict.fromkeys(zip(texts(table["method"]), texts(table["judge"]), strict=True))
    attacks = [key for key in found if key[0] != "none"] or list(found)
    return [
        panels.add(
            partial(figures.stress_matrix, rows, method=method, judge=judge),
            title=f"Where {wording.shortened(method)} cases succeed",
        )
        for method, judge in attacks
    ]


def _shares(table: pd.DataFrame, panels: Panels) -> list[Panel]:
    """One figure an attack and judge of success."""
    shares = table[texts(table["metric"]).isin(list(stress_findings.SHARES))]
    return [
        panels.add(
            partial(figures.stress_shares, _named(table), method=method, judge=judge),
            title=f"What becomes of {wording.shortened(method)} attacks",
        )
        for method, judge in dict.fromkeys(zip(texts(shares["method"]), texts(shares["judge"]), strict=True))
    ]


def _named(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: texts(table[name]) for name in ("method", "judge")})


def _title(metric: str, suite: str, side: str) -> str:
    return f"{wording.metric_name(metric).capitalize()}: {wording.shortened(suite, 40)}, {wording.shortened(side, 40)}"
