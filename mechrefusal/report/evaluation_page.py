"""Suites, judges, and attacks made anew, at every checkpoint."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd

from mechrefusal.report import evaluation_findings, figures, language, stress_findings, wording
from mechrefusal.report.evaluation_findings import SuiteRates
from mechrefusal.report.figures.suites import of, texts
from mechrefusal.report.frontiers import suite_frontiers
from mechrefusal.report.panels import Panel
from mechrefusal.report.reading import BEHAVIOUR
from mechrefusal.report.sections import Page
from mechrefusal.report.stress_findings import OfAttack

MOST_DIFFERENCES = 60
"""Rows of one table of differences of attacks that are shown; the pairs that matter most come first."""
_BY_CATEGORY = {"harmful": ("attack_success", "score"), "harmless": ("any_refusal",)}

Groups = Iterator[tuple[str, list[Panel]]]


class EvaluationPage(Page):
    """What an evaluation found. Its attributes are named by `pages/evaluation.yaml`."""

    name = "evaluation"
    most_differences = MOST_DIFFERENCES

    def table(self, name: str) -> pd.DataFrame:
        """A table of the run; of what was answered the benchmarks alone."""
        return self.run.benchmarks(name) if name in BEHAVIOUR else self.run.across[name]

    @property
    def suites(self) -> list[tuple[str, list[SuiteRates]]]:
        """(heading, tables) of each judge."""
        groups: dict[str, list[SuiteRates]] = {}
        for one in evaluation_findings.suite_rates(self.table("rates")):
            groups.setdefault(f"Judge of {one.kind}: {language.described(one.judge)}", []).append(one)
        return list(groups.items())

    def frontiers(self) -> list[tuple[str, list[Panel]]]:
        """Attack success against its costs, one group a suite, attack and judge."""
        return suite_frontiers(self, self.table("rates"))

    def suite_rates(self) -> Groups:
        """One group a suite: rates over steps, then by category, for every side, judge and attack."""
        table = self.table("rates")
        for suite in dict.fromkeys(texts(table["suite"])):
            own = of(table, suite=suite)
            judges = [judge for judge, _ in evaluation_findings.judges(own)]
            found = set(zip(*(texts(own[key]) for key in ("side", "judge", "attack")), strict=True))
            drawn: list[Panel] = []
            maps: list[Panel] = []
            for side, judge, attack in sorted(found, key=lambda key: (judges.index(key[1]), key[2] != "none", *key)):
                rows = of(own, side=side, judge=judge, attack=attack)
                look: dict[str, Any] = {"suite": suite, "side": side, "judge": judge, "attack": attack}
                for metric in evaluation_findings.metrics(side, drawn=True):
                    if len(shown := of(rows, metric=metric, by="all")):
                        draw = partial(figures.rates, rows, metric=metric, **look)
                        drawn.append(self.panels.add("rates", draw, title=_title(metric, suite, side), rows=shown))
                maps += self._categories(rows, look)
            yield wording.shortened(suite), drawn + maps

    def _categories(self, rows: pd.DataFrame, look: dict[str, Any]) -> list[Panel]:
        drawn = []
        for by in ("group", "category"):
            own = of(rows, by=by, intervention="none")
            metrics = [m for m in _BY_CATEGORY.get(look["side"], ("any_refusal",)) if len(of(own, metric=m))][:1]
            for metric in metrics:
                draw = partial(figures.suite_categories, own, metric=metric, by=by, **look)
                title = f"{_title(metric, look['suite'], look['side'])}, by {by}"
                drawn.append(self.panels.add("suite_categories", draw, title=title, rows=of(own, metric=metric)))
        return drawn

    def differences(self) -> Groups:
        """One group a suite: a forest a side, judge, attack, rate and intervention; last what interventions change."""
        table, keys = self.table("suite_differences"), ["side", "judge", "attack", "metric"]
        kinds = texts(table["pair"])
        for suite in dict.fromkeys(texts(table["suite"])):
            own, drawn = of(table, suite=suite), []
            for values in sorted(set(zip(*(texts(own[key]) for key in keys), strict=True))):
                asked: dict[str, Any] = dict(zip(keys, values, strict=True))
                if asked["metric"] not in evaluation_findings.metrics(asked["side"], drawn=True):
                    continue
                title = f"Change of {_title(asked['metric'], suite, asked['side']).lower()}"
                rows = of(own, **asked)
                between = rows[(kinds[rows.index] != "intervention").to_numpy()]
                looks = [{"intervention": name} for name in dict.fromkeys(texts(between["intervention"]))]
                looks += [{"pairs": "interventions"}] * (len(between) < len(rows))
                for look in looks:
                    draw = partial(figures.suite_differences, rows, suite=suite, **asked, **look)
                    drawn.append(self.panels.add("suite_differences", draw, title=title, rows=rows))
            if drawn:
                yield wording.shortened(suite), drawn

    def transfers(self) -> list[Panel]:
        """One figure an attack and judge; the behaviours without an attack are in each."""
        rows = self.table("stress_transfer")
        found = dict.fromkeys(zip(texts(rows["method"]), texts(rows["judge"]), strict=True))
        return [
            self.panels.add(
                "stress_matrix",
                partial(figures.stress_matrix, rows, method=method, judge=judge),
                title=f"Where {wording.shortened(method)} cases succeed",
                rows=of(rows, judge=judge),
            )
            for method, judge in [key for key in found if key[0] != "none"] or list(found)
        ]

    @property
    def control(self) -> list[OfAttack]:
        """Whether the request is refused, or the suffix."""
        return stress_findings.control(self.table("stress_control"))

    @property
    def robustness(self) -> list[OfAttack]:
        """Which checkpoint is more robust."""
        return stress_findings.differences(self.table("stress_differences"))

    @property
    def no_agreement(self) -> str:
        """Why judges are not compared."""
        one = texts(self.table("rates")["judge"]).nunique() == 1
        return "One judge has judged: agreement takes two." if one else "Judges were not compared."

    @property
    def no_leaks(self) -> str:
        """Whether no leak was found, or none was looked for."""
        looked = (self.run.folder / "measurements" / "leaks.parquet").is_file()
        none = "No prompt of the suites was found among those that the run trained on or was measured by."
        return none if looked else "Leaks were not looked for."

    @property
    def samples(self) -> list[dict[str, Any]]:
        """A few judged answers of each suite."""
        return evaluation_findings.samples(self.table("verdicts"), show_completions=self.show_completions)


def _title(metric: str, suite: str, side: str) -> str:
    return f"{wording.metric_name(metric).capitalize()}: {wording.shortened(suite, 40)}, {wording.shortened(side, 40)}"
