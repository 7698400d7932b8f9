"""Suites, judges, and attacks made anew, at every checkpoint."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from mechrefusal.report import evaluation_findings, language, stress_findings, wording
from mechrefusal.report.evaluation_findings import SuiteRates
from mechrefusal.report.figures.suites import of
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
        table, keys = self.table("rates"), ["side", "judge", "attack"]
        for suite, of_suite in table.groupby("suite", sort=False):
            judges = [judge for judge, _ in evaluation_findings.judges(of_suite)]
            cases = set(of_suite[keys].itertuples(index=False, name=None))
            drawn: list[Panel] = []
            maps: list[Panel] = []
            for side, judge, attack in sorted(cases, key=lambda key: (judges.index(key[1]), key[2] != "none", *key)):
                rows = of(of_suite, side=side, judge=judge, attack=attack)
                look = {"suite": suite, "side": side, "judge": judge, "attack": attack}
                for metric in evaluation_findings.metrics(side, drawn=True):
                    shown = of(rows, metric=metric, by="all")
                    title, given = _title(metric, str(suite), side), {**look, "metric": metric}
                    drawn += self.draw({"draw": "rates", "rows": shown, "with": given, "title": title})
                for by in ("group", "category"):
                    parts = of(rows, by=by, intervention="none")
                    metric = next((m for m in _BY_CATEGORY.get(side, ("any_refusal",)) if len(of(parts, metric=m))), "")
                    title, given = f"{_title(metric, str(suite), side)}, by {by}", {**look, "metric": metric, "by": by}
                    shown = of(parts, metric=metric)
                    maps += self.draw({"draw": "suite_categories", "rows": shown, "with": given, "title": title})
            yield wording.shortened(suite), drawn + maps

    def differences(self) -> Groups:
        """One group a suite: a forest a side, judge, attack, rate and intervention; last what interventions change."""
        keys = ["side", "judge", "attack", "metric"]
        for suite, of_suite in self.table("suite_differences").groupby("suite", sort=False):
            drawn: list[Panel] = []
            for values in sorted(set(of_suite[keys].itertuples(index=False, name=None))):
                given: dict[str, Any] = {"suite": suite, **dict(zip(keys, values, strict=True))}
                if given["metric"] not in evaluation_findings.metrics(given["side"], drawn=True):
                    continue
                rows = of(of_suite, **dict(zip(keys, values, strict=True)))
                between = rows[rows["pair"] != "intervention"]
                looks = [{"intervention": name} for name in dict.fromkeys(between["intervention"])]
                looks += [{"pairs": "interventions"}] * (len(between) < len(rows))
                title = f"Change of {_title(given['metric'], str(suite), given['side']).lower()}"
                spec = {"draw": "suite_differences", "rows": rows, "title": title}
                drawn += [panel for look in looks for panel in self.draw({**spec, "with": {**given, **look}})]
            if drawn:
                yield wording.shortened(suite), drawn

    def transfers(self) -> list[Panel]:
        """One figure an attack and judge; the behaviours without an attack are in each."""
        rows = self.table("stress_transfer")
        attacks = list(dict.fromkeys(rows[["method", "judge"]].itertuples(index=False, name=None)))
        drawn = []
        for method, judge in [key for key in attacks if key[0] != "none"] or attacks:
            title, given = f"Where {wording.shortened(method)} cases succeed", {"method": method, "judge": judge}
            spec = {"draw": "stress_matrix", "rows": of(rows, judge=judge), "with": given, "title": title}
            drawn += self.draw(spec)
        return drawn

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
        one = self.table("rates")["judge"].nunique() == 1
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
