"""Trains arms on the tiny model as one of two processes. Run by test_several_processes.py."""

import os
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import killed

from mechrefusal import training

GUIDE = training.GuideSettings(hold_weight=1.0, shift_weight=1.0, redundant_weight=1.0, every=2, n_prompts=3)


@dataclass(frozen=True)
class Wanted:
    """An arm to train: its micro-batches of a step; with adapters; guided; killed in the backward pass of this step."""

    arm: str
    accumulation: int = 1
    lora: bool = False
    guided: bool = False
    killed: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        marks = {"lora": self.lora, "guided": self.guided, "killed": self.killed}
        return "-".join([self.arm, str(self.accumulation), *(mark for mark, is_so in marks.items() if is_so)])

    def train(self, model: Path, out: Path, *, parts: int = 1):
        """Train it, in `parts` times as many micro-batches."""
        how = settings(self.accumulation * parts, lora=self.lora)
        return killed.train(self.arm, model, out=out / self.name, settings=how, guide=GUIDE if self.guided else None)


def settings(accumulation: int, *, lora: bool = False) -> training.TrainingSettings:
    """Those of `killed.py`, with small steps: Adam blows rounding up."""
    return replace(
        killed.settings(lora=False),
        gradient_accumulation=accumulation,
        steps=3,
        anchors=(0, 1, 3),
        learning_rate=1e-4,
        harmful_per_step=4,
        lora=training.LoraSettings(rank=2) if lora else None,
        max_shard_size="100KB",
    )


def train(rank: int, port: int, model: Path, out: Path, wanted: Sequence[Wanted], launched: Mapping[str, str]) -> None:
    """Train arms as process `rank` of two; what it says is in `out`.

    Args:
        launched: what `accelerate launch` says in the environment beside `torchrun`.
    """
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"} | dict(launched)
    if "ACCELERATE_USE_DEEPSPEED" in launched:
        _without_compiling()
    with (out / f"said-{rank}.txt").open("a") as said, redirect_stderr(said), redirect_stdout(said):
        try:
            for each in wanted:
                if each.killed:
                    killed.kill_at("backward", each.killed, each.arm)
                each.train(model, out)
        except BaseException:
            traceback.print_exc(file=said)
            raise


def _without_compiling() -> None:
    """DeepSpeed compiles a faster way to exchange tensors between CPU processes, for minutes; it needs none."""
    import sys

    import deepspeed  # noqa: F401

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
