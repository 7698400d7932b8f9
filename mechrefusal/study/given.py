"""Checkpoints that others trained: folders, hub names and outputs of a Trainer, by arm and step."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.paired import BASE
from mechrefusal.training import WARM_UP

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
"""An arm is a part of names of files and pages."""
RESERVED = (BASE, WARM_UP)
"""Names of arms that a run has by itself."""
_TRAINERS = re.compile(r"checkpoint-(?P<step>\d+)")
"""Folders that transformers' Trainer writes below its output folder."""
_STEP = re.compile(r"(?:checkpoint|step)[-_]?(?P<step>\d+)(?!\d)", re.IGNORECASE)
"""How folders and revisions name the optimiser step: checkpoint-100, step-00050, step1000-tokens4B."""


@dataclass(frozen=True)
class Given:
    """A checkpoint to measure: its arm and step, and where it is (a folder, or a name that `models.fetch` knows)."""

    arm: str
    step: int
    source: str


def given(checkpoints: Mapping[str, Sequence[str]]) -> list[Given]:
    """Every checkpoint that a recipe's `checkpoints` name, arm by arm in the order of their steps.

    The output folder of a Trainer stands for all of its checkpoints. Steps are those that the names of folders or
    revisions tell (`checkpoint-100`, `owner/name@step1000`) where all of an arm do and they rise; else 1, 2, 3.
    """
    points = []
    for arm, sources in checkpoints.items():
        line = [each for source in sources for each in _expanded(source)]
        steps = [step for _, step in line]
        if any(step is None for step in steps) or any(a >= b for a, b in pairwise(steps)):  # type: ignore[operator]
            steps = list(range(1, len(line) + 1))
        points += [Given(arm, step, source) for (source, _), step in zip(line, steps, strict=True) if step is not None]
    return points


def require_arms(checkpoints: Mapping[str, Sequence[str]], *, taken: Sequence[str]) -> None:
    """Raise MechrefusalError where an arm of given checkpoints has a name that cannot be used, or no checkpoint.

    Args:
        taken: names that are another arm's.
    """
    for arm, sources in checkpoints.items():
        require_name(arm, "checkpoints arm")
        if arm in taken:
            raise MechrefusalError(f"checkpoints arm '{arm}' is the name of another arm of this run: give it another")
        if isinstance(sources, str) or not sources:
            raise MechrefusalError(f"checkpoints arm '{arm}' names no list of models: give one or more")
        if blank := [source for source in sources if not source.strip()]:
            raise MechrefusalError(f"checkpoints arm '{arm}' names '{blank[0]}': give a folder or a model's name")


def require_name(arm: str, what: str) -> None:
    """Raise MechrefusalError for the name of an arm that cannot be part of the name of a file."""
    if not _NAME.fullmatch(arm):
        raise MechrefusalError(f"{what} '{arm}' cannot be the name of a file: give letters, digits, '-', '_' and '.'")


def arm_of(source: str) -> str:
    """What a single model's arm is called: the last part of its name that names no step."""
    name, _, _ = source.partition("@") if not Path(source).expanduser().exists() else (source, "", "")
    parts = [part for part in Path(name).expanduser().resolve().parts if part.strip("/")]
    name = next((part for part in reversed(parts) if not _STEP.fullmatch(part)), "model")
    arm = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")
    return arm if _NAME.fullmatch(arm) and arm not in RESERVED else "model"


def _expanded(source: str) -> list[tuple[str, int | None]]:
    """The source with the step that its name tells, or all checkpoints of a Trainer's output folder."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        name, _, revision = source.rpartition("@")
        return [(source, _step(revision) if name else None)]
    written = sorted(
        (int(match["step"]), path)
        for path in folder.iterdir()
        if (match := _TRAINERS.fullmatch(path.name)) and path.is_dir()
    )
    if not written:
        return [(source, _step(folder.resolve().name))]
    line: list[tuple[str, int | None]] = [(str(path), step) for step, path in written]
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        last = written[-1][0]
        end = _global_step(folder) or last + 1
        if end > last:  # what was saved at the end of training is the last checkpoint again
            line.append((source, end))
    return line


def _step(name: str) -> int | None:
    match = _STEP.match(name)
    return int(match["step"]) if match else None


def _global_step(folder: Path) -> int | None:
    """Optimiser steps behind the model that a Trainer saved last, where it says so."""
    try:
        return int(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
