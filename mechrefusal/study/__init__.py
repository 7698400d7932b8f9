"""The whole protocol over every checkpoint: recipes, runs, stages and tables."""

from typing import TYPE_CHECKING

from mechrefusal.lazy import on_first_use

if TYPE_CHECKING:
    from mechrefusal.study.ablating import Ablated, ablated
    from mechrefusal.study.evaluating import Evaluated, evaluate
    from mechrefusal.study.evaluation_of_run import evaluate_run
    from mechrefusal.study.forecasts import plan
    from mechrefusal.study.labelling import Labelled, label
    from mechrefusal.study.loader import load_recipe
    from mechrefusal.study.outside import measure, recipe_of
    from mechrefusal.study.pipeline import cases
    from mechrefusal.study.planning import power
    from mechrefusal.study.recipe import Recipe
    from mechrefusal.study.run import Run, open
    from mechrefusal.study.selection import StudyPrompts, behaviours, choose_prompts, read_prompts
    from mechrefusal.study.starting import check
    from mechrefusal.study.stress import stressed
    from mechrefusal.study.training_of_run import train
    from mechrefusal.workers import Workers

__all__ = [
    "Ablated",
    "Evaluated",
    "Labelled",
    "Recipe",
    "Run",
    "StudyPrompts",
    "Workers",
    "ablated",
    "behaviours",
    "cases",
    "check",
    "choose_prompts",
    "evaluate",
    "evaluate_run",
    "label",
    "load_recipe",
    "measure",
    "open",
    "plan",
    "power",
    "read_prompts",
    "recipe_of",
    "stressed",
    "train",
]

# Not all of it needs torch, which takes seconds to load.
__getattr__ = on_first_use(
    __name__,
    {
        "Ablated": "ablating",
        "ablated": "ablating",
        "read_prompts": "selection",
        "Evaluated": "evaluating",
        "evaluate": "evaluating",
        "stressed": "stress",
        "evaluate_run": "evaluation_of_run",
        "Labelled": "labelling",
        "label": "labelling",
        "StudyPrompts": "selection",
        "choose_prompts": "selection",
        "behaviours": "selection",
        "load_recipe": "loader",
        "measure": "outside",
        "recipe_of": "outside",
        "Workers": "outside",
        "cases": "pipeline",
        "check": "starting",
        "train": "training_of_run",
        "power": "planning",
        "plan": "forecasts",
        "Recipe": "recipe",
        "Run": "run",
        "open": "run",
    },
)
