"""Measuring models that this project did not train: a run of them, without a training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import require_writable
from mechrefusal.study import pipeline
from mechrefusal.study.evaluation_of_run import evaluate_run
from mechrefusal.study.given import arm_of
from mechrefusal.study.loader import load_recipe
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.run import Run
from mechrefusal.study.starting import check
from mechrefusal.workers import Workers

Models = str | Path | Sequence[str | Path] | Mapping[str, str | Path | Sequence[str | Path]]
"""A folder or name; several, in their order; or by the name of their arm."""

PRESETS = ("measure", "quick")
"""Packaged recipes that train nothing: every measurement, and what a report tells first."""
SEVERAL = "models"
"""What the arm of several models is called that have no name in common."""


def measure(
    source: Run | Models,
    *,
    out: Path | str | None = None,
    base: Path | str = "",
    recipe: Recipe | Path | str = PRESETS[0],
    workers: Workers | int = 1,
) -> Run:
    """Measure every checkpoint of a run that has not been; or models, as a run of their own, where they lie.

    What is measured already is not measured again: the same call goes on with what was stopped.

    Args:
        source: a run, or its folder; or models: a local folder, a packaged or hub name (`owner/name`,
            `owner/name@revision`), an adapter's folder, or the output folder of a Trainer, which stands for all of its
            checkpoints; several of them; or such by the name of their arm.
        out: folder of the run that models are measured in.
        base: model that drift, transfers and patching between checkpoints compare with; empty: the checkpoints are
            compared with each other alone.
        recipe: how models are measured, of which `model`, `arms` and `checkpoints` are not taken: a recipe, a YAML
            file, or a packaged one ("quick": a minute or two a checkpoint of the default model).
        workers: see `pipeline.measure`.

    Returns:
        The run, with its tables; `mechrefusal.report.write(run.folder)` writes the report.

    Raises:
        MechrefusalError: no `out` for models, `out` or `base` for a run, or what `pipeline.measure` raises.
    """
    if isinstance(source, (str, Path)) and out is None and (Path(source).expanduser() / "recipe.yaml").is_file():
        source = Run.open(Path(source).expanduser())
    if isinstance(source, Run):
        if out is not None or base:
            raise MechrefusalError(f"'{source.folder}' is a run, which has both: give neither out nor base")
        pipeline.measure(source, workers=workers)
        return source
    if out is None:
        raise MechrefusalError(f"models are measured in a run of their own ({_names(source)}): give its folder as out")
    run = start(recipe_of(source, base=base, recipe=recipe), out)
    pipeline.measure(run, workers=workers)
    evaluate_run(run, workers=workers)
    return run


def recipe_of(models: Models, *, base: Path | str = "", recipe: Recipe | Path | str = PRESETS[0]) -> Recipe:
    """`recipe` for these models: nothing is trained, and what there is is measured."""
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    return replace(chosen, model=str(base), arms=(), checkpoints=by_arm(models))


def by_arm(models: Models) -> dict[str, tuple[str, ...]]:
    """Models by the name of their arm: the given one, or what their own names have in common."""
    if isinstance(models, Mapping):
        return {
            str(arm): (str(some),) if isinstance(some, (str, Path)) else tuple(map(str, some))
            for arm, some in models.items()
        }
    sources = (str(models),) if isinstance(models, (str, Path)) else tuple(map(str, models))
    if not sources:
        raise MechrefusalError("no model to measure: give a folder or a name")
    names = {arm_of(source) for source in sources}
    return {names.pop() if len(names) == 1 else SEVERAL: sources}


def start(recipe: Recipe, out: Path | str) -> Run:
    """The run of a recipe, made or gone on with; what is wrong with the recipe is said before anything is written."""
    folder = Path(out).expanduser()
    require_writable(folder, folder / "measurements", folder / "report", folder=True)
    if not (folder / "recipe.yaml").is_file():
        check(recipe)
    return Run.create(folder, recipe)


def _names(models: Models) -> str:
    return ", ".join(source for sources in by_arm(models).values() for source in sources)[:200]
