"""Trains arms on the tiny model in as many processes as it is started with. Run by test_several_processes.py.

python -m torch.distributed.run --nproc-per-node 2 distributed.py FOLDER_OF_MODEL OUT ARM-ACCUMULATION [...]
"""

import sys
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


if __name__ == "__main__":
    model, out, *wanted = sys.argv[1:]
    for name in wanted:
        arm, _, accumulation = name.partition("-")
        inputs = killed.inputs(Path(model))
        training.train(arm, **inputs, out=Path(out) / name, settings=settings(int(accumulation)))
