"""The matched arms of a study: the same rows of utility, in the same order, for the same number of steps."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from peft import PeftModel
from transformers import PrinterCallback

from mechrefusal import progress, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file
from mechrefusal.memory import kept_memory
from mechrefusal.models import Checkpoint, load_causal_lm
from mechrefusal.models.library_output import quiet
from mechrefusal.prompts import PromptSet
from mechrefusal.training import resuming
from mechrefusal.training.adapters import require_linear
from mechrefusal.training.anchors import anchor_folder, is_anchor
from mechrefusal.training.arm import Arm
from mechrefusal.training.arm_training import ArmTraining
from mechrefusal.training.callbacks import Anchors, Probe, Probes, States, StepLog
from mechrefusal.training.guide_settings import GuideSettings
from mechrefusal.training.guides import freeze, require_guidable
from mechrefusal.training.losses import Term, TokenLoss
from mechrefusal.training.registry import arm_named
from mechrefusal.training.settings import TrainingSettings
from mechrefusal.training.sharding import loaded_for_training, loading_whole, require_same_setting
from mechrefusal.training.trainer_setup import ArmInputs, TrainerSetup


@kept_memory()
def train(
    arm: str | Arm,
    *,
    base: Checkpoint,
    utility: Sequence[dict[str, Any]],
    behaviours: PromptSet,
    out: Path | str,
    settings: TrainingSettings,
    arm_settings: Any = None,
    guide: GuideSettings | None = None,
    losses: Mapping[str, TokenLoss | Term] | None = None,
    probe: Probe | None = None,
    start: int = 0,
    name: str = "",
) -> pd.DataFrame:
    """Train one arm from `base` and write its anchors to `<out>/step-00050` and so on.

    All arms see the same utility rows at every step. `sft` adds static refusals (behaviour, no suffix, refusal) to the
    rows; `r2d2` adds the terms of `R2D2Trainer` on attacked cases instead, and leaves its pool in `<out>/pool.parquet`;
    what others add is in their files. The same seed and number of threads give the same weights to the last bit on a
    CPU.

    A training that was stopped goes on from its last checkpoint in `<out>/unfinished`, and ends in the same weights as
    one that was not. `<out>/log` holds the tables steps, terms, refreshes and probes.

    Args:
        utility: harmless conversations with the keys `prompt` and `answer`, and `finished` (False: the answer was
            cut, so that its end is not learnt).
        behaviours: what is to be refused; `r2d2` attacks each toward its `target`.
        arm: its name, or an `Arm` of one's own.
        arm_settings: the arm's own settings, such as `R2D2Settings`; by default the published ones.
        guide: where the arm is to put refusal; see `GuideSettings`.
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
    method = arm_named(arm) if isinstance(arm, str) else arm
    own = method.settings() if arm_settings is None else arm_settings
    if not isinstance(own, method.settings):
        raise MechrefusalError(
            f"arm '{method.name}' was given settings of {type(own).__name__}: give {method.settings.__name__}"
        )
    if method.check is not None:
        method.check(own, settings, behaviours)
    inputs = ArmInputs(method, base, utility, behaviours, settings, own, losses, start, guide)
    out, name, fingerprint = Path(out), name or method.name, inputs.fingerprint()
    anchors = [anchor_folder(out, start + step) for step in settings.anchors if step > 0]
    if resuming.is_complete(out, fingerprint) and all(map(is_anchor, anchors)):
        return read_log(out, "steps")
    checkpoint = resuming.checkpoint_to_resume(out, fingerprint)
    log = StepLog(name, settings.steps, start)
    probes = Probes(probe, name, out / resuming.LOG, settings.anchors, start)
    trainer = _trainer(inputs, out, log, probes)
    if settings.tree is None and not trainer.tree and (reason := trainer.tree_trouble()):
        progress.console.print(f"{name}: rows are run by TRL's own loss, {reason}", soft_wrap=True)
    if checkpoint is not None:
        require_same_setting(trainer, Path(checkpoint))
    elif trainer.is_world_process_zero():
        resuming.note_unfinished(out, fingerprint)
    # The bar is drawn on stderr, so only stdout is silenced from here on.
    with progress.bar(f"train {name}", settings.steps) as bar, quiet(stderr=False):
        log.bar = bar
        trainer.train(resume_from_checkpoint=checkpoint)
    steps = log.table(trainer.state.log_history)
    if trainer.is_world_process_zero():
        refreshes = [{**row, "arm": name, "step": row["step"] + start} for row in trainer.refreshes]
        weights = dict.fromkeys(method.logs, math.nan) | trainer.weights_of_terms()
        terms = log.terms(trainer.state.log_history, weights)
        logs = {"steps": steps, "terms": terms, "refreshes": tables.frame("refreshes", refreshes)}
        for table, rows in logs.items():
            with whole_file(out / resuming.LOG / f"{table}.parquet") as draft:
                rows.to_parquet(draft, index=False)
        trainer.save_results(out)
        resuming.note_complete(out, fingerprint)
    trainer.accelerator.wait_for_everyone()
    return steps


def _trainer(inputs: ArmInputs, out: Path, log: StepLog, probes: Probes) -> ArmTraining:
    """The trainer of an arm, ready to train from its first step or to go on."""
    base, settings, state = inputs.base, inputs.settings, out / resuming.STATE
    with resuming.empty_folder_removed(state), quiet():
        with loading_whole():
            model, tokenizer = load_causal_lm(base, **loaded_for_training())
        if inputs.guide is not None:
            require_guidable(inputs.guide, settings)
            freeze(model, inputs.guide.freeze)
        merged = settings.lora is not None and settings.lora.merged
        how: dict[str, Any] = {"base": base.path, "merged": merged, "max_shard_size": settings.max_shard_size}
        anchors = Anchors(out, settings.anchors, tokenizer, inputs.start, **how)
        callbacks = [log, anchors, probes, States(settings.anchors, settings.save_every)]
        try:
            trainer = inputs.arm.trainer(TrainerSetup(inputs, model, tokenizer, state, callbacks))
        except ValueError as error:
            if settings.lora is None or isinstance(error, MechrefusalError):
                raise
            raise MechrefusalError(f"lora cannot be set up: {' '.join(str(error).split())[:300]}") from error
        anchors.trainer = probes.trainer = trainer
    if settings.tree is None:
        trainer.decide_tree()
    trainer.remove_callback(PrinterCallback)
    if isinstance(trainer.model, PeftModel):
        require_linear(trainer.model)
    return trainer


def read_log(out: Path | str, name: str) -> pd.DataFrame:
    """Table `name` (steps, terms, refreshes, probes) of the arm in `out`; without rows where it was not made."""
    path = Path(out) / resuming.LOG / f"{name}.parquet"
    return pd.read_parquet(path) if path.is_file() else pd.DataFrame()
