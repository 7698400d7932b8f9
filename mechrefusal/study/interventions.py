"""Interventions and their directions by name, as a command line gives them: `ablate:carrier`, `add:best:1`."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mechrefusal import causal, tables
from mechrefusal.causal.reference import HARMLESS, REFERENCES, ZERO
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.direction import Direction
from mechrefusal.geometry import Directions
from mechrefusal.models import Checkpoint, load_config
from mechrefusal.statistics.choosing import BEST, CARRIER
from mechrefusal.study.run import Run
from mechrefusal.study.table_rows import best_place, carrier_place

NAMES = ("carrier", "best", "random")
_PLACE = re.compile(r"(?P<file>.+)@(?P<place>(?:position|layer)=-?\d+(?:,(?:position|layer)=-?\d+)?)")


@dataclass(frozen=True)
class NamedDirection:
    """A direction by name: of a checkpoint's run, of a file, or a random one as the control.

    Fields:
        name: `carrier`; `best`, the best candidate where there is no carrier; `random`; or a safetensors file.
        position, layer: which of a file that holds directions at many places.
    """

    name: str
    position: int | None = None
    layer: int | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is none of `NAMES`."""
        return self.name not in NAMES

    def at(self, run: Run | None, checkpoint: Checkpoint, *, seed: int, added: bool) -> Direction:
        """The direction at a checkpoint.

        Args:
            seed: of the random direction.
            added: whether it is added, or put in: a random one then has to have a norm.

        Raises:
            MechrefusalError: the checkpoint has none, or it is of other weights or not in its file.
        """
        if self.name == "random":
            return random(run, checkpoint, seed=seed, added=added)
        if self.is_file:
            path = Path(self.name).expanduser()
            return of_file(path, checkpoint, layer=self.layer, position=self.position)
        return of_run(run, checkpoint, best=self.name == "best")


@dataclass(frozen=True)
class NamedIntervention:
    """`ablate:DIRECTION[:REFERENCE]`, `induce:DIRECTION`, or `add:DIRECTION:COEFFICIENT` at the direction's layer.

    `ablate` sets the direction's part to what it was chosen with, or to REFERENCE: harmless (the mean of harmless
    prompts) or zero (as Arditi et al. publish). `induce` sets it to the mean of harmful prompts; `add` adds it.

    DIRECTION: carrier, best (the best candidate where there is no carrier), random, or a safetensors file. A file that
    holds directions at many places needs `FILE@position=-1,layer=14`; one with a single tensor takes `FILE@layer=14`,
    where it is added.
    """

    spec: str
    kind: str
    direction: NamedDirection
    coefficient: float
    reference: str | None = None

    @classmethod
    def parse(cls, spec: str) -> "NamedIntervention":
        """The intervention that `spec` names.

        Raises:
            MechrefusalError: it is no intervention, its file is not there, or nothing says at which layer to add.
        """
        kind, _, rest = spec.partition(":")
        name, _, number = rest.rpartition(":") if kind == "add" else (rest, "", "1")
        reference = None
        if kind == "ablate" and (last := rest.rpartition(":"))[2] in REFERENCES:
            name, _, reference = last
        try:
            coefficient = float(number)
        except ValueError:
            coefficient = float("nan")
        if kind not in ("ablate", "induce", "add") or not name or coefficient - coefficient != 0:
            raise MechrefusalError(
                f"unknown intervention '{spec}': give ablate:DIRECTION, ablate:DIRECTION:zero, induce:DIRECTION or "
                "add:DIRECTION:COEFFICIENT, with carrier, best, random or a safetensors file as direction "
                "(ablate:carrier, add:best:1, ablate:FILE@position=-1,layer=14)"
            )
        direction = NamedDirection(name)
        if direction.is_file and (match := _PLACE.fullmatch(name)):
            place = (part.split("=") for part in match["place"].split(","))
            direction = NamedDirection(match["file"], **{axis: int(value) for axis, value in place})
        if direction.is_file and not Path(direction.name).expanduser().is_file():
            raise MechrefusalError(
                f"intervention '{spec}': '{direction.name}' is neither a safetensors file nor one of {', '.join(NAMES)}"
            )
        if direction.is_file and kind == "add" and direction.layer is None:
            raise MechrefusalError(
                f"intervention '{spec}': nothing says at which layer to add the direction of a file: give "
                f"add:{direction.name}@layer=NUMBER:COEFFICIENT"
            )
        return cls(spec, kind, direction, coefficient, reference)

    def at(self, run: Run | None, checkpoint: Checkpoint, *, seed: int) -> causal.Intervention:
        """The intervention at this checkpoint.

        Raises:
            MechrefusalError: the checkpoint has no such direction, or it cannot be added.
        """
        direction = self.direction.at(run, checkpoint, seed=seed, added=self.kind != "ablate")
        layer = self.direction.layer
        if self.kind == "ablate":
            if layer is not None and direction.layer is None:
                raise MechrefusalError(
                    f"intervention '{self.spec}': layer {layer} says nothing to the ablation of a file's only "
                    "direction, which is done at every layer: leave it out"
                )
            return causal.taken_out(direction, reference=self.reference)
        if self.kind == "induce":
            return causal.put_in(replace(direction, reference=HARMLESS))
        there = direction if layer is None else replace(direction, layer=layer)
        return causal.put_in(replace(there, reference=ZERO), dose=self.coefficient)


