"""What a recipe will take, before anything runs: parameters, memory by device, forward tokens, operations and time.

    import mechrefusal as mr

    mr.study.plan("demo")
    mr.study.plan("demo", model="mistralai/Mistral-7B-v0.1", devices=8, device_memory="80GiB", flops=400e12)

Only the model's config and tokenizer are read, no weights.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechrefusal import devices as machine
from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.paired import BASE
from mechrefusal.memory import USUAL
from mechrefusal.models import Checkpoint, load_config
from mechrefusal.models.library_output import quiet
from mechrefusal.models.sources import fetch, is_local, outline_from_hub
from mechrefusal.models.weights import first_line
from mechrefusal.study.calibrating import Speed, calibrated
from mechrefusal.study.forecast_counts import AT_A_CHECKPOINT, BETWEEN, asked
from mechrefusal.study.forecast_training import training
from mechrefusal.study.forecast_work import Counting, Size, Work
from mechrefusal.study.loader import load_recipe
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.selection import choose_prompts
from mechrefusal.training import WARM_UP

GIB = 2**30
PROCESS = 0.55 * GIB
"""Memory of a process with its libraries."""
STATES = 16
"""Bytes of a parameter in training: float32 weights, gradients, and Adam's two moments."""
TRAINED_AT_ONCE = 600
"""Tokens of a step whose activations are kept, at the built-in lengths and 11 rows; in proportion to the rows."""
BESIDE = {"harmful fine-tuning": STATES + 4, "spectrum of the update": 3 * 4}
"""Bytes of a parameter that a stage holds in float32 beside the model that is measured: states of training and what is
put back; of an update the weights before, those after, and a copy of them."""
IN_FLOAT64 = ("attribution",)
"""Stages that hold the output matrix in float64."""
LEFT = 0.5
"""Share of its small float32 matrices that a hooked transformer which was made leaves behind on a host: copies between
blocks that are still in use. Larger ones are given back at once (`memory`), and these by `GIVING_BACK`."""
GIVING_BACK = "harmful fine-tuning"
"""The stage after which nothing of them is left, as it gives back all memory that it kept."""
TWO_OPEN = ("cross patching", "lockstep patching")
"""Stages in which a model is opened while another is open."""


def plan(
    recipe: str | Path | Recipe,
    *,
    model: str | Path = "",
    devices: int = 0,
    device_memory: str | int | None = None,
    flops: float | None = None,
    speed: Speed | None = None,
) -> pd.DataFrame:
    """Table `plan`: a row a stage of the recipe, with its memory and its expected time.

    Args:
        recipe: packaged, a file, or the recipe itself.
        model: folder or hub name whose config and tokenizer stand for the recipe's model.
        devices: GPUs that the work is spread over; 0: those of this machine, or its processor.
        device_memory: of each, such as "80GiB"; by default what is free now.
        flops: operations a second at the peak of each, such as 400e12; by default what a calibration finds here, which
            takes some seconds.
        speed: what such a calibration found before (`calibrating.calibrated`), in place of another one.

    Raises:
        MechrefusalError: no such recipe or model, a config that transformers does not know, or values that cannot be.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if devices < 0 or (flops is not None and not flops > 0):
        raise MechrefusalError(f"devices is {devices} and flops {flops}: give numbers above 0, or leave them out")
    folder = _outline(str(model) or recipe.model)
    config = load_config(folder)
    with quiet(), torch.device("meta"):
        size = Size.of(AutoModelForCausalLM.from_config(config))
    stored = str(getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None))
    in_16_bits = stored in ("torch.bfloat16", "torch.float16")
    dtype = recipe.placement.torch_dtype(stored_in_16_bits=in_16_bits)
    here = recipe.placement.first_device() if not devices else machine.HOST
    if speed is None:
        speed = Speed.of_peak(flops) if flops else calibrated(config, device=here, dtype=dtype)
    room = machine.bytes_of(device_memory) if device_memory else machine.free_bytes(here)
    n = devices or max(1, len(machine.gpus()))
    on_host = not devices and machine.is_host(here)
    kind = machine.HOST if on_host else machine.GPU
    counting = Counting(
        recipe,
        choose_prompts(recipe),
        _tokenizer(folder, recipe),
        size,
        tokens_at_once=machine.at_once(kind, machine.TOKENS_AT_ONCE),
        patched_at_once=machine.at_once(kind, machine.PATCHED_TOKENS_AT_ONCE),
        checkpoints=tuple(_checkpoints(recipe)),
        stored=2 if in_16_bits else 4,
    )
    where = str(here) if not devices else f"{devices} devices"
    shared = {"device": where, "parameters": size.parameters, "available_gib": room / GIB}
    rows = [
        {**row, **shared, "fits": row["memory_gib"] * GIB <= room, "note": _note(row, room)}
        for row in _rows(recipe, counting, size, speed, dtype, n_devices=n, process=PROCESS if on_host else 0.0)
    ]
    return tables.frame("plan", pd.DataFrame(rows))


def _outline(name: str) -> Path:
    """A folder with the config and the tokenizer of a model; weights are not fetched for it."""
    if not name:
        raise MechrefusalError("the recipe names no model: say with model whose config is meant")
    return fetch(name) if is_local(name) and not Path(name).expanduser().is_dir() else outline_from_hub(name)


def _tokenizer(folder: Path, recipe: Recipe) -> Any:
    """The tokenizer of a folder that may hold no weights."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise MechrefusalError(f"'{folder}' has no tokenizer that can be loaded ({first_line(error)})") from error
    recipe.chat.apply(tokenizer)
    return tokenizer


