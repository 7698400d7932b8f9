"""Trains arms on the tiny model as one of two processes. Run by test_several_processes.py."""

import os
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import killed

from mechrefusal import training


def settings(accumulation: int) -> training.TrainingSettings:
    """Those of `killed.py`, with small steps: Adam blows rounding up."""
    return replace(
        killed.SETTINGS,
        gradient_accumulation=accumulation,
        steps=3,
        anchors=(0, 1, 3),
        learning_rate=1e-4,
        harmful_per_step=4,
    )


def train(rank: int, port: int, model: Path, out: Path, wanted: Sequence[tuple[str, int]]) -> None:
    """Train arms, by name and micro-batches of a step, as process `rank` of two; what it says is in `out`."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"}
    with (out / f"said-{rank}.txt").open("w") as said, redirect_stderr(said), redirect_stdout(said):
        try:
            for arm, accumulation in wanted:
                killed.train(arm, model, out=out / f"{arm}-{accumulation}", settings=settings(accumulation))
        except BaseException:
            traceback.print_exc(file=said)
            raise
