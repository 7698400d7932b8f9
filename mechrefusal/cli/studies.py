"""Commands of whole studies: train, measure, report, and run for all of it."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mechrefusal.cli import printing
from mechrefusal.cli.options import (
    PLACED,
    SHOW_COMPLETIONS,
    WORKERS,
    Command,
    Parser,
    add_recipe,
    flag,
    option,
    placed_of,
    recipe_of,
    several,
    workers_of,
)
from mechrefusal.errors import MechrefusalError
from mechrefusal.files import one_at_a_time, require_writable


def train(options: Any) -> None:
    """Train the arms of a recipe and list the checkpoints."""
    from mechrefusal import study
    from mechrefusal.progress import IS_FIRST_PROCESS
    from mechrefusal.study.outside import start

    for checkpoint in study.train(start(recipe_of(options), options.out)):
        if IS_FIRST_PROCESS:
            print(f"{checkpoint.id}  {checkpoint.weights}  {checkpoint.path}")


def accelerate(options: Any) -> None:
    """Print where the config of accelerate for a way of training on several GPUs lies."""
    from mechrefusal.training.launches import accelerate_config

    print(accelerate_config(options.launch))


def measure(options: Any) -> None:
    """Measure every checkpoint of a run, or models as a run of their own, and print the summary."""
    from mechrefusal import report as pages
    from mechrefusal import study

    if not options.out:
        _refuse_options_of_models(options)
        run = study.open(options.models[0], **placed_of(options))
        study.measure(run, workers=workers_of(options))
        printing.summarise(run.folder)
        return
    run = study.measure(
        _models(options.models, options.arm),
        out=options.out,
        base=options.base,
        recipe=recipe_of(options),
        workers=workers_of(options),
    )
    written = pages.write(run.folder, show_completions=options.show_completions)
    printing.summarise(run.folder)
    print(f"report: {written}")


def report(options: Any) -> None:
    """Write the report of a run and name its path."""
    from mechrefusal import report as pages
    from mechrefusal import study

    run = study.open(options.run)
    require_writable(run.folder / "report", folder=True)
    written = pages.write(run.folder, show_completions=options.show_completions, single_file=options.single_file)
    print(f"report: {written}")


def run(options: Any) -> None:
    """The whole study: train, measure, evaluate on the recipe's suites, summary, report."""
    from mechrefusal import report as pages
    from mechrefusal import study, tables, workers
    from mechrefusal.progress import IS_FIRST_PROCESS
    from mechrefusal.study import table_rows
    from mechrefusal.study.outside import start

    who = workers_of(options)
    started = start(recipe_of(options), options.out)
    if who.executor == workers.LOCAL and who.n != 1:
        workers.prepare()
    with one_at_a_time(started.folder / "training") if IS_FIRST_PROCESS else nullcontext():  # other machines wait
        study.train(started)
    study.measure(started, workers=who)
    study.evaluate_run(started, workers=who)
    written = pages.write(started.folder, show_completions=options.show_completions)
    printing.summarise(started.folder)
    if started.recipe.evaluation.suites:
        stress = ("stress", "stress_transfer", "stress_control", "stress_differences")
        rates, differences, *stressed = (
            tables.read(name, started.measurements()) for name in ("rates", "suite_differences", *stress)
        )
        printing.print_rates(table_rows.of_benchmarks(rates), differences)
        printing.print_stress(*stressed)
    print(f"report: {written}")


def _models(models: Sequence[str], arms: Sequence[str]) -> list[str] | dict[str, list[str]]:
    """Models of the command line, by arm where arms are named."""
    if not arms:
        return list(models)
    from mechrefusal.study.outside import by_arm

    models_of: dict[str, list[str]] = {arm: list(of_arm) for arm, of_arm in (by_arm(models) if models else {}).items()}
    for spec in arms:
        name, separator, listed = spec.partition("=")
        if not separator or not listed.strip(","):
            raise MechrefusalError(f"--arm '{spec}' is not NAME=MODEL,MODEL: give a name and one model or more")
        if name in models_of:
            raise MechrefusalError(f"--arm '{name}' is there twice: give all of its models at once")
        models_of[name] = [model for model in listed.split(",") if model]
    return models_of


def _refuse_options_of_models(options: Any) -> None:
    """Without --out a run is measured, which has its own recipe."""
    if len(options.models) != 1 or not (Path(options.models[0]) / "recipe.yaml").is_file() or options.arm:
        named = ", ".join(options.models + options.arm) or "nothing"
        raise MechrefusalError(
            f"'{named}' is not a run (no recipe.yaml); models are measured in a run of their own: name its folder with "
            "--out"
        )
    if options.base or options.quick:
        raise MechrefusalError("--base and --quick are for models that are measured with --out: a run has its recipe")


def has_out(words: Sequence[str]) -> bool:
    """Whether `--out` stands on the line."""
    return any(word == "--out" or word.startswith("--out=") for word in words)


def _add_out_or_recipe(parser: Parser, words: Sequence[str]) -> None:
    """With `--out` models are measured, by a recipe; without, a run is, which has its own."""
    if has_out(words):
        add_recipe(parser, words)
    else:
        parser.add_argument("--out", type=str, default="", help="folder of the run that models are measured in")
        for each in PLACED[1:]:
            parser.add_argument(each.name, **each.settings)


TRAIN = Command(train, "train the arms of a recipe and keep their anchors", add_late=add_recipe)
ACCELERATE = Command(
    accelerate,
    "print the path of a config for `accelerate launch --config_file`: training on several GPUs",
    (option("launch", str, "ddp: every GPU has the whole model; fsdp2, zero3: GPUs share it out"),),
)
MEASURE = Command(
    measure,
    "measure every checkpoint of a run; or any models, as a run of their own with its report",
    (
        option(
            "models",
            str,
            "folder of a run; or, with --out, models in the order of their steps: folders, hub names (owner/name, "
            "owner/name@revision), adapters, or output folders of a Trainer",
            nargs="*",
        ),
        several("--arm", "NAME=MODEL,MODEL,...: models of an arm"),
        option("--base", str, "model that drift, crossing and transfers compare with", default=""),
        flag("--quick", "the recipe quick in place of measure: what a report tells first"),
        SHOW_COMPLETIONS,
        *WORKERS,
    ),
    add_late=_add_out_or_recipe,
)
REPORT = Command(
    report,
    "write the HTML report of a run",
    (
        option("run", str, "folder of a run"),
        SHOW_COMPLETIONS,
        flag("--single-file", "one file that can be mailed, report.html"),
    ),
)
RUN = Command(
    run, "train, measure, evaluate and report: the whole study", (SHOW_COMPLETIONS, *WORKERS), add_late=add_recipe
)
