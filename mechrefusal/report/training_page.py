"""Whether the adversarial training worked and what it cost; and what each arm of the run is."""

import json
from typing import Any

import pandas as pd
import yaml

from mechrefusal.report import wording
from mechrefusal.report.figures.training import term_title
from mechrefusal.report.order import BASE, WARM_UP, arm_order
from mechrefusal.report.panels import Panel
from mechrefusal.report.reading import MeasuredRun
from mechrefusal.report.sections import Page

CASES_A_GROUP = 60
_TERMS = ("utility", "away", "toward")
_MEANS = ("loss_first", "loss", "steps", "forward_tokens", "seconds")
_SHORT = ("case", "behaviour", "prompt")


class TrainingPage(Page):
    """What training logged. Its attributes are named by `pages/training.yaml`."""

    name = "training"

    @property
    def arms(self) -> list[str]:
        """Arms that were trained."""
        return sorted(set(self.run.across["training"]["arm"]), key=arm_order)

    def logged_terms(self) -> list[Panel]:
        """The loss terms that table `training` has, where there is no table `terms`."""
        training = self.run.across["training"]
        known = [] if len(self.run.across["terms"]) else [name for name in _TERMS if training[name].notna().any()]
        titles = {term: term_title(term) for term in known}
        specs = [{"with": {"terms": (term,), "title": title}, "title": title} for term, title in titles.items()]
        return [panel for spec in specs for panel in self.draw({"draw": "losses", "rows": training, **spec})]

    @property
    def has_no_terms(self) -> str:
        """Said where only the three terms of adversarial training are known."""
        known = len(self.run.across["terms"]) or not len(self.run.across["training"])
        return (
            ""
            if known
            else "The terms of the loss were not recorded one by one: only those of adversarial training are drawn."
        )

    @property
    def case_groups(self) -> pd.DataFrame:
        """Attack cases by source and method."""
        return case_groups(self.run.across["cases"])

    @property
    def cases(self) -> list[tuple[str, str, int, list[dict[str, Any]]]]:
        """(source, method, how many, the first of them, shortened) of each group of attack cases."""
        groups = self.run.across["cases"].groupby(["source", "method"], sort=False)
        return [
            (
                wording.readable(wording.shortened(source, 24)) or wording.MISSING,
                wording.shortened(method) or wording.MISSING,
                len(rows),
                [
                    {str(name): wording.shortened(value) if name in _SHORT else value for name, value in row.items()}
                    for row in rows.head(CASES_A_GROUP).to_dict("records")
                ],
            )
            for (source, method), rows in groups
        ]


class MethodsPage(TrainingPage):
    """What each arm is, its settings and costs, and what every figure of the report shows."""

    name = "methods"

    def __init__(self, run: MeasuredRun, *, drawn: list[Panel]) -> None:
        super().__init__(run)
        known = {panel.figure: panel for panel in drawn if panel.definition}
        self.glossary = [known[name] for name in sorted(known)]

    @property
    def described(self) -> list[tuple[str, list[str]]]:
        """(arm, what it is in sentences), from the recipe, the manifest and what was logged."""
        recipe, manifest = _mapping(yaml.safe_load, self.run.recipe), _mapping(json.loads, self.run.manifest)
        training = recipe.get("training") if isinstance(recipe.get("training"), dict) else {}
        arms = sorted({checkpoint.arm for checkpoint in self.run.checkpoints}, key=arm_order)
        return [(arm, _arm(self.run, arm, recipe, training or {}, manifest)) for arm in arms]


def case_groups(table: pd.DataFrame) -> pd.DataFrame:
    """Attack cases by (source, method): how many, means over them, and how many candidates were dropped in all."""
    grouped = table.groupby(["source", "method"], sort=False)
    summed = grouped.agg(n=("case", "size"), **{name: (name, "mean") for name in _MEANS}, dropped=("dropped", "sum"))
    return summed.reset_index()


def _arm(run: MeasuredRun, arm: str, recipe: dict, training: dict, manifest: dict) -> list[str]:
    steps = [checkpoint.step for checkpoint in run.checkpoints if checkpoint.arm == arm]
    logged = run.across["training"]
    n_logged = int((logged["arm"] == arm).sum())
    source = run.across["checkpoints"]
    given = [wording.plain(name) for name in source.loc[source["arm"] == arm, "source"].unique() if name]
    said = [f"Measured at step {wording.listed([str(step) for step in steps])}."]
    if arm == BASE:
        model = f" ({wording.plain(recipe['model'])})" if recipe.get("model") else ""
        said.append(f"The model that training starts from{model}.")
    elif arm == WARM_UP:
        said.append(
            "Supervised training that every arm shares: harmful requests are refused, others answered as before."
        )
    elif not given and n_logged:
        start = "the end of the warm-up" if run.warm_up is not None else "the base model"
        said.append(f"Trained from {start}, {n_logged} steps logged.")
        terms = run.across["terms"]
        own = terms[terms["arm"] == arm].drop_duplicates("term")
        own = own if own["weight"].notna().any() else own[:0]  # a loss that is no sum of terms
        parts = [f"{wording.metric_name(row.term)} × {wording.number(row.weight)}" for row in own.itertuples()]
        said += [f"Its loss: {wording.shortened(' + '.join(parts), 300)}."] if parts else []
    said += [f"Given from outside: {wording.listed(given)}."] if given else []
    settings = training.get(arm.replace("-", "_"))
    said += (
        [f"Settings of its own: {wording.shortened(_settings(settings), 300)}."] if isinstance(settings, dict) else []
    )
    versions = manifest.get("versions")
    if arm == BASE and isinstance(versions, dict):
        said.append(f"Made with {wording.shortened(_settings(versions), 300)}.")
    return said


def _settings(settings: dict) -> str:
    parts = [
        f"{name} ({_settings(value)})" if isinstance(value, dict) else f"{name} {value}"
        for name, value in settings.items()
    ]
    return wording.plain(", ".join(parts)).replace("_", " ")


def _mapping(read: Any, text: str | None) -> dict:
    """What a recipe or a manifest says; nothing where it cannot be read."""
    try:
        found = read(text or "{}")
    except (ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
