"""Two processes on a CPU (gloo) equal one process with the same global batch, up to the rounding of sums."""

import subprocess
import sys
from pathlib import Path

import distributed
import killed
import pytest
import torch
from safetensors.torch import load_file
from tolerances import FORWARD, ROUNDED

from mechrefusal import training

SCRIPT = Path(distributed.__file__)


WANTED = [("r2d2", 1), ("r2d2", 2), ("sft", 1)]
"""Arms and micro-batches of a step."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def in_two(tiny, tmp_path_factory):
    """Every arm trained in two processes, which start once for all of them: most of the time is theirs."""
    out = tmp_path_factory.mktemp("two")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT), str(tiny), str(out)]
    done = subprocess.run(
        [sys.executable, *words, *(f"{arm}-{accumulation}" for arm, accumulation in WANTED)],
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize(("arm", "accumulation"), WANTED)
def test_two_processes_equal_one(tiny, tmp_path, in_two, arm, accumulation):
    (tmp_path / "two").symlink_to(in_two / f"{arm}-{accumulation}")
    log = training.train(
        arm, **killed.inputs(tiny), out=tmp_path / "one", settings=distributed.settings(2 * accumulation)
    )
    two = training.read_log(tmp_path / "two", "steps")
    for name in ("loss", "utility", "away", "toward", "attack_loss_before", "attack_loss_after"):
        assert two[name].tolist() == pytest.approx(log[name].tolist(), rel=FORWARD, nan_ok=True), name
    if arm == "r2d2":
        pools = [training.CasePool.load(tmp_path / n / "pool.parquet", source=None) for n in ("one", "two")]
        assert [case.suffix_ids for case in pools[0].cases] == [case.suffix_ids for case in pools[1].cases]
        assert [case.forward_tokens for case in pools[0].cases] == [case.forward_tokens for case in pools[1].cases]
        refreshes = [training.read_log(tmp_path / n, "refreshes")["case"].tolist() for n in ("one", "two")]
        assert [sorted(cases) for cases in refreshes] == [sorted(refreshes[0])] * 2
    for step in (1, 3):
        one, both = (load_file(tmp_path / n / f"step-{step:05d}" / "model.safetensors") for n in ("one", "two"))
        base = load_file(tiny / "model.safetensors")
        for name in one:
            torch.testing.assert_close(both[name], one[name], atol=2 * ROUNDED, rtol=FORWARD)
        assert any(not torch.equal(one[name], base[name]) for name in one)
