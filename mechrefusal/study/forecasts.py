"""What a recipe will take, before anything runs: parameters, memory by device, forward tokens, operations and time.

    import mechrefusal as mr

    mr.study.plan("demo")
    mr.study.plan("demo", model="mistralai/Mistral-7B-v0.1", devices=8, device_memory="80GiB", flops=400e12)

Only the model's config and tokenizer are read, no weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mechrefusal import devices as machine
from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.models import load_config
from mechrefusal.models.capacity import HookedSize
from mechrefusal.models.library_output import quiet
from mechrefusal.models.sources import fetch, is_local, outline_from_hub
from mechrefusal.models.weights import first_line
from mechrefusal.study.calibrating import Speed, calibrated, flops_of
from mechrefusal.study.forecast_counts import Counting, Work
from mechrefusal.study.loader import load_recipe
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.selection import choose_prompts

GIB = 2**30
PROCESS = 0.45 * GIB
"""Memory of a process with its libraries, before it opens a model."""
LOADED = 17.0
"""Numbers that are copied for each parameter while a hooked transformer is made and tried out."""
STATES = 16
"""Bytes of a parameter in training: float32 weights, gradients, and Adam's two moments."""
TRAINED_AT_ONCE = 600
"""Tokens of a step whose activations are kept, at the built-in lengths and 11 rows; in proportion to the rows."""
READING = 0.5 * GIB
"""Logits and activations of one pass of a measurement."""


@dataclass(frozen=True)
class _Size:
    """A model by its outline."""

    parameters: int
    flops: float
    width: int
    inner: int
    n_layers: int
    vocab: int
    hooked: HookedSize

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_Size":
        """Of a model on the meta device."""
        config, weights = model.config.get_text_config(), set(model.parameters())
        return cls(
            sum(weight.numel() for weight in weights),
            flops_of(model),
            config.hidden_size,
            getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            config.num_hidden_layers,
            config.vocab_size,
            HookedSize.of({name: weight.shape for name, weight in model.named_parameters()}),
        )


def plan(
    recipe: str | Path | Recipe,
    *,
    model: str | Path = "",
    devices: int = 0,
    device_memory: str | int | None = None,
    flops: float | None = None,
) -> pd.DataFrame:
    """Table `plan`: a row a stage of the recipe, with its memory and its expected time.

    Args:
        recipe: packaged, a file, or the recipe itself.
        model: folder or hub name whose config and tokenizer stand for the recipe's model.
        devices: GPUs that the work is spread over; 0: those of this machine, or its processor.
        device_memory: of each, such as "80GiB"; by default what is free now.
        flops: operations a second at the peak of each, such as 400e12; by default what a calibration finds here, which
            takes some seconds.

    Raises:
        MechrefusalError: no such recipe or model, a config that transformers does not know, or values that cannot be.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if devices < 0 or (flops is not None and not flops > 0):
        raise MechrefusalError(f"devices is {devices} and flops {flops}: give numbers above 0, or leave them out")
    folder = _outline(str(model) or recipe.model)
    config = load_config(folder)
    with quiet(), torch.device("meta"):
        size = _Size.of(AutoModelForCausalLM.from_config(config))
    stored = str(getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None))
    dtype = recipe.placement.torch_dtype(stored_in_16_bits=stored in ("torch.bfloat16", "torch.float16"))
    here = recipe.placement.first_device() if not devices else machine.HOST
    speed = Speed.of_peak(flops) if flops else calibrated(config, device=here, dtype=dtype)
    room = machine.bytes_of(device_memory) if device_memory else machine.free_bytes(here)
    n = devices or max(1, len(machine.gpus()))
    on_host = not devices and machine.is_host(here)
    counting = Counting(
        recipe, choose_prompts(recipe), _tokenizer(folder, recipe), n_layers=size.n_layers,
        n_heads=config.get_text_config().num_attention_heads,
    )  # fmt: skip
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


def _rows(
    recipe: Recipe, counting: Counting, size: _Size, speed: Speed, dtype: torch.dtype, *, n_devices: int, process: float
) -> Iterator[dict[str, Any]]:
    checkpoints = (
        len(recipe.arms) * len(recipe.training.arm_anchors) + bool(recipe.model) + bool(recipe.training.warm_up)
    )
    checkpoints += sum(map(len, recipe.checkpoints.values()))
    for stage, work in counting.training() if recipe.arms else ():
        memory = _while_training(recipe, size) / n_devices + process
        yield _row(stage, 1, work, size, speed, memory, n_devices)
    spread = n_devices if recipe.placement.device_map is not None else 1
    weights = size.parameters * dtype.itemsize
    opening = size.hooked.lasting(dtype) / spread + size.hooked.passing() + process
    at_once = max(1, min(checkpoints, n_devices // spread))
    load = _row("load", checkpoints, Work(), size, speed, opening, at_once)
    yield load | {"seconds": checkpoints * LOADED * size.parameters / speed.copied / at_once}
    for stage, work in counting.stages():
        yield _row(stage, checkpoints, work, size, speed, max(opening, weights / spread + READING + process), at_once)
    for stage in counting.uncounted():
        row = _row(stage, checkpoints, Work(), size, speed, opening, at_once)
        yield row | dict.fromkeys(("forward_tokens", "flops", "seconds"), nan)


def _row(stage: str, times: int, work: Work, size: _Size, speed: Speed, memory: float, at_once: int) -> dict[str, Any]:
    head = 2.0 * size.vocab * size.width
    a_token = size.flops - head
    packed = work.tokens * a_token + work.logits * head
    generated, backward = work.generated * size.flops, 3 * work.backward * size.flops
    seconds = packed / speed.packed + generated / speed.generated + backward / speed.backward
    return {
        "stage": stage,
        "times": times,
        "memory_gib": memory / GIB,
        "forward_tokens": times * (work.tokens + work.generated + work.backward),
        "flops": times * (packed + generated + backward),
        "seconds": times * seconds / at_once,
    }


def _while_training(recipe: Recipe, size: _Size) -> float:
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
        return "not counted yet: its time comes beside" if isnan(row["seconds"]) else ""
    remedy = (
        "training.lora, gradient_checkpointing" if row["stage"].startswith("train") else "dtype bfloat16, device_map"
    )
    return f"will not fit: {row['memory_gib']:.1f} of {room / GIB:.1f} GiB; more or larger devices, or {remedy}"
