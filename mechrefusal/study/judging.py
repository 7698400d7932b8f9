"""Which judge says whether answers refuse, where none is named."""

from mechrefusal.evaluation.judges import RULES, Judge
from mechrefusal.study.run import Run


def refusal_judge(run: Run | None) -> Judge:
    """The judge that the recipe of a run measures by; without a run the built-in rules, which read English."""
    return RULES if run is None else run.recipe.measuring.refusal_judge()