def of_run(run: Run | None, checkpoint: Checkpoint, *, best: bool) -> Direction:
    """The carrier of a checkpoint; with `best`, the best candidate where there is no carrier.

    Raises:
        MechrefusalError: no run, not measured, measured on other weights, or no such direction.
    """
    if run is None:
        raise MechrefusalError(
            f"'{checkpoint.path}' is no checkpoint of a run (none lists it), so it has no carrier: give one such as "
            "RUN/sft/step-00050, or a file of directions"
        )
    again = f"run 'mechrefusal measure {run.folder}'"
    table = tables.read("carrier", run.measurements(checkpoint))
    if table.empty:
        raise MechrefusalError(f"checkpoint '{checkpoint.id}' of '{run.folder}' was not measured: {again}")
    row = table.iloc[0]
    if row["weights"] != checkpoint.weights:
        raise MechrefusalError(
            f"the carrier of '{checkpoint.id}' is of weights {row['weights']}, not of {checkpoint.weights}: {again}"
        )
    kind, place = CARRIER, carrier_place(row)
    if place is None:
        if not best:
            raise MechrefusalError(
                f"checkpoint '{checkpoint.id}' has no carrier ({row['reason']}); direction 'best' takes the best "
                "candidate, which is not a carrier"
            )
        kind, place = BEST, best_place(row)
    if place is None:
        raise MechrefusalError(f"checkpoint '{checkpoint.id}' has no scored candidate ({row['reason']})")
    directions = Directions.load(run.directions(checkpoint), weights=checkpoint.weights)
    return replace(directions.at(*place, reference=row["ablated_to"]), kind=f"{kind} of {checkpoint.id}")


def of_file(path: Path, checkpoint: Checkpoint, *, layer: int | None, position: int | None) -> Direction:
    """A direction of a file that `Directions.save` wrote, or of one that holds a single tensor.

    Raises:
        MechrefusalError: no such file, directions of other weights, or a place that is not in it.
    """
    if not path.is_file():
        raise MechrefusalError(f"direction '{path}' is neither a safetensors file nor one of {', '.join(NAMES)}")
    try:
        with safe_open(path, framework="pt") as file:
            names, notes = list(file.keys()), file.metadata() or {}
            single = file.get_tensor(names[0]) if len(names) == 1 else None
    except (OSError, SafetensorError) as error:
        raise MechrefusalError(f"direction '{path}' is no safetensors file ({error})") from error
    if single is not None and single.ndim in (1, 2):
        if notes.get("weights", checkpoint.weights) != checkpoint.weights:
            raise MechrefusalError(
                f"direction '{path}' belongs to weights {notes['weights']}, not to {checkpoint.weights}"
            )
        if position is not None:
            raise MechrefusalError(f"'{path}' holds one tensor without positions; leave out position {position}")
        return Direction(single.float(), weights=checkpoint.weights, kind=f"tensor of {path.name}")
    directions = Directions.load(path, weights=checkpoint.weights)
    n_layers = directions.values.shape[1]
    if position is None or layer is None:
        raise MechrefusalError(
            f"'{path}' holds directions at positions {list(directions.positions)} and layers 0 to {n_layers - 1}: say "
            "which with position and layer"
        )
    if not 0 <= layer < n_layers:
        raise MechrefusalError(f"layer {layer} is not in '{path}'; it has layers 0 to {n_layers - 1}")
    reference = ZERO if directions.means is None else HARMLESS
    return replace(directions.at(position, layer, reference=reference), kind=f"direction of {path.name}")


def random(run: Run | None, checkpoint: Checkpoint, *, seed: int, added: bool) -> Direction:
    """A random direction: with the norm and the means of the run's own; without a run of norm 1.

    Where there is no such direction in the run, an ablation to zero can do without: it does not ask for the norm.
    """
    if run is not None:
        try:
            like = of_run(run, checkpoint, best=True)
        except MechrefusalError:
            if added:
                raise
        else:
            kind = f"random direction (seed {seed}, norm of the {like.name})"
            return replace(causal.random_like(like, seed=seed), position=None, kind=kind)
    width = int(load_config(checkpoint.path).get_text_config().hidden_size)
    vector = causal.random_like(torch.ones(width) / width**0.5, seed=seed)
    return Direction(vector, weights=checkpoint.weights, kind=f"random direction (seed {seed}, norm 1)")
