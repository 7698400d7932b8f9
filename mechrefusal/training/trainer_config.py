"""What the trainers of TRL are told in the same words, whichever of them an arm is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig

from mechrefusal.devices import has_gpu
from mechrefusal.errors import MechrefusalError
from mechrefusal.training.settings import TrainingSettings

OF_SFT = {
    "max_length": None,  # rows are cut when they are made
    "dataset_kwargs": {"skip_prepare_dataset": True},
}
"""Arguments that SFTConfig has beside those of all configs of TRL."""


@dataclass(frozen=True)
class Shares:
    """The micro-batches of a training, as `data.micro_batches` takes them: how many, and the rows of each."""

    steps: int
    utility_each: int
    harmful_each: int


def lora_config(settings: TrainingSettings) -> LoraConfig | None:
    """The adapters of a training, as PEFT is told them; None where all weights are trained."""
    lora = settings.lora
    if lora is None:
        return None
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )


def config_arguments(settings: TrainingSettings, state: Path) -> dict[str, Any]:
    """Arguments of TRL's config: all that it would report, save or print by itself is off."""
    return {
        "output_dir": str(state),
        "max_steps": settings.steps,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler,
        "warmup_steps": settings.warmup_steps,
        "optim": "adamw_torch_fused",
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.bf16,
        "use_cpu": not has_gpu(),  # else bf16 is refused on a CPU
        "gradient_checkpointing": settings.gradient_checkpointing,
        "seed": settings.seed,
        "train_sampling_strategy": "sequential",  # the dataset is in the order of the steps
        "dataloader_pin_memory": has_gpu(),
        "router_aux_loss_coef": 0.0,  # experts are not balanced: arms differ in their own terms, rows share tokens
        "average_tokens_across_devices": True,
        "ddp_find_unused_parameters": False,
        "use_cache": True,  # only what the saved config says; TRL trains without
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # the callback `States` says when
        "save_total_limit": 2,  # the one before, should the last step have gone wrong
        "eval_strategy": "no",
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
    }


def share(n: int, parts: int, name: str) -> int:
    """The part of `n` rows of a step that each of its micro-batches has; `name` is what errors call them."""
    if n % parts:
        raise MechrefusalError(
            f"{name} is {n}, which {parts} micro-batches cannot share evenly: give a multiple of "
            "gradient_accumulation x processes"
        )
    return n // parts
