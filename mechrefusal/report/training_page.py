"""What stands in `report/training.html`: whether the adversarial training worked, and what it cost."""

from functools import partial
from typing import Any

import pandas as pd

from mechrefusal.report import figures, wording
from mechrefusal.report.figures.costs import PARTS
from mechrefusal.report.figures.training import term_title
from mechrefusal.report.order import arm_order
from mechrefusal.report.panels import Panel, Panels
from mechrefusal.report.reading import MeasuredRun

CASES_A_GROUP = 60
_FIRST_TERMS = ("utility", "away", "toward")
_FIRST_SETS = ("harmful", "attacked", "harmless")
_LONGEST_SOURCE = 24


def context(run: MeasuredRun) -> dict[str, Any]:
    """Everything that the template `training.html` needs."""
    panels, training, refreshes = Panels(), run.across["training"], run.across["refreshes"]
    return {
        "run": run,
        "arms": sorted(set(training["arm"]), key=arm_order),
        "losses": total_loss(run, panels) + _terms(run, panels),
        "no_terms": not len(run.across["terms"]),
        "attack_loss": _drawn(panels, training, [("Attack loss of the drawn cases", figures.attack_loss)]),
        "exchange": _drawn(
            panels, refreshes, [("What attack and training win from each other", figures.attack_exchange)]
        ),
        "ages": _drawn(
            panels,
            refreshes,
            [
                ("Age of the refreshed cases", figures.pool_age),
                ("Cases refreshed at least once", figures.cases_refreshed),
            ],
        ),
        "probes": probes(run, panels),
        "times": _drawn(
            panels,
            training,
            [
                ("Where the time of a step goes", figures.step_time),
                ("Wall time of a step", partial(figures.logged, value="seconds")),
            ],
        ),
        "parts": PARTS,
        "costs": figures.step_costs(training).to_dict("records"),
        "optimiser": _drawn(
            panels,
            training,
            [
                ("Gradient norm", partial(figures.logged, value="grad_norm")),
                ("Learning rate", partial(figures.logged, value="learning_rate")),
            ],
        ),
        "cases": case_groups(run.across["cases"]),
        "short": wording.SHORT_COMPLETION,
    }


def total_loss(run: MeasuredRun, panels: Panels) -> list[Panel]:
    """The total loss, or nothing where no training was logged."""
    title = "Total loss"
    return _drawn(panels, run.across["training"], [(title, partial(figures.losses, terms=("loss",), title=title))])


def probes(run: MeasuredRun, panels: Panels) -> list[Panel]:
    """One figure a probe set, metric and judge: harmful, attacked, harmless, then any other."""
    table = run.across["probes"]
    keys = ["set", "metric", "judge"]
    found = list(dict.fromkeys(table[keys].itertuples(index=False, name=None)))
    found.sort(key=lambda key: _FIRST_SETS.index(key[0]) if key[0] in _FIRST_SETS else len(_FIRST_SETS))
    return [
        panels.add(
            partial(figures.probes, table, set=name, metric=metric, judge=judge),
            title=f"{wording.metric_name(metric).capitalize()}: {wording.metric_name(name)} probes",
        )
        for name, metric, judge in found
    ]


def case_groups(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Attack cases by (source, method): means over the cases, and the first `CASES_A_GROUP` of them, shortened."""
    counted = ("loss_first", "loss", "steps", "forward_tokens", "dropped", "seconds")
    groups = []
    for (source, method), rows in table.groupby(["source", "method"], sort=False):
        groups.append(
            {
                "source": wording.shortened(source, _LONGEST_SOURCE) or wording.MISSING,
                "method": wording.shortened(method) or wording.MISSING,
                "n": len(rows),
                **{name: rows[name].mean() for name in counted},
                "dropped": rows["dropped"].sum(),
                "rows": [
                    {**row, **{name: wording.shortened(row[name]) for name in ("case", "behaviour", "prompt")}}
                    for row in rows.head(CASES_A_GROUP).to_dict("records")
                ],
            }
        )
    return groups


def _terms(run: MeasuredRun, panels: Panels) -> list[Panel]:
    """One figure a loss term, the three of R2D2 first; without table `terms`, those that table `training` has."""
    table, training = run.across["terms"], run.across["training"]
    if len(table):
        found = list(dict.fromkeys(table["term"]))
        found.sort(key=lambda term: _FIRST_TERMS.index(term) if term in _FIRST_TERMS else len(_FIRST_TERMS))
        return [
            panels.add(partial(figures.loss_term, table, term=term), title=wording.shortened(term)) for term in found
        ]
    logged = [term for term in _FIRST_TERMS if training[term].notna().any()]
    return [
        panels.add(partial(figures.losses, training, terms=(term,), title=term_title(term)), title=term_title(term))
        for term in logged
    ]


def _drawn(panels: Panels, table: pd.DataFrame, wanted: list[tuple[str, Any]]) -> list[Panel]:
    """(title, figure function) drawn from one table; nothing where the table is empty, which the page then says."""
    return [panels.add(partial(draw, table), title=title) for title, draw in wanted] if len(table) else []
