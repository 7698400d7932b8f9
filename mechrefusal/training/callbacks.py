"""What happens beside the steps of an arm: its log, its anchors, its checkpoints, its probes."""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerState

from mechrefusal import progress, tables
from mechrefusal.attacks import AttackCase
from mechrefusal.files import whole_file
from mechrefusal.models.frozen import frozen
from mechrefusal.training.anchors import anchor_folder, require_anchors, save_anchor
from mechrefusal.training.arm_training import ArmTraining
from mechrefusal.training.finite import require_finite_weights
from mechrefusal.training.sharding import gathered, loading_whole, whole_weights
from mechrefusal.training.trainer import REFUSAL


class Probe(Protocol):
    """Looks at a model under training, with the pool's cases where there is a pool; gives rows of a table."""

    def __call__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cases: Sequence[AttackCase], *, step: int
    ) -> list[dict[str, Any]]:
        """Rows without arm and step."""
        ...


SHOWN = ("loss", "utility", REFUSAL, "away", "toward")


class StepLog(TrainerCallback):
    """The wall time of each step, and the progress bar that shows its losses. Put before callbacks not to be timed."""

    def __init__(self, arm: str, steps: int, start: int = 0) -> None:
        self.arm, self.steps, self.start = arm, steps, start
        self.bar: progress.Bar | None = None
        self._began, self._seconds = 0.0, 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Steps that were made before are done."""
        if self.bar is not None and state.global_step:
            self.bar.advance(state.global_step)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self._seconds = time.perf_counter() - self._began

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Note the time beside what was logged of a step; the summary at the end is no step."""
        logs: dict[str, float] = kwargs["logs"]
        if "loss" not in logs:
            return
        state.log_history[-1]["seconds"] = self._seconds
        if self.bar is not None:
            terms = "  ".join(
                f"{name} {logs[name]:.3f}" for name in SHOWN if logs.get(name, math.nan) == logs.get(name)
            )
            self.bar.advance(description=f"train {self.arm}  {terms}")

    def table(self, history: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Table `training`, one row a step; what the arm lacks is NaN."""
        columns = tables.columns("training")
        rows = [
            dict.fromkeys(columns)
            | {name: float(row[name]) for name in columns if row.get(name) is not None}
            | self._step(row)
            for row in history
            if "loss" in row
        ]
        return tables.frame("training", rows)

    def _step(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"arm": self.arm, "step": self.start + int(row["step"])}

    def terms(self, history: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> pd.DataFrame:
        """Table `terms`, one row a step and term; a figure that a step has none of has no row."""
        rows = [
            {**self._step(row), "term": name, "weight": weight, "value": float(row[name])}
            for row in history
            if "loss" in row
            for name, weight in weights.items()
            if row.get(name) is not None
        ]
        return tables.frame("terms", rows)


class Anchors(TrainerCallback):
    """Saves the model after each optimiser step in `steps` (0 is the base model, which is never written).

    `start`: steps that the base has behind it; folders are named by the sum. `how`: they are written, as `save_anchor`
    takes it. `trainer` is set before it trains.
    """

    def __init__(
        self,
        out: Path | str,
        steps: Collection[int],
        tokenizer: PreTrainedTokenizerBase,
        start: int = 0,
        **how: Any,
    ) -> None:
        self.out, self.steps, self.tokenizer, self.start = Path(out), frozenset(steps), tokenizer, start
        self._how = how
        self.trainer: ArmTraining | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Find out, before any step, whether an anchor can be kept."""
        left = sum(step > state.global_step for step in self.steps)
        if not left:
            return
        weights = self._weights()
        if state.is_world_process_zero:
            with loading_whole():
                require_anchors(kwargs["model"], self.tokenizer, self.out, n_anchors=left, weights=weights, **self._how)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Save where the step that just ended is an anchor. One process writes."""
        if state.global_step not in self.steps:
            return
        require_finite_weights(kwargs["model"], state.global_step)
        weights = self._weights()
        if state.is_world_process_zero:
            folder = anchor_folder(self.out, self.start + state.global_step)
            save_anchor(kwargs["model"], self.tokenizer, folder, weights=weights, **self._how)

    def _weights(self) -> Mapping[str, Tensor] | None:
        """What is written of weights that processes share out, for the one that writes."""
        return None if self.trainer is None else gathered(self.trainer)


class States(TrainerCallback):
    """Asks for a training checkpoint at every anchor but the last step, and every `every` steps (0: anchors only)."""

    def __init__(self, anchors: Collection[int], every: int) -> None:
        self.anchors, self.every = frozenset(anchors), every

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Say so where it is due."""
        step = state.global_step
        due = step in self.anchors or (self.every and step % self.every == 0)
        control.should_save = bool(due) and step < state.max_steps


class Probes(TrainerCallback):
    """Looks at the model at step 0 and at every anchor, and keeps what it saw in `<folder>/probes.parquet`."""

    def __init__(self, probe: Probe | None, arm: str, folder: Path, steps: Collection[int], start: int = 0) -> None:
        self.probe, self.arm, self.folder, self.steps = probe, arm, Path(folder), frozenset(steps)
        self.start = start
        self.trainer: ArmTraining | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Look at the model before it changes."""
        if state.global_step == 0:
            self._look(state)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Look where the step that just ended is an anchor."""
        if state.global_step in self.steps:
            self._look(state)

    def _look(self, state: TrainerState) -> None:
        if self.probe is None or self.trainer is None:
            return
        model, step = self.trainer.model, self.start + state.global_step
        with whole_weights(self.trainer):
            if not state.is_world_process_zero:
                return
            with frozen(model):
                rows = self.probe(model, self.trainer.processing_class, self.trainer.cases, step=step)
        table = pd.DataFrame([{"arm": self.arm, "step": step, **row} for row in rows])
        path = self.folder / "probes.parquet"
        if path.is_file() and state.global_step:
            before = pd.read_parquet(path)
            earlier = before[before["step"] < step] if len(before) else before  # a probe may have given no rows
            table = pd.concat([earlier, table], ignore_index=True)
        with whole_file(path) as draft:
            table.to_parquet(draft, index=False)
