"""Where the command line begins: the words of a line, the command that they name, and how it ends."""

import os
import select
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jsonargparse

from mechrefusal import __version__
from mechrefusal.cli import arm_options, results, single_models, studies
from mechrefusal.cli.options import Command, Parser
from mechrefusal.cli.printing import print_any_character
from mechrefusal.errors import MechrefusalError, without_secrets
from mechrefusal.files import is_disk_trouble

DESCRIPTION = "Locate a chat model's refusal by layer and head, and follow it through adversarial fine-tuning."
COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        single_models.FETCH, studies.TRAIN, studies.ACCELERATE, single_models.ATTACK, studies.MEASURE,
        single_models.ABLATE, single_models.EVALUATE, results.LABELS, results.PLAN, results.POWER, studies.REPORT,
        studies.RUN,
    )
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, or 2 where the input is at fault (one line says what).

    130 where it was stopped, and 141 where nobody reads what it prints any more, as other programs have it.
    """
    _quiet_libraries()
    print_any_character()
    if arguments is None:
        sys.excepthook = _print_traceback
    try:
        words = _words(list(sys.argv[1:] if arguments is None else arguments))
        parser = _parser(words)
        if not words:
            parser.print_help()
            return 2
        options = parser.parse_args(words)
        command: str = options.subcommand
        COMMANDS[command].run(parser.instantiate(options)[command])
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


def _parser(words: Sequence[str]) -> Parser:
    parser = Parser(prog="mechrefusal", description=DESCRIPTION, exit_on_error=False, version=__version__)
    commands = parser.add_subcommands(required=True)
    for command in COMMANDS.values():
        commands.add_subcommand(command.name, command.parser(words), help=command.help)
    return parser


def _words(words: list[str]) -> list[str]:
    """The words of the line, with the paths of packaged recipes, and with the recipe that models are measured by."""
    words = arm_options.merged([_recipe_path(word, before) for before, word in pairwise(["", *words])])
    if not words or words[0] != "measure" or not studies.has_out(words):
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


def _recipe_path(word: str, before: str) -> str:
    """Turn `--recipe demo` into the path of the packaged file, which is what jsonargparse reads."""
    if before != "--recipe" and not word.startswith("--recipe="):
        return word
    from mechrefusal.study.loader import load_recipe
    from mechrefusal.study.recipe import recipe_path

    prefix, name = ("--recipe=", word.removeprefix("--recipe=")) if word.startswith("--recipe=") else ("", word)
    load_recipe(name)  # what is wrong in the file is named with the file; options on the line come later
    return f"{prefix}{recipe_path(name)}"


def _complain(what: str) -> None:
    print(f"mechrefusal: {without_secrets(' '.join(what.split()))}", file=sys.stderr)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What Python prints of an error that nobody expected, without secrets."""
    print(without_secrets("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")


def _nobody_reads() -> bool:
    """Whether it is standard output whose reader has gone (`| head -1`); nothing is written to it any more then."""
    try:
        sys.stdout.flush()
        if hasattr(select, "poll"):  # what is not buffered was lost when it was written: the system knows
            output = select.poll()
            output.register(sys.stdout.fileno(), 0)
            if any(event & select.POLLERR for _, event in output.poll(0)):
                raise BrokenPipeError
    except BrokenPipeError:
        # So that Python does not complain when it flushes at its end; see "SIGPIPE" in the docs of its module signal.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    except (OSError, ValueError):  # it is no file, or closed
        return False
    return False


def _quiet_libraries() -> None:
    # Set before the libraries are imported, which is when they read it. What the user set stays.
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "disabled",
    }.items():
        os.environ.setdefault(name, value)
