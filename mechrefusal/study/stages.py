"""A stage of the protocol as a value: what it does, what it gives, and all that its result hangs on."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pandas as pd

from mechrefusal.attacks import AttackCase
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PromptSet
from mechrefusal.study.caching import Content, Inputs, Made, fingerprint
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.selection import StudyPrompts

PROMPTS = (
    "direction", "validation", "harmful", "harmless", "overrefusal", "contrast", "utility", "pairs", "behaviours",
    "instructions",
)  # fmt: skip
"""Fields of `StudyPrompts` that a measurement asks, or trains on in memory."""
CASES = "cases"
"""What the prompts of attack cases are called among these."""
LAST = "rates"
"""The last stage at a checkpoint, of whatever settings: what has it is measured."""
COLUMNS = ("id", "text", "category", "functional_category", "twin", "target")
"""What of a prompt any result hangs on."""

Rows: TypeAlias = pd.DataFrame | list[dict]
"""A table before its schema is put on it."""
Results: TypeAlias = Iterator[tuple[str | Path, Any]]
"""What a stage gives, in the order in which it is made: tables by their names, and other files by their paths."""


class Subject(Protocol):
    """What stages are taken of: a checkpoint (`Measurement`), or all of them (`Comparison`)."""

    inputs: Inputs

    def path(self, name: str) -> Path:
        """File of a table."""

    def table(self, name: str, rows: Any) -> pd.DataFrame:
        """Rows as the table of that name."""


@dataclass(frozen=True)
class Stage:
    """One thing that is measured at a checkpoint, or over all of them, and kept on disk by itself.

    Fields:
        name: in the manifest and in the table `timings`.
        take: the work, on what is measured (a `Measurement`, a `Comparison`); a function of a module, so that a stage
            can be handed to another process.
        gives: the tables. One that is missing at the end is none of this result, and is removed.
        after: stages that it reads from disk. It is made again whenever they are made from other inputs.
        asks: prompts, of `PROMPTS` or `CASES`.
        settings: of the recipe, as "causal.n_nodes", or a group of them, as "durability.removal".
        optional: where it cannot be taken, the reason is kept in `timings`, and the run goes on.
        opens: whether it needs the model.
        version: counted up where the same inputs would give other numbers.
    """

    name: str
    take: Callable[[Any], Results]
    gives: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    optional: bool = False
    opens: bool = True
    version: int = 1

    def make(self, subject: Subject, inputs: Inputs) -> Made:
        """Do the work. An optional stage that cannot be taken gives what it had by then, and the reason as its note."""
        files: dict[Path, Content] = {subject.path(name): None for name in self.gives}
        subject.inputs, note = inputs, ""
        try:
            for name, result in self.take(subject):
                if isinstance(name, str):
                    files[subject.path(name)] = subject.table(name, result)
                else:
                    files[name] = result
        except MechrefusalError as error:
            if not self.optional:
                raise
            note = str(error)
        return Made(files, note)


def inputs(
    stages: Iterable[Stage],
    of: Any,
    stamps_of_prompts: Mapping[str, str],
    recipe: Recipe,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Inputs]:
    """What each stage's result hangs on, by its name: all of it, that of the stages it comes after by their stamps.

    Args:
        of: what is measured, as the hash of a checkpoint's weights.
        stamps_of_prompts: fingerprints of the prompts, as `prompts_asked` gives them.
        before: stamps of stages that come before these, by their names.
    """
    judge, stamps, by_name = recipe.measuring.refusal_judge().name, dict(before or {}), {}
    for stage in stages:
        settings = {name: attrgetter(name)(recipe) for name in stage.settings}
        by_name[stage.name] = {
            "version": stage.version,
            "of": of,
            "settings": {
                name: judge if name == "measuring.judge" else _plain(value) for name, value in settings.items()
            },
            "prompts": {name: stamps_of_prompts[name] for name in stage.asks},
            "after": {name: stamps[name] for name in stage.after},
        }
        stamps[stage.name] = fingerprint(by_name[stage.name])
    return by_name


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def prompts_asked(prompts: StudyPrompts, cases: Sequence[AttackCase]) -> dict[str, str]:
    """A fingerprint of the prompts of each name that a stage may ask."""
    stamps = {name: fingerprint([_contents(side) for side in _sides(getattr(prompts, name))]) for name in PROMPTS}
    return {**stamps, CASES: fingerprint([[case.id, case.method, case.prompt] for case in cases])}


def _sides(prompts: Any) -> list[PromptSet]:
    if prompts is None:
        return []
    return [prompts] if isinstance(prompts, PromptSet) else [prompts.harmful, prompts.harmless]


def _contents(prompts: PromptSet) -> list[list[str]]:
    return [prompts.table[name].astype(str).tolist() for name in COLUMNS if name in prompts.table]
