"""A training that was killed and goes on ends in the weights, to the last bit, of one that was never killed."""

import signal
from functools import partial
from pathlib import Path

import forked
import killed
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mechrefusal import MechrefusalError, training
from mechrefusal.training import CasePool

WALL_TIMES = ["seconds", "seconds_refresh", "seconds_forward", "seconds_backward", "seconds_optimizer", "peak_mib"]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Folders of arms that were not killed, by (arm, lora)."""
    made: dict[tuple[str, bool], Path] = {}

    def of(arm: str, *, lora: bool = False) -> Path:
        if (arm, lora) not in made:
            out = tmp_path_factory.mktemp("whole") / arm
            killed.train(arm, tiny, out=out, settings=killed.settings(lora=lora))
            made[arm, lora] = out
        return made[arm, lora]

    return of


def killed_run(tiny: Path, out: Path, arm: str, point: str, step: int, *, lora: bool = False) -> None:
    log = out.with_name("said.txt")
    process = forked.start(partial(killed.run, lora=lora, log=log), tiny, out, arm, point, step)
    process.join()
    assert process.exitcode == -signal.SIGKILL, log.read_text(errors="replace")


def assert_same(arm: str, resumed: Path, whole: Path) -> None:
    for step in (2, 5):
        found, expected = (
            load_file(next((folder / f"step-{step:05d}").glob("*model.safetensors"))) for folder in (resumed, whole)
        )
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), f"step {step}"
    for name in ("steps", "terms", "refreshes"):
        found, expected = (
            training.read_log(folder, name).drop(columns=WALL_TIMES, errors="ignore") for folder in (resumed, whole)
        )
        pd.testing.assert_frame_equal(found, expected)
    if arm == "r2d2":
        pools = [CasePool.load(folder / "pool.parquet", source=None) for folder in (resumed, whole)]
        assert pools[0].cases == pools[1].cases
        assert torch.equal(pools[0].generator.get_state(), pools[1].generator.get_state())
    assert not (resumed / "unfinished").exists()
    assert not [path for path in resumed.rglob("*") if "draft" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "point", "step"),
    [
        ("r2d2", "refresh", 3),
        ("r2d2", "refresh", 6),
        ("r2d2", "backward", 1),
        ("r2d2", "backward", 4),
        ("r2d2", "optimizer", 5),
        ("r2d2", "writing a checkpoint", 2),
        ("r2d2", "writing a checkpoint", 3),
        ("r2d2", "after a checkpoint", 5),
        ("sft", "backward", 4),
        ("sft", "writing a checkpoint", 2),
        ("refat", "optimizer", 4),
        ("circuit_breakers", "optimizer", 4),
        ("lat", "backward", 4),
        ("dpo", "backward", 4),
        ("dpo", "after a checkpoint", 5),
        ("kto", "optimizer", 5),
        ("rlhf", "backward", 4),
        ("rlhf", "optimizer", 6),
        ("rlhf", "writing a checkpoint", 3),
    ],
)
def test_a_killed_arm_goes_on_to_the_same_weights(tiny, tmp_path, whole, arm, point, step):
    out = tmp_path / arm
    killed_run(tiny, out, arm, point, step)
    killed.train(arm, tiny, out=out, settings=killed.settings(lora=False))
    assert_same(arm, out, whole(arm))


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["r2d2", "dpo", "kto", "rlhf", "refat", "circuit_breakers"])
def test_an_arm_with_adapters_and_dropout_goes_on_too(tiny, tmp_path, whole, arm):
    out = tmp_path / arm
    killed_run(tiny, out, arm, "optimizer", 4, lora=True)
    killed.train(arm, tiny, out=out, settings=killed.settings(lora=True))
    assert_same(arm, out, whole(arm, lora=True))


@pytest.mark.slow
def test_what_was_left_unfinished_belongs_to_its_settings(tiny, tmp_path):
    from dataclasses import replace

    out = tmp_path / "r2d2"
    killed_run(tiny, out, "r2d2", "backward", 4)
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    assert (out / "unfinished" / "checkpoint-3" / "pool.parquet").is_file()
    other = replace(killed.settings(lora=False), learning_rate=1e-3)
    with pytest.raises(
        MechrefusalError, match="holds an unfinished training of another model, other rows or other settings"
    ):
        killed.train("r2d2", tiny, out=out, settings=other)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
