"""Workers in the jobs of a SLURM array, through submitit.

A job is a worker: it takes units until there is none to be had, and ends, which gives its nodes back. One whose time is
over is queued again by submitit and goes on; what it had finished is kept. Whether jobs are there says `squeue`, which
every cluster has, and why one ended `scontrol`: `sacct` is not everywhere.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechrefusal.errors import MechrefusalError
from mechrefusal.leases import Owner
from mechrefusal.memory import given_back
from mechrefusal.workers.board import FOLDER, Board
from mechrefusal.workers.executors import Executor
from mechrefusal.workers.work import Work
from mechrefusal.workers.worker import take_all

ASK_EVERY = 5.0
"""Seconds between two questions to the controller."""
DEFAULTS = {"name": "mechrefusal", "timeout_min": 240}
"""submitit's own time is five minutes."""
PYTHON = "python"
"""What starts Python in a job; for a container."""
OVER = ("COMPLETED", "COMPLETING", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
        "OUT_OF_MEMORY", "REVOKED")  # fmt: skip
"""States of jobs that do not run any more, nor again."""
PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")


def require(options: Mapping[str, Any]) -> None:
    """Raise MechrefusalError where submitit or SLURM is not here, or a parameter is none of theirs."""
    try:
        import submitit
    except ImportError as error:
        raise MechrefusalError("the executor slurm needs submitit: pip install 'mechrefusal[cluster]'") from error
    if missing := [name for name in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(name) is None]:
        raise MechrefusalError(
            f"there is no '{missing[0]}' here: give --executor slurm where SLURM's commands are, on a login node"
        )
    known = {PYTHON, *submitit.AutoExecutor._typed_parameters(), *submitit.SlurmExecutor._valid_parameters()}
    if unknown := [name for name in options if name.removeprefix("slurm_") not in known]:
        raise MechrefusalError(f"slurm option '{unknown[0]}' is unknown: expected {', '.join(sorted(known))}")
    with tempfile.TemporaryDirectory() as folder:
        _executor(Path(folder), options)


def _executor(folder: Path, options: Mapping[str, Any]) -> Any:
    import submitit

    shared = submitit.AutoExecutor._typed_parameters()
    plain = {**DEFAULTS, **{name.removeprefix("slurm_"): value for name, value in options.items()}}
    made = {"slurm_python": plain.pop(PYTHON)} if PYTHON in plain else {}
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=1000, **made)
    try:
        executor.update_parameters(**{n if n in shared else f"slurm_{n}": value for n, value in plain.items()})
    except Exception as error:
        raise MechrefusalError(f"slurm options are not what submitit takes: {' '.join(str(error).split())}") from error
    return executor


@dataclass
class Job:
    """What a job does. submitit pickles it, and calls it on the node."""

    work: Work
    retries: int
    before: Mapping[str, int]

    def __call__(self) -> None:
        """Take units until there is none to be had."""
        if "OMP_NUM_THREADS" not in os.environ and (given := os.environ.get("SLURM_CPUS_PER_TASK")):
            import torch

            torch.set_num_threads(int(given))
        take_all(Board(self.work, retries=self.retries, before=self.before), _around)

    def checkpoint(self) -> Any:
        """What a job does that is queued again, because its time was over or another took its place: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@contextmanager
def _around(stage: str) -> Iterator[None]:
    yield
    given_back()


class Slurm(Executor):
    """`n` jobs of the queue. They are cancelled when the command is stopped, and go on where it is killed."""

    def __init__(self, board: Board, n: int, options: Mapping[str, Any]) -> None:
        require(options)
        self.board, self.n, self.folder = board, n, (board.work.folder / FOLDER / "slurm").absolute()
        self._jobs: dict[str, Any] = {}
        self._states: dict[str, str] = {}
        self._asked = 0.0
        self._executor = _executor(self.folder, options)

    def start(self, n: int) -> None:
        """Submit an array of jobs."""
        call = Job(self.board.work, self.board.retries, self.board.before)
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(call) for _ in range(n)]
        except Exception as error:
            said = getattr(error, "stderr", None) or error
            raise MechrefusalError(f"SLURM does not take the jobs: {' '.join(str(said).split())[-500:]}") from error
        self._jobs |= {job.job_id: job for job in jobs}
        self._states |= {job.job_id: "PENDING" for job in jobs}
        self._asked = time.monotonic()

    def _ask(self) -> None:
        if time.monotonic() - self._asked < ASK_EVERY or not self._running():
            return
        self._asked = time.monotonic()
        command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i %A %T"]
        try:
            lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
        except (subprocess.SubprocessError, OSError):
            return  # the controller is busy: it is asked again
        found = {line.split()[0]: line.split()[2] for line in lines if len(line.split()) == 3}
        for job in self._running():
            state = found.get(job, "")
            self._states[job] = state if state and state not in OVER else self._state_at_the_end(job)

    def _running(self) -> list[str]:
        return [job for job, state in self._states.items() if not state.startswith("it ended")]

    def _state_at_the_end(self, job: str) -> str:
        """What SLURM remembers for some minutes, and where the job's output lies."""
        said = "SLURM does not know it any more"
        with suppress(subprocess.SubprocessError, OSError):
            command = ["scontrol", "show", "job", "--oneliner", job]
            shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
            fields = dict(part.split("=", 1) for part in shown.split() if "=" in part)
            said = f"{fields.get('JobState', 'unknown')}, exit code {fields.get('ExitCode', 'unknown')}"
        return f"it ended as {said} (log: {self._jobs[job].paths.stderr})"

    def alive(self) -> int:
        """Jobs that run or wait."""
        self._ask()
        return len(self._running())

    def waiting(self) -> int:
        """Jobs that wait."""
        return sum(state in PENDING for state in self._states.values())

    def owns(self, owner: Owner) -> bool:
        """Whether it is one of the jobs."""
        return owner.job in self._running()

    def ended(self, owner: Owner) -> str:
        """How the job has ended."""
        state = self._states.get(owner.job, "")
        return state if state.startswith("it ended") else ""

    def last_words(self) -> str:
        """How the last job ended."""
        ended = [f"job {job}: {state}" for job, state in self._states.items() if state.startswith("it ended")]
        return ended[-1] if ended else ""

    def wait(self) -> None:
        """A second: files and the controller are asked again."""
        time.sleep(1)

    def stop(self) -> None:
        """Cancel what is left of the jobs. Their output stays where one failed; pickles go."""
        for job in self._running():
            with suppress(subprocess.SubprocessError, OSError):
                subprocess.run(["scancel", job], capture_output=True, timeout=60, check=False)
        failed = any("COMPLETED" not in state for state in self._states.values() if state.startswith("it ended"))
        if not failed:
            shutil.rmtree(self.folder, ignore_errors=True)
        for pickled in self.folder.rglob("*.pkl"):
            pickled.unlink(missing_ok=True)