def _checkpoints(recipe: Recipe) -> Iterator[Checkpoint]:
    """What will be measured, before any of it is there; a folder that is given may turn out to hold several."""
    nowhere = Path()
    if recipe.model:
        yield Checkpoint(BASE, 0, nowhere, "")
    if recipe.arms and recipe.training.warm_up:
        yield Checkpoint(WARM_UP, recipe.training.warm_up, nowhere, "")
    for arm in recipe.arms:
        yield from (Checkpoint(arm, step, nowhere, "") for step in recipe.training.arm_anchors)
    for arm, sources in recipe.checkpoints.items():
        yield from (Checkpoint(arm, step, nowhere, "") for step in range(1, len(sources) + 1))


def _rows(
    recipe: Recipe, counting: Counting, size: Size, speed: Speed, dtype: torch.dtype, *, n_devices: int, process: float
) -> Iterator[dict[str, Any]]:
    n = len(counting.checkpoints)
    for stage, work in training(counting) if recipe.arms else ():
        memory = _while_training(recipe, size) / n_devices + process
        yield _row(stage, 1, work, size, speed, memory, n_devices)
    spread = n_devices if recipe.placement.device_map is not None else 1
    opening = size.opening.lasting(dtype) / spread + size.opening.passing() + process
    at_once = max(1, min(n, n_devices // spread))
    yield _row("load", n, counting.opening, size, speed, opening, at_once)
    small = (4 * rows * columns for rows, columns in size.matrices)
    hooked = size.hooked * dtype.itemsize / spread
    left = LEFT * sum(each for each in small if each < USUAL) if process else 0.0
    for stage, work in asked(counting, AT_A_CHECKPOINT):
        beside = BESIDE.get(stage, 0) * size.parameters + 8 * size.vocab * size.width * (stage in IN_FLOAT64)
        yield _row(stage, n, work, size, speed, hooked + left + beside + _in_a_pass(work, size) + process, at_once)
        if stage == GIVING_BACK:
            left = 0.0
    for stage, work in asked(counting, BETWEEN):
        memory = opening + hooked * (stage in TWO_OPEN)
        if stage in BESIDE:
            memory = BESIDE[stage] * size.parameters + _in_a_pass(work, size) + process
        yield _row(stage, 1, work, size, speed, memory, at_once if stage == "transfer" else 1)


def _in_a_pass(work: Work, size: Size) -> float:
    """Bytes of the activations and logits of the largest pass; logits in float32, and once more in float64."""
    activations = 4 * work.tokens_at_once * (6 * size.width + 3 * size.inner)
    kept = 4 * work.backward_at_once * (14 * size.width + 4 * size.inner) * size.n_layers
    return activations + kept + 12 * work.logits_at_once * size.vocab


def _row(stage: str, times: int, work: Work, size: Size, speed: Speed, memory: float, at_once: int) -> dict[str, Any]:
    head = 2.0 * size.vocab * size.width
    a_token, a_pair = size.flops - head, 4.0 * size.width * size.n_layers
    forward = (work.tokens + work.generated) * a_token + work.attended * a_pair + work.logits * head
    backward = 3 * work.backward * a_token
    return {
        "stage": stage,
        "times": times,
        "memory_gib": memory / GIB,
        "forward_tokens": times * (work.tokens + work.generated + work.backward),
        "flops": times * (forward + backward + work.decomposed),
        "seconds": times * speed.seconds(work, a_token, a_pair, head, size.n_layers) / at_once,
    }


def _while_training(recipe: Recipe, size: Size) -> float:
    """Bytes of a training step: weights with gradients and moments, activations, and logits with their gradients."""
    settings = recipe.training
    rows = max(
        (settings.warm_up_utility_per_step or settings.utility_per_step)
        + (settings.warm_up_harmful_per_step or settings.harmful_per_step)
        if settings.warm_up
        else 0,
        settings.utility_per_step + settings.harmful_per_step,
    )
    tokens = TRAINED_AT_ONCE * rows / 11
    width = 2 if settings.bf16 else 4
    kept = size.width if settings.gradient_checkpointing else 14 * size.width + 4 * size.inner
    states = size.parameters * (STATES if settings.lora is None else width + 0.5)
    return states + tokens * (width * kept * size.n_layers + 3 * 4 * size.vocab)


def _note(row: dict[str, Any], room: float) -> str:
    if row["memory_gib"] * GIB <= room:
        return ""
    remedy = (
        "training.lora, gradient_checkpointing" if row["stage"].startswith("train") else "dtype bfloat16, device_map"
    )
    return f"will not fit: {row['memory_gib']:.1f} of {room / GIB:.1f} GiB; more or larger devices, or {remedy}"
