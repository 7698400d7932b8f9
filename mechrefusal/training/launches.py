"""Configs for `accelerate launch`: the ways in which training is shared out over GPUs."""

from importlib.resources import files
from pathlib import Path

from mechrefusal.errors import MechrefusalError, what_was_meant

LAUNCHES = ("ddp", "fsdp2", "zero3")
"""Data parallel, FSDP2, DeepSpeed ZeRO-3; for any number of GPUs (`--num_processes`)."""


def accelerate_config(launch: str) -> Path:
    """The path of the config of a launch.

    Raises:
        MechrefusalError: there is none of that name.
    """
    if launch not in LAUNCHES:
        raise MechrefusalError(f"there is no accelerate config '{launch}': {what_was_meant(launch, LAUNCHES)}")
    return Path(str(files("mechrefusal") / "training" / "accelerate" / f"{launch}.yaml"))
