"""Options of single arms, `--arms.r2d2.cases_per_step 3`: merged into the arms of the recipe before they are parsed.

jsonargparse would put the last of several such options in the place of all that the recipe says of the arm.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mechrefusal.errors import MechrefusalError

ARMS, PREFIX = "--arms", "--arms."


def merged(words: Sequence[str]) -> list[str]:
    """The words of a line with all options of arms in one, `--arms`.

    Raises:
        MechrefusalError: an option without a value, or one that is no YAML.
    """
    changes, rest = _taken(words)
    if not changes:
        return list(words)
    arms, rest = _whole(rest)
    return [*rest, ARMS, json.dumps(_over(arms, _nested(changes)))]


def _taken(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The options of single arms by their dotted keys, and the other words."""
    changes: dict[str, Any] = {}
    rest: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if not word.startswith(PREFIX):
            rest.append(word)
            continue
        key, separator, value = word.removeprefix(PREFIX).partition("=")
        if not separator and (value := next(waiting, "--")).startswith("--"):
            raise MechrefusalError(f"{PREFIX}{key} has no value: give one, such as {PREFIX}r2d2.cases_per_step 3")
        changes[key] = _yaml(value, f"{PREFIX}{key}")
    return changes, rest


def _whole(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The arms that the line or its recipe names, and the words without an option that names them."""
    from mechrefusal.study.loader import load_recipe
    from mechrefusal.study.recipe import Recipe

    arms: Any = Recipe().arms
    rest: list[str] = []
    for before, word in pairwise(["", *words]):
        name, separator, value = word.partition("=")
        if name == "--recipe" and separator:
            arms = load_recipe(value).arms
        elif before == "--recipe":
            arms = load_recipe(word).arms
        if name == ARMS and separator:
            arms = _yaml(value, ARMS)
        elif before == ARMS:
            arms = _yaml(word, ARMS)
        elif name != ARMS:
            rest.append(word)
    return {name: {} for name in arms} if isinstance(arms, list) else dict(arms), rest


def _over(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with `changes` in them, however deep."""
    whole = dict(values)
    for key, change in changes.items():
        inner = whole.get(key)
        whole[key] = _over(inner, change) if isinstance(inner, dict) and isinstance(change, dict) else change
    return whole


def _yaml(text: str, option: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise MechrefusalError(f"{option} is '{text}', which is no YAML: {' '.join(str(error).split())}") from error


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with dotted keys opened; a later one wins.

    `--arms.r2d2.gcg.width 16` comes as {"gcg.width": 16}.
    """
    made: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = str(key).split(".")
        place = made
        for part in path:
            inner = place.get(part)
            place[part] = inner = dict(inner) if isinstance(inner, Mapping) else {}
            place = inner
        place[last] = value
    return made
