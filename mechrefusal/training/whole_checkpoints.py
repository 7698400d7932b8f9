"""Training checkpoints that are written whole or not at all, for any trainer of TRL, and nothing that it publishes."""

import errno
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from mechrefusal.files import whole_folder
from mechrefusal.training.finite import require_finite_weights


class WholeCheckpoints(Trainer):
    """A trainer whose checkpoints are whole: what is killed while it writes one goes on from the one before.

    It stands before a trainer of TRL among the bases of a class.
    """

    def save_state(self, folder: Path) -> None:
        """Add what this trainer needs to the checkpoint in `folder`, before it is whole. One process calls it."""

    def load_state(self, folder: Path) -> None:
        """Take up what `save_state` left in `folder`. Every process calls it, before its first step."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Transformers' checkpoint; older ones go when it is there."""
        kept = self.args.output_dir
        final = Path(kept) / f"checkpoint-{self.state.global_step}"
        main = self.is_world_process_zero()
        with whole_folder(final) if main else nullcontext(Path()) as own_draft:
            # Every process writes its random state into the folder of the first one.
            draft = Path(broadcast_object_list([str(own_draft)])[0])
            self.args.output_dir = str(draft)
            try:
                require_finite_weights(self.model, self.state.global_step)
                super()._save_checkpoint(model, trial)
            except RuntimeError as error:
                if "inline_container" in str(error):  # how torch says that a file could not be written
                    raise OSError(errno.ENOSPC, "the training checkpoint could not be written", str(final)) from error
                raise
            finally:
                self.args.output_dir = kept
            self.accelerator.wait_for_everyone()
            if main:
                written = draft / final.name
                self.save_state(written)
                if self.state.best_model_checkpoint == str(written):
                    self.state.best_model_checkpoint = str(final)
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))
                torch.save(self.args, written / TRAINING_ARGS_NAME)
                for entry in list(written.iterdir()):
                    entry.rename(draft / entry.name)
                written.rmdir()
        if main:
            self._rotate(Path(kept), final)
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str) -> None:
        """Transformers' part, which is last of what goes on in every launch, then this trainer's own."""
        super()._load_optimizer_and_scheduler(checkpoint)
        self.load_state(Path(checkpoint))

    def _rotate(self, folder: Path, newest: Path) -> None:
        kept = {newest, Path(self.state.best_model_checkpoint or newest)}
        others = sorted((p for p in folder.glob("checkpoint-*") if p not in kept), key=lambda p: p.stat().st_mtime)
        if limit := self.args.save_total_limit:
            for old in others[: max(0, len(others) + len(kept) - max(limit, len(kept)))]:
                shutil.rmtree(old, ignore_errors=True)

    def _send_telemetry(self) -> None:
        """TRL reports usage to the Hugging Face hub at construction; this project reports nothing."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No model card: checkpoints of a training are not for publishing."""
