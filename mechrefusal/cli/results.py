"""Commands on what a run has measured: labels of people, and statistical power."""

from typing import Any

from mechrefusal.cli import printing
from mechrefusal.cli.options import Command, flag, option


def labels(options: Any) -> None:
    """Write a sheet of answers to label, or take the labels of one into the rates."""
    from mechrefusal import evaluation, study, tables
    from mechrefusal import report as pages

    sheet = study.label(options.run, n=options.n, seed=options.seed)
    if not sheet.n_labelled:
        print(f"{sheet.path}: {sheet.n} answers; fill in the column label with")
        for name, meaning in evaluation.LABEL_MEANINGS.items():
            print(f"  {name}: {meaning}")
        print("then give the same command again; answers without a label are left out")
        return
    print(f"{sheet.path}: {sheet.n_labelled} of {sheet.n} answers are labelled; the sheet stands and is not drawn anew")
    if sheet.n_elsewhere:
        print(f"{sheet.n_elsewhere} labels are of answers that this run does not have and count for nothing")
    printing.print_rich(pages.judges_and_people(sheet.agreement))
    printing.print_rates(sheet.rates, tables.read("suite_differences", sheet.path.parent / "measurements"))
    print(f"the report's pages still have the rates before: mechrefusal report {sheet.path.parent}")


def power(options: Any) -> None:
    """What a run could have told, or a recipe could tell, and how many prompts would tell what is asked for."""
    from mechrefusal import report as pages
    from mechrefusal import study

    sizes = {name: getattr(options, name) for name in ("layers", "rate", "head", "power")}
    printing.print_rich(pages.power_table(study.power(options.source, **sizes)))


def plan(options: Any) -> None:
    """What a recipe will take, before anything runs."""
    import sys

    from mechrefusal import report as pages
    from mechrefusal import study

    names = ("model", "devices", "device_memory", "flops")
    table = study.plan(options.recipe, **{name: getattr(options, name) for name in names})
    if options.json:
        print(table.to_json(orient="records", indent=2))
    else:
        printing.print_rich(pages.plan_table(table))
    if not table["fits"].all():
        first = table[~table["fits"]].iloc[0]
        print(f"warning: {first['stage']} {first['note']}", file=sys.stderr)


LABELS = Command(
    labels,
    "a sheet of answers for people to label; with labels: rates corrected by them",
    (
        option("run", str, "folder of a measured or evaluated run, or that an evaluation was written to"),
        option("--n", int, "answers to label, drawn at random", default=60),
        option("--seed", int, "of the draw", default=0),
    ),
)
PLAN = Command(
    plan,
    "what a recipe will take before anything runs: memory by stage, forward tokens, operations and time",
    (
        option("recipe", str, "packaged recipe or a YAML file"),
        option("--model", str, "folder or hub name whose config stands for the recipe's model", default=""),
        option("--devices", int, "GPUs that it is planned for; 0: this machine", default=0),
        option("--device_memory", str | None, "of each, such as 80GiB (default: what is free here)"),
        option("--flops", float | None, "peak operations a second of each (default: timed here, some seconds)"),
        flag("--json", "as JSON"),
    ),
)
POWER = Command(
    power,
    "what a run could have told, and how many prompts would tell more",
    (
        option("source", str, "folder of a run, folders of runs of several seeds, or a recipe", nargs="+"),
        option("--layers", float, "a move of the carrier that is to be told", default=5.0),
        option("--rate", float, "a difference of rates that is to be told", default=0.1),
        option("--head", float, "an effect of a head that is to be told, nats", default=0.5),
        option("--power", float, "the chance to tell it where it is there", default=0.9),
    ),
)
