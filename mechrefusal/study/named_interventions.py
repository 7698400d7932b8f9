"""Interventions by name, as a command line gives them: `ablate:carrier`, `induce:carrier`, `add:best:1`."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from mechrefusal import causal
from mechrefusal.causal.reference import HARMLESS, REFERENCES, ZERO
from mechrefusal.errors import MechrefusalError
from mechrefusal.models import Checkpoint
from mechrefusal.study import chosen_direction
from mechrefusal.study.run import Run

_PLACE = re.compile(r"(?P<file>.+)@(?P<place>(?:position|layer)=-?\d+(?:,(?:position|layer)=-?\d+)?)")


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
    direction: str
    coefficient: float
    position: int | None = None
    layer: int | None = None
    reference: str | None = None

    @classmethod
    def parse(cls, spec: str) -> "NamedIntervention":
        """What `spec` says.

        Raises:
            MechrefusalError: it is no intervention, its file is not there, or nothing says at which layer to add.
        """
        kind, _, rest = spec.partition(":")
        direction, _, given = rest.rpartition(":") if kind == "add" else (rest, "", "1")
        reference = None
        if kind == "ablate" and (last := rest.rpartition(":"))[2] in REFERENCES:
            direction, _, reference = last
        try:
            coefficient = float(given)
        except ValueError:
            coefficient = float("nan")
        if kind not in ("ablate", "induce", "add") or not direction or coefficient - coefficient != 0:
            raise MechrefusalError(
                f"unknown intervention '{spec}': give ablate:DIRECTION, ablate:DIRECTION:zero, induce:DIRECTION or "
                "add:DIRECTION:COEFFICIENT, with carrier, best, random or a safetensors file as direction "
                "(ablate:carrier, add:best:1, ablate:FILE@position=-1,layer=14)"
            )
        place: dict[str, int] = {}
        if direction not in chosen_direction.NAMES and (found := _PLACE.fullmatch(direction)):
            direction = found["file"]
            place = {name: int(value) for name, value in (part.split("=") for part in found["place"].split(","))}
        named = cls(spec, kind, direction, coefficient, **place, reference=reference)
        named._require_file()
        return named

    def _require_file(self) -> None:
        if self.direction in chosen_direction.NAMES:
            return
        if not Path(self.direction).expanduser().is_file():
            known = ", ".join(chosen_direction.NAMES)
            raise MechrefusalError(
                f"intervention '{self.spec}': '{self.direction}' is neither a safetensors file nor one of {known}"
            )
        if self.kind == "add" and self.layer is None:
            raise MechrefusalError(
                f"intervention '{self.spec}': nothing says at which layer to add the direction of a file: give "
                f"add:{self.direction}@layer=NUMBER:COEFFICIENT"
            )

    def at(self, run: Run | None, checkpoint: Checkpoint, *, seed: int) -> causal.Intervention:
        """The intervention at this checkpoint.

        Raises:
            MechrefusalError: the checkpoint has no such direction, or it cannot be added.
        """
        if self.direction == "random":
            found = chosen_direction.random(run, checkpoint, seed=seed, added=self.kind != "ablate")
        elif self.direction in chosen_direction.NAMES:
            found = chosen_direction.of_run(run, checkpoint, best=self.direction == "best")
        else:
            path = Path(self.direction).expanduser()
            found = chosen_direction.of_file(path, checkpoint, layer=self.layer, position=self.position)
        if self.kind == "ablate":
            if self.layer is not None and found.layer is None:
                raise MechrefusalError(
                    f"intervention '{self.spec}': layer {self.layer} says nothing to the ablation of a file's only "
                    "direction, which is done at every layer: leave it out"
                )
            return causal.taken_out(found, reference=self.reference)
        if self.kind == "induce":
            return causal.put_in(replace(found, reference=HARMLESS))
        found = found if self.layer is None else replace(found, layer=self.layer)
        return causal.put_in(replace(found, reference=ZERO), dose=self.coefficient)
