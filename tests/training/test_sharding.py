"""Launches: which ones are refused before a step, the configs of the package, and what is asked of upstream."""

import inspect
from types import SimpleNamespace

import pytest
import yaml
from accelerate.commands import launch
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

from mechrefusal import MechrefusalError
from mechrefusal.training import TrainingSettings, sharding
from mechrefusal.training.launches import LAUNCHES, accelerate_config
from mechrefusal.training.losses import UTILITY, Reads, Term
from mechrefusal.training.pairs import Pair
from mechrefusal.training.preference_trainers import kto_rows
from mechrefusal.training.term_passes import TermPasses

FSDP2 = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "activation_checkpointing": False}


def trainer(*, precision: str = "no", bf16: bool = False, fsdp: dict | None = None, deepspeed: bool = False):
    """What is asked of a trainer."""
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(**FSDP2 | fsdp) if fsdp is not None else None)
    return SimpleNamespace(
        args=SimpleNamespace(bf16=bf16, fp16=False),
        accelerator=SimpleNamespace(mixed_precision=precision, state=state),
        is_fsdp_enabled=fsdp is not None,
        is_deepspeed_enabled=deepspeed,
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fsdp": {"fsdp_version": 1}}, "FSDP 1.*set fsdp_version: 2.*mechrefusal accelerate fsdp2"),
        ({"fsdp": {"cpu_ram_efficient_loading": True}}, "fsdp_cpu_ram_efficient_loading.*set it to false"),
        ({"fsdp": {"activation_checkpointing": True}}, "fsdp_activation_checkpointing.*gradient_checkpointing to true"),
        ({"precision": "bf16"}, "mixed_precision bf16, and training bf16 is False: leave mixed_precision out"),
        ({"precision": "no", "bf16": True}, "mixed_precision no, and training bf16 is True"),
    ],
)
def test_launches_that_no_arm_can_be_trained_under_are_refused(given, said):
    with pytest.raises(MechrefusalError, match=said):
        sharding.require_usable(trainer(**given))


@pytest.mark.parametrize("given", [{}, {"fsdp": {}}, {"precision": "bf16", "bf16": True}])
def test_others_are_not(given):
    sharding.require_usable(trainer(**given))


def test_a_training_goes_on_under_the_launch_that_it_was_begun_with(tmp_path):
    plain, shared = tmp_path / "plain", tmp_path / "shared"
    plain.mkdir()
    (shared / "pytorch_model_fsdp_0").mkdir(parents=True)
    sharding.require_same_setting(trainer(), plain)
    sharding.require_same_setting(trainer(fsdp={}), shared)
    with pytest.raises(MechrefusalError, match="is of a training under FSDP, and this launch trains with whole"):
        sharding.require_same_setting(trainer(), shared)
    with pytest.raises(MechrefusalError, match="with whole weights in each process, and this launch trains under FSDP"):
        sharding.require_same_setting(trainer(fsdp={}), plain)


