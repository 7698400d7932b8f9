"""Commands on what a run has measured: labels of people, and statistical power."""

from typing import Any

from mechrefusal.cli import printing
from mechrefusal.cli.options import Command, option


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


LABELS = Command(
    labels,
    "a sheet of answers for people to label; with labels: rates corrected by them",
    (
        option("run", str, "folder of a measured or evaluated run, or that an evaluation was written to"),
        option("--n", int, "answers to label, drawn at random", default=60),
        option("--seed", int, "of the draw", default=0),
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
