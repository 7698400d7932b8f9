"""Options of commands: each is declared where its command is, and those that several commands have stand here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jsonargparse
from jsonargparse.typing import NonNegativeInt

from mechrefusal.workers.settings import EXECUTORS, LOCAL, Workers

Parser = jsonargparse.ArgumentParser


@dataclass(frozen=True)
class Option:
    """An option (`--n`) or an argument without a flag, as `add_argument` takes it."""

    name: str
    settings: dict[str, Any]


def option(name: str, kind: Any, help: str, **settings: Any) -> Option:
    """An option of a type; one without `default` is None unless it is given."""
    return Option(name, {"type": kind, "help": help, **settings})


def several(name: str, help: str, **settings: Any) -> Option:
    """An option that may be given several times."""
    return option(name, str, f"{help}; may be given several times", action="append", **({"default": []} | settings))


def flag(name: str, help: str) -> Option:
    """An option without a value."""
    return Option(name, {"action": "store_true", "help": help})


def nothing(parser: Parser, words: Sequence[str]) -> None:
    """No late options."""


@dataclass(frozen=True)
class Command:
    """A command: what it does with its options.

    Fields:
        add_late: adds the options that need torch, which are there only where the command is given. It gets the words
            of the line.
    """

    run: Callable[[Any], None]
    help: str
    options: tuple[Option, ...] = ()
    add_late: Callable[[Parser, Sequence[str]], None] = nothing

    @property
    def name(self) -> str:
        """What it is called on the line."""
        return self.run.__name__

    def parser(self, words: Sequence[str]) -> Parser:
        """The parser of its options."""
        parser = Parser(exit_on_error=False)
        if self.name in words:
            self.add_late(parser, words)
        for each in self.options:
            parser.add_argument(each.name, **each.settings)
        return parser


SHOW_COMPLETIONS = flag(
    "--show_completions", "show answers to harmful prompts in full in the report (they are shortened otherwise)"
)
WORKERS = (
    option(
        "--executor",
        str,
        "where workers run: local (processes of this machine), slurm (jobs of an array), debug (this process, which "
        "stops at the first error)",
        choices=EXECUTORS,
        default=LOCAL,
    ),
    option(
        "--workers",
        NonNegativeInt,
        "workers at once, each of which takes checkpoints until none is left; 0: locally one a GPU, or as many as a "
        "CPU has threads and memory for; in a queue one a checkpoint",
        default=0,
    ),
    option(
        "--slurm",
        dict[str, Any] | None,
        'what a job asks for, such as \'{"partition": "gpu", "gpus_per_node": 1, "mem_gb": 64, "timeout_min": 240}\'',
    ),
    option("--retries", NonNegativeInt, "how often what failed, or lost its worker, is tried again", default=2),
)
CHAT = (
    option(
        "--chat_template",
        str | None,
        "in place of the model's own: a Jinja file, or a packaged one (zephyr, plain)",
    ),
    option(
        "--chat_template_kwargs",
        dict[str, Any] | None,
        "what the chat template gets beside the messages, such as '{\"enable_thinking\": false}'",
    ),
    option(
        "--max_thought_tokens",
        int | None,
        "tokens that a thought (<think> ... </think>) may take beside the answer's (default: 512)",
    ),
)


PLACED = (
    option("--dtype", Literal["float32", "bfloat16", "auto"] | None, "of weights and activations (default: float32)"),
    option("--device", str | None, "cpu, cuda, cuda:1 … (default: a GPU where there is one)"),
    option(
        "--device_map",
        Literal["auto", "balanced", "sequential"] | None,
        "one model over several GPUs: auto (as many as it needs), balanced, or sequential",
    ),
    option("--attention", str | None, "how attention is computed: sdpa, eager, flash_attention_2 …"),
)
"""Where models lie, in place of what a checkpoint's recipe says."""


def placed_of(options: Any) -> Any:
    """What the options say of where models lie."""
    stated = {name: getattr(options, name, None) for name in ("dtype", "device", "device_map", "attention")}
    return {name: value for name, value in stated.items() if value is not None}


def chat_of(options: Any) -> Any:
    """How the model is asked; None where the options say nothing."""
    from mechrefusal.prompts import ChatSettings

    settings = {
        "template": options.chat_template,
        "template_kwargs": options.chat_template_kwargs,
        "max_thought_tokens": options.max_thought_tokens,
    }
    stated = {name: value for name, value in settings.items() if value is not None}
    return ChatSettings.of(**stated) if stated else None


def add_recipe(parser: Parser, words: Sequence[str]) -> None:
    """The options of a study: its recipe, and every key of it."""
    from mechrefusal.study.recipe import Recipe, packaged

    parser.add_argument(
        "--recipe",
        action=jsonargparse.ActionConfigFile,
        help=f"YAML file or packaged recipe ({', '.join(packaged())}); options after it override it",
    )
    parser.add_argument("--out", type=str, required=True, help="folder of the run; an unfinished one is continued")
    parser.add_class_arguments(Recipe)


def workers_of(options: Any) -> Workers:
    """Who does the work; what is wrong with it is said before anything begins."""
    workers = Workers(options.executor, options.workers, options.slurm or {}, options.retries)
    workers.require()
    return workers


NO_KEYS = (
    "recipe", "out", "show_completions", "models", "base", "arm", "quick", "executor", "workers", "slurm", "retries",
)  # fmt: skip
"""Options of commands that are no keys of a recipe."""


def recipe_of(options: Any) -> Any:
    """The recipe that the options of a study make."""
    from mechrefusal import study

    return study.Recipe(**{name: value for name, value in vars(options).items() if name not in NO_KEYS})