@pytest.mark.parametrize("n", [1, 4, 8])
@pytest.mark.parametrize("name", LAUNCHES)
def test_accelerate_reads_the_configs(name, n, monkeypatch):
    words = ["--config_file", str(accelerate_config(name)), "--num_processes", str(n), "-m", "mechrefusal", "train"]
    args, defaults, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    assert (args.num_processes, args.mixed_precision, args.training_script) == (n, "no", "mechrefusal")
    assert (args.use_fsdp, args.use_deepspeed, args.multi_gpu) == (name == "fsdp2", name == "zero3", name == "ddp")
    assert set(yaml.safe_load(accelerate_config(name).read_text())) <= {*vars(defaults), "main_training_function"}
    if name == "fsdp2":
        said = prepare_multi_gpu_env(args)
        told = {key: said[f"FSDP_{key}"] for key in ("VERSION", "RESHARD_AFTER_FORWARD", "STATE_DICT_TYPE")}
        assert told == {"VERSION": "2", "RESHARD_AFTER_FORWARD": "true", "STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
    if name == "zero3":
        args.deepspeed_fields_from_accelerate_config = ""
        _, said = prepare_deepspeed_cmd_env(args)
        assert said["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
        assert said["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"


def test_terms_that_read_activations_are_refused_under_zero3():
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    zero3 = SimpleNamespace(
        terms=[Term("rerouting", lambda hidden: hidden, reads=Reads((1,)))],
        args=SimpleNamespace(gradient_checkpointing=False),
        accelerator=SimpleNamespace(state=state),
        is_fsdp_enabled=False,
    )
    with pytest.raises(MechrefusalError, match=r"'rerouting' reads or changes activations.*ZeRO-3.*accelerate fsdp2"):
        TermPasses(zero3, None)
    zero3.terms = [UTILITY]
    assert TermPasses(zero3, None).in_lockstep


def test_models_are_loaded_whole_whatever_deepspeed_was_told():
    from transformers.integrations import deepspeed

    class Told:
        config = ("stage 3",)

    told = Told()
    deepspeed.set_hf_deepspeed_config(told)
    try:
        with sharding.loading_whole():
            assert deepspeed.deepspeed_config() is None
        assert deepspeed._hf_deepspeed_config_weak_ref() is told
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_several_processes_load_to_the_host(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert sharding.loaded_for_training()["device"] == "auto"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sharding.loaded_for_training() | {"device": "cpu", "dtype": "float32"} == sharding.loaded_for_training()


def test_a_config_that_is_not_there_is_named():
    with pytest.raises(MechrefusalError, match="no accelerate config 'fsdp': did you mean 'fsdp2'"):
        accelerate_config("fsdp")


def test_what_is_worked_around_upstream_is_still_as_it_was():
    """Fails where accelerate shards on CPUs itself, so that `shard_on_cpu` can go; where torch renames its parts."""
    source = inspect.getsource(AcceleratorState.__init__)
    branch = source[source.index("elif self.distributed_type in [") : source.index("]:", source.index("elif self.dis"))]
    assert "DistributedType.MULTI_XPU" in branch
    assert "DistributedType.MULTI_CPU" not in branch, "accelerate takes FSDP on a CPU now: remove sharding.shard_on_cpu"
    for name in ("unshard", "reset_iter_state", "set_reshard_after_forward", "set_reshard_after_backward"):
        assert hasattr(FSDPModule, name), name
    assert "_fsdp_param_groups" in inspect.getsource(FSDPState.__init__)
    assert hasattr(FSDPState, "_lazy_init")
    assert "post_forward_mesh_info" in inspect.getsource(FSDPParamGroup.__init__)


def test_processes_estimate_kto_on_the_rows_that_one_would():
    pairs = [Pair([n], [10 + n], [20 + n]) for n in range(12)]
    halves = [(pairs[n : n + 2], [pairs[n + 2]]) for n in range(0, 12, 3)]
    wholes = [
        (first[0] + second[0], first[1] + second[1]) for first, second in zip(halves[::2], halves[1::2], strict=True)
    ]
    of_two, of_one = kto_rows(halves, n_processes=2), kto_rows(wholes, n_processes=1)
    assert [len(column) for column in of_two.values()] == [24] * 4

    def rows(columns: dict) -> list:
        return list(zip(*columns.values(), strict=True))

    for step in (slice(0, 12), slice(12, 24)):
        assert sorted(rows(of_two)[step]) == sorted(rows(of_one)[step])
    assert rows(of_two) != rows(kto_rows(halves, n_processes=1))


@pytest.mark.parametrize("size", ["", "5", "GB", "0GB", "5 GB", "-1GB"])
def test_sizes_of_files_are_sizes(size):
    with pytest.raises(MechrefusalError, match=r"max_shard_size is .*such as 5GB"):
        TrainingSettings(max_shard_size=size)
