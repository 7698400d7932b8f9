"""The matched arms of a study: the same rows of utility, in the same order, for the same number of steps."""

import hashlib
import inspect
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig

from mechrefusal import progress, prompts, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.files import sweep, whole_file
from mechrefusal.memory import kept_memory
from mechrefusal.models import Checkpoint, load_causal_lm, loaded_files
from mechrefusal.models.library_output import quiet
from mechrefusal.models.model_files import GENERATION_CONFIG
from mechrefusal.prompts import PromptSet
from mechrefusal.training import data
from mechrefusal.training.anchors import anchor_folder, require_mergeable
from mechrefusal.training.callbacks import Anchors, Probe, Probes, States, StepLog
from mechrefusal.training.losses import Term, TokenLoss
from mechrefusal.training.pool import CasePool
from mechrefusal.training.r2d2 import POOL, REFRESHES, R2D2Config, R2D2Trainer
from mechrefusal.training.settings import ARMS, TrainingSettings
from mechrefusal.training.trainer import ArmTrainer

STATE, LOG, COMPLETE = "unfinished", "log", "complete.json"
"""Folders beside the anchors: the training checkpoint of an arm that is not complete, and its tables; in the latter,
the note that the arm is complete."""


@kept_memory()
def train(
    arm: str,
    *,
    base: Checkpoint,
    utility: Sequence[dict[str, Any]],
    behaviours: PromptSet,
    out: Path | str,
    settings: TrainingSettings,
    losses: Mapping[str, TokenLoss | Term] | None = None,
    probe: Probe | None = None,
    start: int = 0,
    name: str = "",
) -> pd.DataFrame:
    """Train one arm from `base` and write its anchors to `<out>/step-00050` and so on.

    Both arms see the same utility rows at every step. `sft` adds static refusals (behaviour, no suffix, refusal) to
    the rows; `r2d2` adds the terms of `R2D2Trainer` on attacked cases instead, and leaves its pool in
    `<out>/pool.parquet`. The same seed gives the same weights to the last bit on a CPU.

    A training that was stopped goes on from its last checkpoint in `<out>/unfinished`, and ends in the same weights as
    one that was not. `<out>/log` holds the tables steps, terms, refreshes and probes.

    Args:
        utility: harmless conversations with the keys `prompt` and `answer`, and `finished` (False: the answer was
            cut, so that its end is not learnt).
        behaviours: what is to be refused; `r2d2` attacks each toward its `target`.
        losses: loss terms by name: a pure function replaces the loss of a term, a `Term` replaces or adds one.
        probe: called with the model at step 0 and at every anchor; its rows, with arm and step, become `log/probes`.
        start: optimiser steps that `base` has behind it (a warm-up): anchors and logs count from there, `settings`
            (see `TrainingSettings.of_arm`) from 0. The optimiser begins anew.
        name: what tables and the progress bar call the arm, by default `arm`.

    Returns:
        The training log: table `training`, one row an optimiser step. Anchors are not in `seconds`.

    Raises:
        MechrefusalError: unknown arm, unusable rows or behaviours, an unfinished training of something else in `out`,
            or a training that diverged.
    """
    if arm not in ARMS:
        raise MechrefusalError(f"unknown arm '{arm}': expected one of {', '.join(ARMS)}")
    if not utility or not len(behaviours):
        raise MechrefusalError(
            f"arm '{arm}' has {len(utility)} utility rows and {len(behaviours)} behaviours: give both"
        )
    if settings.warm_up:
        raise MechrefusalError(
            f"arm '{arm}' was given a warm_up of {settings.warm_up} steps, which arms share: train "
            "settings.of_warm_up() first, then each arm with settings.of_arm() and start"
        )
    out, name = Path(out), name or arm
    state = out / STATE
    fingerprint = _fingerprint(arm, base, utility, behaviours, settings, losses, start)
    if (done := _finished(out, settings, fingerprint, start)) is not None:
        return done
    checkpoint = _checkpoint_to_go_on_from(state, fingerprint)
    log, probes = StepLog(name, settings.steps, start), Probes(probe, name, out / LOG, settings.anchors, start)
    with _empty_folder_removed(state), quiet():
        model, tokenizer = load_causal_lm(base)
        callbacks = [
            log,
            Anchors(out, settings.anchors, tokenizer, start, generation_config=_generation_config(base)),
            probes,
            States(settings.anchors, settings.save_every),
        ]
        try:
            trainer = _trainer(arm, model, tokenizer, base, utility, behaviours, settings, state, callbacks, losses)
        except ValueError as error:
            if settings.lora is None or isinstance(error, MechrefusalError):
                raise
            raise MechrefusalError(f"lora cannot be set up: {' '.join(str(error).split())[:300]}") from error
    if isinstance(trainer.model, PeftModel):
        require_mergeable(trainer.model)
    if settings.tree is None and not trainer.tree:
        progress.console.print(f"{name}: rows are run by TRL's own loss, {trainer.tree_trouble()}", soft_wrap=True)
    probes.trainer = trainer
    if trainer.is_world_process_zero() and checkpoint is None:
        with whole_file(state / "of.json") as draft:
            draft.write_text(json.dumps({"fingerprint": fingerprint}), encoding="utf-8")
    # The bar is drawn on stderr, so only stdout is silenced from here on.
    with progress.bar(f"train {name}", settings.steps) as bar, quiet(stderr=False):
        log.bar = bar
        trainer.train(resume_from_checkpoint=checkpoint)
    table = log.table(trainer.state.log_history)
    if trainer.is_world_process_zero():
        _write_log(out, table, log.terms(trainer.state.log_history, trainer.weights_of_terms()), trainer, start)
        with whole_file(out / LOG / COMPLETE) as draft:
            draft.write_text(json.dumps({"fingerprint": fingerprint}), encoding="utf-8")
        shutil.rmtree(state, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return table


def _generation_config(base: Checkpoint) -> Path | None:
    return next((path for path in loaded_files(base.path).settings if path.name == GENERATION_CONFIG), None)


@contextmanager
def _empty_folder_removed(folder: Path) -> Iterator[None]:
    """Transformers makes the folder of its checkpoints at once; where the rest fails it is not left behind."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it holds something, or is not there
            folder.rmdir()
        raise


def _fingerprint(
    arm: str,
    base: Checkpoint,
    utility: Sequence[dict[str, Any]],
    behaviours: PromptSet,
    settings: TrainingSettings,
    losses: Mapping[str, TokenLoss | Term] | None,
    start: int,
) -> str:
    shown = asdict(settings)
    # What changes no weight may change; the warm-up's settings have become those of the arm, or of the warm-up itself.
    not_told = {"save_every", "n_probe", "probe_tokens", *(name for name in shown if name.startswith("warm_up"))}
    shown = {name: value for name, value in shown.items() if name not in not_told}
    functions = {name: _identity(loss) for name, loss in sorted((losses or {}).items())}
    told = [arm, base.weights, list(utility), behaviours.ids, behaviours.texts, shown, functions, start]
    targets = behaviours.table["target"].tolist() if "target" in behaviours.table else []
    text = json.dumps([*told, targets], ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _identity(loss: TokenLoss | Term) -> list[Any]:
    """What tells a loss from another: its weight, and the name and source of its functions."""
    functions = [loss.loss, loss.row] if isinstance(loss, Term) else [loss]
    found: list[Any] = [loss.weight] if isinstance(loss, Term) else []
    for function in functions:
        try:
            source = inspect.getsource(function)  # type: ignore[arg-type]
        except (OSError, TypeError):
            source = ""
        found.append([getattr(function, "__qualname__", type(function).__name__), source])
    return found


def _finished(out: Path, settings: TrainingSettings, fingerprint: str, start: int) -> pd.DataFrame | None:
    """The log of an arm that is complete, its anchors with it; None where there is more to do."""
    note = out / LOG / COMPLETE
    anchors = [anchor_folder(out, start + step) for step in settings.anchors if step > 0]
    if not note.is_file() or not all((folder / "config.json").is_file() for folder in anchors):
        return None
    known = json.loads(note.read_text(encoding="utf-8")).get("fingerprint")
    return read_log(out, "steps") if known == fingerprint else None


def _checkpoint_to_go_on_from(state: Path, fingerprint: str) -> str | None:
    """The last training checkpoint in `state`; None where a training is to begin."""
    note = state / "of.json"
    if not note.is_file():
        shutil.rmtree(state, ignore_errors=True)
        return None
    sweep(state)
    try:
        known = json.loads(note.read_text(encoding="utf-8")).get("fingerprint")
    except ValueError:
        known = None
    if known != fingerprint:
        raise MechrefusalError(
            f"'{state}' holds an unfinished training of another model, other rows or other settings: go on with "
            "those, delete the folder, or give another one"
        )
    return get_last_checkpoint(str(state))


def _trainer(
    arm: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base: Checkpoint,
    utility: Sequence[dict[str, Any]],
    behaviours: PromptSet,
    settings: TrainingSettings,
    state: Path,
    callbacks: list[TrainerCallback],
    losses: Mapping[str, TokenLoss | Term] | None,
) -> ArmTrainer:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    keep = min(settings.max_length, limit or settings.max_length)
    rows = [
        data.conversation(
            tokenizer,
            row["prompt"],
            row["answer"],
            max_length=keep,
            name=f"utility row {place}",
            end_of_turn=row.get("finished", True),
        )
        for place, row in enumerate(utility)
    ]
    refusals = [
        data.conversation(tokenizer, text, settings.refusal, max_length=keep, name=f"behaviour '{id}'")
        for id, text in zip(behaviours.ids, behaviours.texts, strict=True)
    ]
    for id, text in zip(behaviours.ids, behaviours.texts, strict=True):
        length = len(prompts.segments(tokenizer, text, target=settings.refusal).ids)
        if length > keep:
            raise MechrefusalError(
                f"behaviour '{id}' with the refusal takes {length} tokens, more than the {keep} of max_length and the "
                "model's context: leave it out, or give a shorter refusal"
            )
    shared = _config_arguments(settings, state)
    adversarial = R2D2Config.fields_of(settings.r2d2) | {"refusal": settings.refusal, "tree": settings.tree}
    config = SFTConfig(**shared) if arm == "sft" else R2D2Config(**shared, **adversarial)
    # Several visible GPUs in one process would be used through DataParallel, with a multiple of the batch.
    config._n_gpu = min(config.n_gpu, 1)
    parts = settings.gradient_accumulation * config.world_size
    utility_each = _share(settings.utility_per_step, parts, "utility_per_step")
    harmful_each = _share(settings.harmful_per_step, parts, "harmful_per_step") if arm == "sft" else 0
    config.per_device_train_batch_size = utility_each + harmful_each
    arguments: dict[str, Any] = {
        "model": model,
        "args": config,
        "processing_class": tokenizer,
        "callbacks": callbacks,
        "losses": losses,
        "peft_config": _lora(settings),
        "train_dataset": data.dataset(
            rows,
            refusals,
            steps=settings.steps * parts,
            utility_each=utility_each,
            harmful_each=harmful_each,
            seed=settings.seed,
        ),
    }
    if arm == "sft":
        trainer = ArmTrainer(
            **arguments, utility_rows=utility_each, refusal_weight=settings.refusal_weight, tree=settings.tree
        )
    else:
        pool = CasePool.of(
            tokenizer,
            behaviours,
            settings.r2d2.gcg,
            size=settings.r2d2.pool_size,
            seed=settings.seed,
            source=f"{arm} from {base.weights}",
        )
        trainer = R2D2Trainer(**arguments, pool=pool)
    if settings.tree is None:
        trainer.decide_tree()
    trainer.remove_callback(PrinterCallback)
    return trainer


def _lora(settings: TrainingSettings) -> LoraConfig | None:
    if settings.lora is None:
        return None
    return LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=list(settings.lora.target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )


def _config_arguments(settings: TrainingSettings, state: Path) -> dict[str, Any]:
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
        "use_cpu": not torch.cuda.is_available(),  # else bf16 is refused on a CPU
        "gradient_checkpointing": settings.gradient_checkpointing,
        "seed": settings.seed,
        "max_length": None,  # rows are cut when they are made
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "train_sampling_strategy": "sequential",  # the dataset is in the order of the steps
        "dataloader_pin_memory": torch.cuda.is_available(),
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


def _share(n: int, parts: int, name: str) -> int:
    if n % parts:
        raise MechrefusalError(
            f"training {name} is {n}, which {parts} micro-batches cannot share evenly: give a multiple of "
            "gradient_accumulation x processes"
        )
    return n // parts


def _write_log(out: Path, steps: pd.DataFrame, terms: pd.DataFrame, trainer: ArmTrainer, start: int) -> None:
    arm, refreshes = steps["arm"].iloc[0], trainer.refreshes if isinstance(trainer, R2D2Trainer) else []
    rows = [{**row, "arm": arm, "step": row["step"] + start} for row in refreshes]
    made = {"steps.parquet": steps, "terms.parquet": terms, REFRESHES: tables.frame("refreshes", rows)}
    for name, table in made.items():
        with whole_file(out / LOG / name) as draft:
            table.to_parquet(draft, index=False)
    if isinstance(trainer, R2D2Trainer):
        trainer.pool.save(out / POOL)


def read_log(out: Path | str, name: str) -> pd.DataFrame:
    """Table `name` (steps, terms, refreshes, probes) of the arm in `out`; without rows where it was not made."""
    path = Path(out) / LOG / f"{name}.parquet"
    return pd.read_parquet(path) if path.is_file() else pd.DataFrame()
