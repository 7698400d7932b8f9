"""The arms by name: those of the package, and those that a notebook or script adds."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

from mechrefusal.errors import MechrefusalError, what_was_meant
from mechrefusal.training.arm import Arm

ARMS = ("sft", "r2d2", "dpo", "kto", "rlhf", "refat", "circuit_breakers", "lat")
"""The arms of the package: each is file `arms/NAME.py`, whose constant in capitals it is."""

_ADDED: dict[str, Arm] = {}


def names() -> tuple[str, ...]:
    """The names of all arms."""
    return (*ARMS, *_ADDED)


def arm_named(name: str) -> Arm:
    """The arm of a name.

    Raises:
        MechrefusalError: there is none.
    """
    if name in _ADDED:
        return _ADDED[name]
    if name in ARMS:
        return getattr(import_module(f"mechrefusal.training.arms.{name}"), name.upper())
    raise MechrefusalError(f"unknown arm '{name}': expected one of {', '.join(names())}")


def register(arm: Arm) -> Arm:
    """Make an arm known to recipes of this process, until it ends; one of the same name takes its place.

    Raises:
        MechrefusalError: a name of the package's own arms, or settings that are no dataclass.
    """
    if arm.name in ARMS:
        raise MechrefusalError(f"arm '{arm.name}' is one of the package's: give yours another name")
    if not is_dataclass(arm.settings):
        raise MechrefusalError(f"the settings of arm '{arm.name}' are no dataclass: give one, or leave them out")
    _ADDED[arm.name] = arm
    return arm


def settings_from(kind: type, values: Mapping[str, Any], *, what: str) -> Any:
    """Settings of a dataclass from plain values, as YAML holds them; what is not given is as published.

    Args:
        what: arm that they are of, for errors.

    Raises:
        MechrefusalError: an unknown setting, or a value of the wrong type.
    """
    import jsonargparse

    known = [one.name for one in fields(kind)]
    for key in values:
        if key not in known:
            raise MechrefusalError(f"arm '{what}' has no setting '{key}'; {what_was_meant(key, known)}")
    if not values:
        return kind()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "of")
    try:
        return parser.instantiate(parser.parse_object({"of": dict(values)})).of
    except jsonargparse.ArgumentError as error:
        raise MechrefusalError(f"arm '{what}': {' '.join(str(error).replace('of.', '').split())}") from error
