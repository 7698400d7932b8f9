"""The arms of a run beside each other: what each method gives, what a guide changes, and whose carrier works where."""

from functools import cached_property

import pandas as pd

from mechrefusal.report import arm_findings, headline
from mechrefusal.report.arm_findings import GUIDES
from mechrefusal.report.frontiers import own_frontiers
from mechrefusal.report.grids import Grid
from mechrefusal.report.panels import Panel
from mechrefusal.report.sections import Page


class ArmsPage(Page):
    """What table `methods` says. Its attributes are named by `pages/arms.yaml`."""

    name = "arms"

    @cached_property
    def compared(self) -> Grid:
        """One row an arm, at its last checkpoint, and one where the arms start."""
        return arm_findings.grid(self.run.across["methods"])

    @cached_property
    def twins(self) -> bool:
        """Whether any arm has a twin that differs in its guide alone."""
        return bool(len(self.of_guides))

    @property
    def of_guides(self) -> pd.DataFrame:
        """Differences between arms that differ in their guide alone."""
        table = self.run.across["method_differences"]
        return table[table["relation"].isin(GUIDES)]

    @property
    def of_methods(self) -> pd.DataFrame:
        """All other differences between arms."""
        table = self.run.across["method_differences"]
        return table[~table["relation"].isin(GUIDES)]

    def frontiers(self) -> list[Panel]:
        """Attack success of every attack against over-refusal and utility, on the study's own suites."""
        return own_frontiers(self, headline.headlines(self.run))

    def of_ends(self, name: str) -> pd.DataFrame:
        """Rows of a table of checkpoints that are of the last ones of the arms, the end of the warm-up among them."""
        return self.run.together(name, among=self.run.last_of_each_arm)

    def between_ends(self, name: str, first: str = "_a", second: str = "_b") -> pd.DataFrame:
        """Rows of a table of pairs between the last checkpoints of arms, the end of the warm-up among them."""
        table = self.run.across[name]
        ends = {(checkpoint.arm, checkpoint.step) for checkpoint in self.run.last_of_each_arm}
        keep = [
            all((row[f"arm{end}"], row[f"step{end}"]) in ends for end in (first, second))
            for row in table.to_dict("records")
        ]
        return table[keep] if len(table) else table
