"""A run: the folder of one study. It says what was asked (recipe.yaml) and what exists (manifest.json)."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import yaml

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError, without_secrets_of_addresses
from mechrefusal.evaluation.paired import BASE
from mechrefusal.files import one_at_a_time, whole_file
from mechrefusal.models import Checkpoint, Placed, fetch
from mechrefusal.progress import say
from mechrefusal.study import caching
from mechrefusal.study.caching import Inputs, Made, Unit, fingerprint
from mechrefusal.study.loader import recipe_from_dict
from mechrefusal.study.made_with import machine, versions
from mechrefusal.study.recipe import Recipe, differences, leaves
from mechrefusal.training import WARM_UP


@dataclass(frozen=True)
class Run:
    """The folder of a study and its recipe. Everything else is read from disk when asked for."""

    folder: Path
    recipe: Recipe

    @classmethod
    def create(cls, folder: Path | str, recipe: Recipe) -> "Run":
        """Start a run, or continue the one in `folder` if it has the same recipe.

        Raises:
            MechrefusalError: the folder belongs to another recipe, or holds something else; a value of the recipe holds
                a password or a key, which would stand in the run's files.
        """
        folder, recipe = Path(folder).expanduser(), recipe.with_absolute_paths()
        if not (folder / "recipe.yaml").is_file():
            _require_no_secret(recipe.as_dict())
            with one_at_a_time(folder):  # the same command may be given on several machines
                if not (folder / "recipe.yaml").is_file():
                    return cls._begin(folder, recipe)
        run = cls.open(folder)
        if changed := differences(run.recipe.as_dict(), recipe.as_dict()):
            raise MechrefusalError(
                f"'{folder}' holds a run of another recipe (they differ in {', '.join(changed[:6])}"
                f"{' and more' if len(changed) > 6 else ''}); give another folder with --out, or delete this one"
            )
        return run

    @classmethod
    def _begin(cls, folder: Path, recipe: Recipe) -> "Run":
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise MechrefusalError(f"'{folder}' exists and is not a run; give another folder with --out")
        run = cls(folder, recipe)
        folder.mkdir(parents=True, exist_ok=True)
        run.update({"versions": versions(), "machine": machine(), "seed": recipe.training.seed})
        with whole_file(folder / "recipe.yaml") as draft:
            draft.write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")
        return run

    @classmethod
    def open(cls, folder: Path | str, **placed: Unpack[Placed]) -> "Run":
        """Open an existing run.

        Args:
            placed: where its models lie here, in place of what its recipe says: fields of a `Placement` but dtype,
                which its numbers hang on.

        Raises:
            MechrefusalError: no run there, or a recipe that cannot be read; a dtype that is not the recipe's.
        """
        path = Path(folder).expanduser() / "recipe.yaml"
        if not path.is_file():
            raise MechrefusalError(
                f"'{path.parent}' is not a run (no recipe.yaml); start one with 'mechrefusal run --out {path.parent}'"
            )
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise MechrefusalError(f"'{path}' is not readable YAML ({str(error).splitlines()[0]})") from error
        recipe = recipe_from_dict(content, where=str(path))
        placement = recipe.placement.given(**placed)
        if placement.dtype != recipe.placement.dtype:
            raise MechrefusalError(
                f"run '{path.parent}' is computed in {recipe.placement.dtype}, as its recipe says, not in "
                f"{placement.dtype}: leave dtype out, or start another run"
            )
        return cls(path.parent, replace(recipe, placement=placement))

    @property
    def manifest(self) -> dict[str, Any]:
        """What exists: versions, base model, checkpoints with their hashes, stages with their wall times."""
        path = self.folder / "manifest.json"
        if not path.is_file():
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise MechrefusalError(f"'{path}' is damaged ({error}); delete the run and start it again") from error

    def update(self, changes: dict[str, Any]) -> None:
        """Merge `changes` into the manifest, one level deep for dictionaries; processes do so one after another."""
        path = self.folder / "manifest.json"
        with one_at_a_time(path):
            content = self.manifest
            for key, value in changes.items():
                both = isinstance(value, dict) and isinstance(content.get(key), dict)
                content[key] = {**content[key], **value} if both else value
            with whole_file(path) as draft:
                draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def cached(self, name: str, key: str, inputs: Inputs, make: Callable[[], Made]) -> Unit:
        """What the stage `name` gives for `key`: what is on disk, where it was made from these inputs, else made now.

        Each file is written whole, and the unit noted in the manifest when all of them are there: a run that is killed
        goes on after the last unit that was finished. A file that is missing or not what was written is made again.

        Args:
            name, key: of the unit: the stage, and what it is of, as the id of a checkpoint.
            inputs: plain data that the result hangs on: hashes of weights, settings, fingerprints of prompts, the
                version of the stage.
            make: the work.

        Raises:
            OSError: a file cannot be written; the unit is then not finished.
        """
        if (unit := self.kept(name, key, inputs)) is not None:
            return unit
        self.clear(name, key, fingerprint(inputs))
        started = time.perf_counter()
        made = make()
        seconds = time.perf_counter() - started
        hashes = {path: caching.write(path, content) for path, content in made.files.items()}
        entry: dict[str, Any] = {
            "stamp": fingerprint(inputs),
            "files": {self._stored(path): sha for path, sha in hashes.items() if sha is not None},
            "seconds": round(seconds, 4),
            "note": made.note,
        }
        self.update({"finished": {Run.unit(name, key): entry}})
        return Unit(self.folder, **entry)

    def kept(self, name: str, key: str, inputs: Inputs) -> Unit | None:
        """The unit, where it is finished, made from these inputs, and all of its files are what was written."""
        unit = self.finished(name, key)
        return unit if unit is not None and unit.stamp == fingerprint(inputs) and unit.is_whole else None

    def finished(self, name: str, key: str = "") -> Unit | None:
        """The unit as the manifest has it, whatever it was made from; None where it is not finished."""
        entry = self.entries().get(Run.unit(name, key))
        return Unit(self.folder, **entry) if entry else None

    def entries(self) -> dict[str, Any]:
        """What the manifest has of finished units, by `unit`; None of those that are to be made again."""
        return self.manifest.get("finished", {})

    @staticmethod
    def unit(name: str, key: str) -> str:
        """What a unit is called in the manifest."""
        return f"{name} of {key}" if key else name

    def clear(self, name: str, key: str, stamp: str) -> None:
        """Remove what a unit left that is to be made again: the files of other inputs, or those that are damaged."""
        if (unit := self.finished(name, key)) is None:
            return
        for path, sha in unit.files.items():
            if sha and (unit.stamp != stamp or not unit.holds(path)):
                (self.folder / path).unlink(missing_ok=True)
        self.update({"finished": {Run.unit(name, key): None}})

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Say and record the wall time of a stage that ended well."""
        started = time.perf_counter()
        yield
        self.took(stage, time.perf_counter() - started)

    def took(self, stage: str, seconds: float) -> None:
        """Say how long a stage took, and record it in the manifest and in the table `stages`."""
        say(f"{stage}: {seconds:.0f} s")
        self.update({"stages": {stage: round(seconds, 2)}})
        with one_at_a_time(self.measurements() / "stages.parquet"):
            rows = [{"stage": name, "seconds": seconds} for name, seconds in self.manifest["stages"].items()]
            tables.write(tables.frame("stages", rows), "stages", self.measurements())

    def record(self, *checkpoints: Checkpoint, source: str = "") -> None:
        """Note checkpoints in the manifest.

        Args:
            source: the name that a given checkpoint was fetched by, to be fetched again where its folder is gone.
        """
        entries = {
            c.id: {"arm": c.arm, "step": c.step, "path": self._stored(c.path), "weights": c.weights}
            | ({"source": source} if source else {})
            for c in checkpoints
        }
        self.update({"checkpoints": entries})

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint of the run: the base first, the end of a warm-up, then arm by arm in order of steps.

        Arms are in the order of the recipe, those that were trained before those that were given.

        Raises:
            MechrefusalError: a checkpoint of which something that is loaded is not what the manifest says.
        """
        return [self._checkpoint(entry) for entry in self._entries()]

    def start(self) -> Checkpoint:
        """The first of `checkpoints()`: the base, where there is one. Attack cases are made against it.

        Raises:
            MechrefusalError: there is no checkpoint yet, or it was changed.
        """
        if not (entries := self._entries()):
            raise MechrefusalError(f"run '{self.folder}' has no checkpoints yet; train it first: mechrefusal train")
        return self._checkpoint(entries[0])

    def _entries(self) -> list[dict[str, Any]]:
        arms = [BASE, WARM_UP, *self.recipe.arms, *self.recipe.checkpoints]
        listed = self.manifest.get("checkpoints", {}).values()
        return sorted(listed, key=lambda entry: (arms.index(entry["arm"]), entry["step"]))

    def checkpoint(self, arm: str, *, step: int) -> Checkpoint:
        """The checkpoint of `arm` at `step`; whatever the arm, step 0 is the base model, a warm-up's last step its end.

        Raises:
            MechrefusalError: there is none.
        """
        shared = {self.recipe.training.warm_up: WARM_UP, 0: BASE}  # no warm-up is one of 0 steps
        if arm in self.recipe.checkpoints:
            shared = {}  # others trained it, from whatever
        key = Checkpoint(shared.get(step, arm), step, Path(), "").id
        entry = self.manifest.get("checkpoints", {}).get(key)
        if entry is None:
            known = ", ".join(self.manifest.get("checkpoints", {})) or "none yet"
            raise MechrefusalError(f"run '{self.folder}' has no checkpoint '{key}'; it has {known}")
        return self._checkpoint(entry)

    def measurements(self, checkpoint: Checkpoint | None = None) -> Path:
        """Folder of a checkpoint's tables, or of the tables across checkpoints."""
        folder = self.folder / "measurements"
        return folder / checkpoint.id if checkpoint is not None else folder

    def answers(self, checkpoint: Checkpoint, intervention: str) -> Path:
        """File of a checkpoint's answers under an intervention ("none" without one), with their tokens."""
        return self.folder / "answers" / checkpoint.id / f"{intervention}.parquet"

    def directions(self, checkpoint: Checkpoint) -> Path:
        """File of a checkpoint's directions."""
        return self.folder / "directions" / f"{checkpoint.id}.safetensors"

    def locked_directions(self, checkpoint: Checkpoint) -> Path:
        """File of a checkpoint's directions of all direction prompts, which are the same at every checkpoint."""
        return self.folder / "directions" / f"{checkpoint.id}-locked.safetensors"

    def harmfulness_directions(self, checkpoint: Checkpoint) -> Path:
        """File of a checkpoint's directions at the last instruction token; not every chat template has one."""
        return self.folder / "directions" / f"{checkpoint.id}-harmfulness.safetensors"

    def _stored(self, path: Path) -> str:
        path = path.resolve()
        inside = path.is_relative_to(self.folder.resolve())
        return str(path.relative_to(self.folder.resolve())) if inside else str(path)

    def _checkpoint(self, entry: dict[str, Any]) -> Checkpoint:
        path = self.folder / entry["path"]
        source = self.recipe.model if entry["arm"] == BASE else entry.get("source", "")
        if source and not path.is_dir():
            path = fetch(source)  # the run was moved, or the cache was
        checkpoint = Checkpoint.open(path, arm=entry["arm"], step=entry["step"], **self.recipe.opened)
        if checkpoint.weights != entry["weights"]:
            since = "since it was first opened" if "source" in entry else "after training"
            raise MechrefusalError(
                f"checkpoint '{checkpoint.id}' of '{self.folder}' holds weights {checkpoint.weights}, the manifest "
                f"says {entry['weights']}; it was changed {since} (weights, config, tokenizer or chat template), or "
                "recorded by a version that hashed the weights alone: restore it, or start a new run"
            )
        return checkpoint


def open(folder: Path | str, **placed: Unpack[Placed]) -> Run:
    """Open an existing run: `mr.study.open("checkpoints/demo")`; `placed` as in `Run.open`."""
    return Run.open(folder, **placed)


def _require_no_secret(recipe: dict[str, Any]) -> None:
    for key, value in leaves(recipe).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and without_secrets_of_addresses(text) != text:
                raise MechrefusalError(
                    f"recipe key '{key}' holds an address with a user, a password or a key, which would stand in the "
                    "run's files: give a name or a path without it"
                )
