"""The evaluation that a run's recipe asks for."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judge_names import judge_of, require_judge
from mechrefusal.evaluation.suites import Suite, read_suite, require_distinct
from mechrefusal.models import Placed
from mechrefusal.study.caching import Inputs, Made, Written
from mechrefusal.study.evaluating import evaluate
from mechrefusal.study.interventions import NamedIntervention
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.run import Run
from mechrefusal.study.stress import ATTACKS, STRESS_TABLES, stressed
from mechrefusal.workers import Workers

TABLES = {
    "evaluate": ("verdicts", "rates", "suite_differences", "answer_losses", "judge_agreement", "leaks"),
    "attack anew": STRESS_TABLES,
}
"""Tables of the two stages; other evaluations of the run add to them."""


def require_evaluation(recipe: Recipe) -> None:
    """Raise MechrefusalError where the recipe's evaluation cannot be done: suites, judges, interventions, attacks.

    Judges are not loaded: whether a model or a server is there shows when it is asked.
    """
    settings = recipe.evaluation
    if not settings.suites:
        return
    _suites(recipe)
    for spec in settings.judges:
        require_judge(spec)
    for spec in settings.intervene:
        NamedIntervention.parse(spec)
    if unknown := [method for method in settings.attack if method not in ATTACKS]:
        raise MechrefusalError(f"evaluation attack '{unknown[0]}' is unknown: expected one of {', '.join(ATTACKS)}")


def evaluate_run(run: Run, *, workers: Workers | int = 1) -> None:
    """Evaluate every checkpoint as the recipe says, once; without suites there is nothing to do.

    The tables are kept in `run.measurements()`: `rates`, `suite_differences`, `stress` and the others of
    `mechrefusal.study.evaluate` and `stressed`. `workers`: who answers and attacks, as in `pipeline.measure`.

    Raises:
        MechrefusalError: what these two raise.
    """
    settings, seed = run.recipe.evaluation, run.recipe.training.seed
    if not settings.suites:
        return
    suites = _suites(run.recipe)
    placed = cast(Placed, vars(run.recipe.placement))
    judges = [judge_of(spec, placed) for spec in settings.judges] or [run.recipe.measuring.refusal_judge()]
    weights = {checkpoint.id: checkpoint.weights for checkpoint in run.checkpoints()}
    inputs = {
        "version": 1,
        "judges": [judge.name for judge in judges],
        "prompts": [
            [suite.name, *(suite.table[name].tolist() for name in ("prompt_id", "prompt"))] for suite in suites
        ],
        "weights": weights,
        "settings": [settings.max_new_tokens, seed],
    }
    carriers = {name: unit.stamp for name in weights if (unit := run.finished("carriers", name))}
    how: dict[str, Any] = {
        "judges": judges,
        "max_new_tokens": settings.max_new_tokens,
        "seed": seed,
        "workers": workers,
    }

    def evaluated() -> None:
        evaluate(run, suites, intervene=settings.intervene, strict=settings.strict, **how)

    def attacked() -> None:
        stressed(run, suites, settings.attack, n=settings.n_attacked, steps=settings.attack_steps, **how)

    _once(run, "evaluate", {**inputs, "intervene": [*settings.intervene], "carriers": carriers}, evaluated)
    if settings.attack:
        methods = [asdict(getattr(run.recipe.attack, method)) for method in settings.attack]
        attacks = [[*settings.attack], settings.n_attacked, settings.attack_steps, methods]
        _once(run, "attack anew", {**inputs, "attacks": attacks}, attacked)


def _once(run: Run, stage: str, inputs: Inputs, work: Callable[[], None]) -> None:
    def make() -> Made:
        with run.timed(stage):
            work()
        return Made({run.measurements() / f"{name}.parquet": Written(shared=True) for name in TABLES[stage]})

    run.cached(stage, "", inputs, make)


def _suites(recipe: Recipe) -> list[Suite]:
    suites = [read_suite(spec, n=recipe.evaluation.n) for spec in recipe.evaluation.suites]
    require_distinct(suites)
    return suites
