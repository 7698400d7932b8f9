"""Two processes on a CPU (gloo) equal one process with the same global batch, up to the rounding of sums."""

import socket

import distributed
import forked
import killed
import pytest
import torch
from safetensors.torch import load_file
from tolerances import FORWARD, ROUNDED

from mechrefusal import training

WANTED = [
    ("r2d2", 1),
    ("r2d2", 2),
    ("sft", 1),
    ("refat", 1),  # each process draws which of its rows are run under the ablation
    ("circuit_breakers", 1),
    ("lat", 1),
    ("dpo", 1),
]
"""Arms and micro-batches of a step."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def in_two(tiny, tmp_path_factory):
    """Every arm trained in two processes that are told of each other as `torchrun` does it."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    both = [forked.start(distributed.train, rank, port, tiny, out, WANTED) for rank in range(2)]
    for process in both:
        process.join(480)
    assert [process.exitcode for process in both] == [0, 0], (out / "said-0.txt").read_text()[-3000:]
    return out


@pytest.mark.parametrize(("arm", "accumulation"), WANTED)
def test_two_processes_equal_one(tiny, tmp_path, in_two, arm, accumulation):
    (tmp_path / "two").symlink_to(in_two / f"{arm}-{accumulation}")
    log = killed.train(arm, tiny, out=tmp_path / "one", settings=distributed.settings(2 * accumulation))
    two = training.read_log(tmp_path / "two", "steps")
    for name in ("loss", "utility", "away", "toward", "attack_loss_before", "attack_loss_after"):
        if name not in log:
            continue
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
