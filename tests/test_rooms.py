"""What `mr.<TAB>` shows, and that no function or class hides a module of its name."""

import importlib
import pkgutil
import types

import pytest

import mechrefusal

SKIPPED = ("mechrefusal.__main__",)
"""It runs the command line when it is imported."""


def test_the_rooms_are_listed():
    rooms = {"attacks", "causal", "durability", "evaluation", "forward", "geometry", "models", "report", "study"}
    assert rooms <= set(dir(mechrefusal))
    assert isinstance(mechrefusal.forward, types.ModuleType)


@pytest.mark.slow
def test_no_name_hides_a_module():
    hidden = []
    for found in pkgutil.walk_packages(mechrefusal.__path__, "mechrefusal."):
        if found.name in SKIPPED:
            continue
        importlib.import_module(found.name)
        parent, _, name = found.name.rpartition(".")
        if not isinstance(getattr(importlib.import_module(parent), name), types.ModuleType):
            hidden.append(found.name)
    assert not hidden, f"something of their name stands in place of {hidden}"
