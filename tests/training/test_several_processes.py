"""Two processes on a CPU (gloo) equal one process with the same global batch, up to the rounding of sums."""

import signal
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import distributed
import forked
import pandas as pd
import pytest
import torch
from distributed import Wanted
from safetensors.torch import load_file
from tolerances import FORWARD, ROUNDED

from mechrefusal import models, training

LAUNCHES = {
    "ddp": {},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    },
    "zero3": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
        "DS_ACCELERATOR": "cpu",
    },
}
"""What `accelerate launch` says in the environment, with the configs that come with the package."""

R2D2, SFT = Wanted("r2d2"), Wanted("sft")
OTHERS = [
    Wanted("refat"),  # each process draws which of its rows are run under the ablation
    Wanted("circuit_breakers"),
    Wanted("lat"),
    Wanted("dpo"),
    Wanted("kto"),
]
WANTED = {
    "ddp": [R2D2, Wanted("r2d2", accumulation=2), SFT, Wanted("sft", lora=True), *OTHERS],
    "fsdp2": [
        R2D2,
        Wanted("r2d2", accumulation=2),
        SFT,
        Wanted("sft", lora=True),
        Wanted("sft", guided=True),
        Wanted("circuit_breakers", lora=True),  # reads the model as it was, which is the sharded one without adapters
        *OTHERS,
    ],
    "zero3": [R2D2, SFT, Wanted("sft", lora=True), Wanted("dpo"), Wanted("kto")],
}
KILLED = Wanted("r2d2", killed=3)

pytestmark = pytest.mark.slow


def launched(model: Path, out: Path, how: str, wanted: Sequence[Wanted]) -> list[int | None]:
    """Train in two processes that are told of each other as `torchrun` does it; how they ended."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    both = [forked.start(distributed.train, rank, port, model, out, wanted, LAUNCHES[how]) for rank in range(2)]
    for process in both:
        process.join(480)
    return [process.exitcode for process in both]


@pytest.fixture(scope="module")
def in_two(tiny, tmp_path_factory):
    """Every arm trained in two processes, by launch; the last one was killed."""
    made: dict[str, Path] = {}

    def of(how: str) -> Path:
        if how == "zero3" and find_spec("deepspeed") is None:
            pytest.skip("deepspeed is not installed")
        if how not in made:
            made[how] = tmp_path_factory.mktemp(how)
            ended = launched(tiny, made[how], how, [*WANTED[how], KILLED])
            assert ended == [-signal.SIGKILL] * 2, (made[how] / "said-0.txt").read_text()[-3000:]
        return made[how]

    return of


@pytest.fixture(scope="module")
def in_one(tiny, tmp_path_factory):
    """The same arm in this process, with micro-batches as small as those of the two processes."""
    out = tmp_path_factory.mktemp("one")

    def of(wanted: Wanted) -> tuple[Path, pd.DataFrame]:
        # KTO estimates its point of reference over the rows that all processes run at the same time.
        log = wanted.train(tiny, out, parts=1 if wanted.arm == "kto" else 2)
        return out / wanted.name, log

    return of


def weights(folder: Path, step: int, *, lora: bool = False) -> dict[str, torch.Tensor]:
    files = sorted((folder / f"step-{step:05d}").glob("*.safetensors"))
    if lora:
        assert [file.name for file in files] == ["adapter_model.safetensors"]
    else:
        assert len(files) > 1  # of the size that `max_shard_size` allows
    return {name: weight for file in files for name, weight in load_file(file).items()}


@pytest.mark.parametrize(
    ("how", "wanted"),
    [(how, each) for how, all_of in WANTED.items() for each in all_of],
    ids=lambda part: getattr(part, "name", part),
)
def test_two_processes_equal_one(tiny, in_two, in_one, how, wanted):
    both = in_two(how) / wanted.name
    one, log = in_one(wanted)
    two = training.read_log(both, "steps")
    for name in ("loss", "utility", "away", "toward", "attack_loss_before", "attack_loss_after"):
        if name not in log:
            continue
        assert two[name].tolist() == pytest.approx(log[name].tolist(), rel=FORWARD, nan_ok=True), name
    terms = [training.read_log(folder, "terms")[["step", "term", "value"]] for folder in (one, both)]
    pd.testing.assert_frame_equal(*terms, rtol=FORWARD, atol=FORWARD)
    if wanted.arm == "r2d2":
        pools = [training.CasePool.load(folder / "pool.parquet", source=None) for folder in (one, both)]
        assert [case.suffix_ids for case in pools[0].cases] == [case.suffix_ids for case in pools[1].cases]
        assert [case.forward_tokens for case in pools[0].cases] == [case.forward_tokens for case in pools[1].cases]
        refreshes = [training.read_log(folder, "refreshes")["case"].tolist() for folder in (one, both)]
        assert [sorted(cases) for cases in refreshes] == [sorted(refreshes[0])] * 2
    base = load_file(tiny / "model.safetensors")
    for step in (1, 3):
        expected, found = (weights(folder, step, lora=wanted.lora) for folder in (one, both))
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=2 * ROUNDED, rtol=FORWARD)
        if wanted.lora:
            assert any(weight.any() for name, weight in expected.items() if "lora_B" in name)
            models.load_causal_lm(both / f"step-{step:05d}")
        else:
            assert expected.keys() == base.keys()
            assert any(not torch.equal(expected[name], base[name]) for name in base)


@pytest.mark.parametrize("how", LAUNCHES)
def test_two_killed_processes_go_on_to_the_same_weights(tiny, in_two, how):
    out = in_two(how)
    assert (out / KILLED.name / "unfinished" / "checkpoint-1").is_dir()
    resumed = Wanted(KILLED.arm)
    (out / "resumed").mkdir()
    (out / KILLED.name).rename(out / "resumed" / resumed.name)
    assert launched(tiny, out / "resumed", how, [resumed]) == [0, 0], (out / "resumed/said-0.txt").read_text()[-3000:]
    for step in (1, 3):
        found, expected = (weights(folder / resumed.name, step) for folder in (out / "resumed", out))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    pools = [training.CasePool.load(f / resumed.name / "pool.parquet", source=None) for f in (out / "resumed", out)]
    assert [case.suffix_ids for case in pools[0].cases] == [case.suffix_ids for case in pools[1].cases]
    assert [case.history for case in pools[0].cases] == [case.history for case in pools[1].cases]
    assert torch.equal(*(pool.generator.get_state() for pool in pools))


def test_sharded_anchors_are_ordinary_checkpoints(tiny, in_two):
    folder = in_two("fsdp2") / R2D2.name / "step-00003"
    checkpoint = models.Checkpoint.open(folder)
    model, _ = models.load_causal_lm(checkpoint)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (folder / "config.json").read_text() == (in_two("ddp") / R2D2.name / "step-00003/config.json").read_text()
