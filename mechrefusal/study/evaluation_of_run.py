"""The evaluation that a run's recipe asks for."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judge_names import judge_of, require_judge
from mechrefusal.evaluation.suites import Suite, read_suite, require_distinct
from mechrefusal.study.caching import Made, Written
from mechrefusal.study.evaluating import ATTACKS, evaluate, stressed
from mechrefusal.study.named_interventions import NamedIntervention
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.run import Run

TABLES = ("verdicts", "rates", "suite_differences", "answer_losses", "judge_agreement", "leaks")
ATTACKED = ("stress", "stress_transfer", "stress_control", "stress_differences")
"""Tables of the two stages; other evaluations of the run add to them."""


def require_evaluation(recipe: Recipe) -> None:
    """Raise MechrefusalError where the recipe's evaluation cannot be done: suites, judges, interventions, attacks.

    Judges are not loaded: whether a model or a server is there shows when it is asked.
    """
    asked = recipe.evaluation
    if not asked.suites:
        return
    _suites(recipe)
    for spec in asked.judges:
        require_judge(spec)
    for spec in asked.intervene:
        NamedIntervention.parse(spec)
    if unknown := [method for method in asked.attack if method not in ATTACKS]:
        raise MechrefusalError(f"evaluation attack '{unknown[0]}' is unknown: expected one of {', '.join(ATTACKS)}")


def evaluate_run(run: Run) -> None:
    """Evaluate every checkpoint as the recipe says, once; without suites there is nothing to do.

    The tables are kept in `run.measurements()`: `rates`, `suite_differences`, `stress` and the others of
    `mechrefusal.study.evaluate` and `stressed`.

    Raises:
        MechrefusalError: what these two raise.
    """
    asked = run.recipe.evaluation
    if not asked.suites:
        return
    suites = _suites(run.recipe)
    judges = [judge_of(spec) for spec in asked.judges] or [run.recipe.measuring.refusal_judge()]
    told: dict[str, Any] = {
        "version": 1,
        "judges": [judge.name for judge in judges],
        "prompts": [
            [suite.name, suite.table["prompt_id"].tolist(), suite.table["prompt"].tolist()] for suite in suites
        ],
        "weights": {checkpoint.id: checkpoint.weights for checkpoint in run.checkpoints()},
        "settings": [asked.max_new_tokens, run.recipe.training.seed],
    }
    carriers = {name: found.stamp for name in told["weights"] if (found := run.finished("carriers", name))}
    given: dict[str, Any] = {
        "judges": judges,
        "max_new_tokens": asked.max_new_tokens,
        "seed": run.recipe.training.seed,
    }

    def answer() -> Made:
        with run.timed("evaluate"):
            evaluate(run, suites, intervene=asked.intervene, strict=asked.strict, **given)
        return _made(run, TABLES)

    def attack() -> Made:
        with run.timed("attack anew"):
            stressed(run, suites, asked.attack, n=asked.n_attacked, steps=asked.attack_steps, **given)
        return _made(run, ATTACKED)

    run.cached("evaluate", "", {**told, "intervene": [*asked.intervene], "carriers": carriers}, answer)
    if asked.attack:
        settings = [getattr(run.recipe.attack, method) for method in asked.attack]
        attacks = [[*asked.attack], asked.n_attacked, asked.attack_steps, [asdict(each) for each in settings]]
        run.cached("attack anew", "", {**told, "attacks": attacks}, attack)


def _made(run: Run, names: Sequence[str]) -> Made:
    return Made({run.measurements() / f"{name}.parquet": Written(shared=True) for name in names})


def _suites(recipe: Recipe) -> list[Suite]:
    suites = [read_suite(spec, n=recipe.evaluation.n) for spec in recipe.evaluation.suites]
    require_distinct(suites)
    return suites
