"""Work without a model, for tests of workers: each stage writes a file."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from mechrefusal.errors import MechrefusalError


@dataclass(frozen=True)
class Toy:
    """Units of files. What `does` says of a unit happens in its stage `second`, until the file `<unit>.calm` is there.

    `does`: "die", "kill": the process is killed, once or each time; "raise", "refuse", "full": it fails, as a bug, as
    bad input, for want of disk; "stumble": it fails, once; "hang": it waits.
    """

    folder: Path
    units: tuple[str, ...]
    does: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0

    name = "toy"

    def path(self, unit, stage):
        return self.folder / f"{unit}.{stage}"

    def left(self):
        stages = ("first", "second", "third")
        return {unit: [stage for stage in stages if not self.path(unit, stage).exists()] for unit in self.units}

    def take(self, unit, around):
        for stage in self.left()[unit]:
            with around(stage):
                with (self.folder / "taken").open("a") as file:
                    file.write(f"{unit} {stage} {os.getpid()}\n")
                if stage == "second":
                    self._meet(unit)
                time.sleep(self.seconds)
                self.path(unit, stage).write_text(unit)

    def _meet(self, unit):
        what, calm = dict(self.does).get(unit), self.folder / f"{unit}.calm"
        if what is None or calm.exists():
            return
        if what in ("die", "stumble"):
            calm.touch()
        if what in ("die", "kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "refuse":
            raise MechrefusalError("prompts 'x' are empty")
        if what == "full":
            raise OSError(28, "No space left on device")
        while what == "hang" and not calm.exists():
            time.sleep(0.02)
        if what != "hang":
            raise ValueError(f"{unit} is odd")

    def taken(self):
        """(unit, stage, process) of all that was begun."""
        return [tuple(line.split()) for line in (self.folder / "taken").read_text().splitlines()]
