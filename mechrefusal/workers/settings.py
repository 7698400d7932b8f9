"""Who does the work: how many workers, and where."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mechrefusal.errors import MechrefusalError

LOCAL, SLURM, DEBUG = EXECUTORS = ("local", "slurm", "debug")


@dataclass(frozen=True)
class Workers:
    """Who does the work.

    Fields:
        executor: "local": in processes of this machine; "slurm": in jobs of a SLURM array; "debug": in this process,
            which stops at the first error, with its traceback.
        n: workers at once. One local worker is this process. 0: locally as many as are likely to be faster and fit
            into memory (see `local.how_many`); in a queue one a unit.
        slurm: what a job asks for, as `{"partition": "gpu", "timeout_min": 240, "gpus_per_node": 1, "mem_gb": 64}`:
            the parameters of `submitit.AutoExecutor`, those of SLURM with or without their prefix `slurm_`.
        retries: how often a unit is tried again that failed, or whose worker is gone.
    """

    executor: str = LOCAL
    n: int = 1
    slurm: Mapping[str, Any] = field(default_factory=dict)
    retries: int = 2

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise MechrefusalError(f"executor '{self.executor}' is unknown: expected one of {', '.join(EXECUTORS)}")
        for name, value in (("workers", self.n), ("retries", self.retries)):
            if value < 0:
                raise MechrefusalError(f"{name} is {value}; give 0 or more")
        if self.slurm and self.executor != SLURM:
            raise MechrefusalError(f"slurm options are given, but the executor is '{self.executor}': give slurm")

    @classmethod
    def of(cls, given: "Workers | int") -> "Workers":
        """`given`, or so many local ones."""
        return given if isinstance(given, Workers) else cls(n=given)

    def require(self) -> None:
        """Raise MechrefusalError where there is no such queue here, or it does not take these options."""
        if self.executor == SLURM:
            from mechrefusal.workers.slurm import require

            require(self.slurm)
