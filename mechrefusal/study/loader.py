"""From YAML and dictionaries to a `Recipe`: jsonargparse checks types and refuses unknown keys."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonargparse

from mechrefusal.errors import MechrefusalError, what_was_meant
from mechrefusal.study.recipe import Recipe, recipe_path


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe: a YAML file, or a packaged one by name ("demo", "tiny").

    Raises:
        MechrefusalError: unknown recipe, unreadable YAML, an unknown key, or a value of the wrong type.
    """
    import yaml

    path = recipe_path(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MechrefusalError(f"recipe '{path}' is not readable YAML ({' '.join(str(error).split())})") from error
    return recipe_from_dict(content, where=str(path))


def recipe_from_dict(content: Any, *, where: str = "recipe") -> Recipe:
    """A recipe from nested dictionaries; `where` names their origin in errors."""
    if not isinstance(content, dict):
        raise MechrefusalError(
            f"{where} holds no recipe; it must be a mapping with keys such as 'model' and 'training'"
        )
    _refuse_unknown(content, {**Recipe().as_dict(), "arms": {}}, where)  # arms have any names
    try:
        return _parsed(json.dumps(content)) if _is_json(content) else _parse(content)
    except jsonargparse.ArgumentError as error:
        raise MechrefusalError(f"{where}: {one_line(error)}") from error


@lru_cache(maxsize=64)  # a run is opened again and again, and its recipe is a value
def _parsed(content: str) -> Recipe:
    return _parse(json.loads(content))


def _parse(content: dict[str, Any]) -> Recipe:
    parser = recipe_parser()
    return parser.instantiate(parser.parse_object({"recipe": content})).recipe


def _is_json(content: dict[str, Any]) -> bool:
    """Whether JSON gives back what it is given: YAML knows dates, sets and keys that are no text."""
    try:
        return json.loads(json.dumps(content)) == content
    except (TypeError, ValueError):
        return False


def recipe_parser() -> jsonargparse.ArgumentParser:
    """A parser that knows the recipe under the key `recipe`, and raises instead of exiting."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, "recipe")
    return parser


def _refuse_unknown(content: dict[str, Any], known: dict[str, Any], where: str, prefix: str = "") -> None:
    """jsonargparse lets unknown keys with empty values pass, and does not say what was meant."""
    for key, value in content.items():
        if key not in known:
            meant = what_was_meant(key, known, prefix)
            raise MechrefusalError(f"{where}: unknown key '{prefix}{key}'; {meant}")
        if isinstance(value, dict) and isinstance(known[key], dict) and known[key]:  # an empty one takes any names
            _refuse_unknown(value, known[key], where, f"{prefix}{key}.")


def one_line(error: Exception) -> str:
    """The message of a parser's error on one line."""
    return " ".join(str(error).replace("recipe.", "").split())
