"""A stage of the protocol as a value: what it does, what it gives, and all that its result hangs on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechrefusal.attacks import AttackCase
from mechrefusal.prompts import PromptSet
from mechrefusal.study.caching import Inputs, fingerprint
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.selection import Asked

PROMPTS = ("direction", "validation", "harmful", "harmless", "overrefusal", "contrast", "utility", "pairs")
"""Fields of `Asked` that a measurement asks."""
CASES = "cases"
"""What the prompts of attack cases are called among these."""
LAST = "rates"
"""The last stage at a checkpoint, of whatever settings: what has it is measured."""
COLUMNS = ("id", "text", "category", "functional_category", "twin", "target")
"""What of a prompt any result hangs on."""


@dataclass(frozen=True)
class Stage:
    """One thing that is measured at a checkpoint, or over all of them, and kept on disk by itself.

    Fields:
        name: in the manifest and in the table `timings`.
        take: the work, on what is measured (a `Measurement`, a `Comparison`); it adds its tables to that.
        gives: the tables. One that is missing at the end is none of this result, and is removed.
        after: stages that it reads from disk. It is made again whenever they are made from other inputs.
        asks: prompts, of `PROMPTS` or `CASES`.
        settings: of the recipe, as "causal.n_nodes".
        optional: where it cannot be taken, the reason is kept in `timings`, and the run goes on.
        opens: whether it needs the model.
        version: counted up where the same inputs would give other numbers.
    """

    name: str
    take: Callable[[Any], None]
    gives: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    optional: bool = False
    opens: bool = True
    version: int = 1


def inputs(
    stages: Iterable[Stage], of: Any, asked: Mapping[str, str], recipe: Recipe, before: Mapping[str, Any] | None = None
) -> dict[str, Inputs]:
    """What each stage's result hangs on, by its name: all of it, that of the stages it comes after by their stamps.

    Args:
        of: what is measured, as the hash of a checkpoint's weights.
        asked: fingerprints of the prompts, as `prompts_asked` gives them.
        before: stamps of stages that come before these, by their names.
    """
    settings = {**flat(recipe.as_dict()), "measuring.judge": recipe.measuring.refusal_judge().name}
    stamps, found = dict(before or {}), {}
    for stage in stages:
        found[stage.name] = {
            "version": stage.version,
            "of": of,
            "settings": {name: settings[name] for name in stage.settings},
            "prompts": {name: asked[name] for name in stage.asks},
            "after": {name: stamps[name] for name in stage.after},
        }
        stamps[stage.name] = fingerprint(found[stage.name])
    return found


def prompts_asked(asked: Asked, cases: Sequence[AttackCase]) -> dict[str, str]:
    """A fingerprint of the prompts of each name that a stage may ask."""
    found = {name: fingerprint([_told(side) for side in _sides(getattr(asked, name))]) for name in PROMPTS}
    return {**found, CASES: fingerprint([[case.id, case.method, case.prompt] for case in cases])}


def _sides(chosen: Any) -> list[PromptSet]:
    if chosen is None:
        return []
    return [chosen] if isinstance(chosen, PromptSet) else [chosen.harmful, chosen.harmless]


def _told(prompts: PromptSet) -> list[list[str]]:
    return [prompts.table[name].astype(str).tolist() for name in COLUMNS if name in prompts.table]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys; the inner ones stand under theirs too."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found[f"{prefix}{name}"] = value
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
    return found
