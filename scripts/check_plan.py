"""A plan held against what is run: seconds, memory and forward tokens of every stage, predicted and measured.

    python scripts/check_plan.py MODEL CHECKPOINT
    python scripts/check_plan.py MODEL CHECKPOINT --recipe my-recipe.yaml
    python scripts/check_plan.py --run checkpoints/demo      # seconds alone, as a run has recorded them

Both models are measured in a folder that is removed afterwards, on one thread of a processor. Seconds are those of the
processor, so that what else runs does not count; but a core that is shared with other machines is now faster and now
slower. So it is calibrated anew between stages, in a process beside, and what is planned of a stage is the mean of what
it would take at the speeds found before it and after it. Memory is the most that the process holds while a stage runs,
but for pages of files, which the system takes back when it needs them (Linux, seen every hundredth of a second).
Tokens are those that pass through all blocks of the model, forward or forward and back; a pass through some of the
blocks counts in part. A stage that finds nothing to do, as where no prompt is refused, takes none: give a checkpoint
that refuses.
"""

import argparse
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from torch import nn

import mechrefusal as mr
from mechrefusal.devices import HOST
from mechrefusal.study.caching import Inputs, Made, Unit
from mechrefusal.study.calibrating import Speed, calibrated
from mechrefusal.study.loader import recipe_from_dict
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.run import Run

SMALL: dict[str, Any] = {
    "name": "check",
    "arms": [],
    "attack": {"n_cases": 2, "methods": ["templates"], "templates": {"names": ["prefix_injection"]}},
    "measuring": {
        "n_evaluation": 8, "n_overrefusal": 6, "n_contrast": 0, "n_utility": 4, "n_direction": 12, "n_validation": 8,
        "n_intervened": 4, "n_attributed": 2, "n_pairs": 2, "n_top_heads": 3, "max_new_tokens": 8, "layer_step": 10,
        "n_positions": 1, "fewest_kept": 2,
    },
    "geometry": {
        "layer_step": 4, "n_contenders": 2, "largest_subspace": 2, "cone_steps": 2, "cone_samples": 2,
        "n_coupled": 6, "n_dosed": 4, "doses": [0, 1], "n_transferred": 6,
    },
    "causal": {
        "n_finalists": 3, "n_knocked_out": 2, "layer_step": 15, "n_candidates": 3, "largest_set": 2, "n_nodes": 4,
        "n_edges": 6, "n_random": 1, "n_crossed": 2, "n_rotations": 1,
    },
    "durability": {
        "removal": {"n_prompts": 3, "n_trials": 2, "kl_levels": [0.1], "n_random": 1, "max_new_tokens": 4},
        "update_spectrum": {"n_prompts": 2, "ranks": [2], "scales": [1], "n_random": 1, "max_new_tokens": 4},
        "lockstep": {"n_prompts": 2, "layer_step": 15, "n_rotations": 1, "max_new_tokens": 3},
        "harmful_fine_tuning": {"n_prompts": 2, "n_examples": [2], "epochs": 1, "max_new_tokens": 4},
        "answer_length": {"n_prompts": 2, "lengths": [4, 8]},
        "prefilled": {"n_prompts": 2, "n_tokens": [2], "max_new_tokens": 4},
    },
}  # fmt: skip
"""Every measure, at sizes that take some minutes on a model of 135 million parameters."""
NOTHING = 0.2
"""Seconds below which a stage did nothing."""


@dataclass
class Measured:
    """What a stage took: seconds of the processor, bytes at most, and tokens of passes through all blocks; and how fast
    the machine was before it and after it.
    """

    seconds: float = 0.0
    memory: int = 0
    tokens: float = 0.0
    speeds: tuple[Speed, ...] = ()


class Calibrations:
    """How fast one thread runs a model of some config, asked for again and again, in a process beside."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        self._config, self._dtype = config, dtype
        spawn = multiprocessing.get_context("spawn")
        self._beside = ProcessPoolExecutor(1, spawn, initializer=torch.set_num_threads, initargs=(1,))
        self.latest = self.now()

    def now(self) -> Speed:
        """Calibrate; nothing else runs meanwhile."""
        self.latest = self._beside.submit(calibrated, self._config, device=HOST, dtype=self._dtype).result()
        return self.latest


class Meter:
    """What was taken between moments, and how many rows passed through MLPs meanwhile, hooked or not."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        self.stages: dict[tuple[str, str], Measured] = {}
        self._n_layers, self._open, self._peak = config.num_hidden_layers, False, Peak()
        self._calibrations = Calibrations(config, dtype)
        self._begin()

    def _begin(self) -> None:
        self._since, self._rows, self._depth = time.process_time(), 0, 0
        self._peak.forget()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what passes while open."""
        modules = nn.modules.module
        hooks = modules.register_module_forward_pre_hook(self._enter), modules.register_module_forward_hook(self._leave)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def of(self, stage: str, key: str) -> Iterator[None]:
        """What runs while open is the stage's; a unit of a stage within it is a part of it."""
        if self._open:
            yield
            return
        self._open = True
        self._begin()
        try:
            yield
        finally:
            self._open = False
            self.ended(stage, key)

    def ended(self, stage: str, key: str) -> None:
        """What ran since the last moment was the stage's."""
        seconds, memory, tokens = time.process_time() - self._since, self._peak.most, self._rows / self._n_layers
        before = self._calibrations.latest
        # A stage that did nothing need not be set beside anything.
        speeds = (before, self._calibrations.now()) if seconds > NOTHING else (before,)
        self.stages[stage, key] = Measured(seconds, memory, tokens, speeds)
        self._begin()

    # The hooked transformer's MLPs may hold the model's own, which then are counted with them and not again.

    def _enter(self, module: nn.Module, inputs: tuple) -> None:
        self._depth += "MLP" in type(module).__name__

    def _leave(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        if "MLP" not in type(module).__name__:
            return
        self._depth -= 1
        if self._depth == 0 and isinstance(output, torch.Tensor):
            self._rows += output.numel() // output.shape[-1]


@dataclass(frozen=True)
class MeteredRun(Run):
    """A run whose stages are metered."""

    meter: Meter = field(kw_only=True, compare=False)

    def cached(self, name: str, key: str, inputs: Inputs, make: Callable[[], Made]) -> Unit:
        """As `Run.cached`."""

        def metered() -> Made:
            with self.meter.of(name, key):
                return make()

        return super().cached(name, key, inputs, metered)

    def update(self, changes: dict[str, Any]) -> None:
        """As `Run.update`; when a model is open, what ran since the last stage was the opening."""
        for checkpoint in changes.get("opened", {}):
            self.meter.ended("load", checkpoint)
        super().update(changes)


class Peak:
    """The most memory that this process has held since it was told to forget, less pages of files; seen by a thread."""

    def __init__(self) -> None:
        self._most, self._status = 0, Path("/proc/self/status")
        threading.Thread(target=self._watch, daemon=True).start()

    def forget(self) -> None:
        """Begin anew, at what is held now."""
        self._most = self._held()

    @property
    def most(self) -> int:
        """In bytes; 0 where this is not Linux."""
        return max(self._most, self._held())

    def _watch(self) -> None:
        while True:
            self._most = max(self._most, self._held())
            time.sleep(0.01)

    def _held(self) -> int:
        with suppress(OSError):
            for line in self._status.read_text(encoding="ascii").splitlines():
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) * 1024
        return 0


def measured(recipe: Recipe, folder: Path | str) -> dict[str, Measured]:
    """Every stage of a run of the recipe: at the last checkpoint, or over all of them."""
    config = mr.models.load_config(mr.models.fetch(recipe.model)).get_text_config()
    created = Run.create(folder, recipe)
    dtype = recipe.placement.torch_dtype(stored_in_16_bits=False)
    run = MeteredRun(created.folder, created.recipe, meter=Meter(config, dtype))
    with run.meter.counting():
        mr.study.measure(run)
    last, over_all = run.checkpoints()[-1].id, {}
    for (stage, key), one in run.meter.stages.items():
        if key == last and stage != "transfer":
            over_all[stage] = one
        elif not key or stage == "transfer":
            known = over_all.get(stage, Measured())
            most = max(known.memory, one.memory)
            summed = known.seconds + one.seconds, most, known.tokens + one.tokens, known.speeds + one.speeds
            over_all[stage] = Measured(*summed)
    return over_all


def compared(recipe: Recipe, found: dict[str, Measured]) -> pd.DataFrame:
    """A row a stage: what the plan says, what was measured, and the one by the other."""
    rows = []
    plans = {speed: mr.study.plan(recipe, speed=speed) for each in found.values() for speed in each.speeds}
    for row_number, planned in enumerate(next(iter(plans.values())).to_dict("records")):
        taken = found.get(planned["stage"])
        if taken is None or (planned["forward_tokens"] and not taken.tokens):  # it found nothing to do
            continue
        seconds = fmean(plans[speed]["seconds"][row_number] for speed in taken.speeds)
        pairs = {
            "tokens": (planned["forward_tokens"] / planned["times"], taken.tokens),
            "seconds": (seconds / planned["times"], taken.seconds),
            "GiB": (planned["memory_gib"], taken.memory / 2**30),
        }
        row = {"stage": planned["stage"]}
        for name, (expected, seen) in pairs.items():
            row |= {
                f"{name} planned": expected,
                f"{name} taken": seen,
                f"{name} ratio": expected / seen if seen else nan,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def of_run(folder: Path | str) -> pd.DataFrame:
    """A row a stage of a measured run: seconds planned on this machine, and those that the run has recorded.

    Recorded is wall time: the median over checkpoints, of transfer the sum. The plan is made with the threads that a
    checkpoint had, and should be made on the machine of the run, with as much beside it as there was then.
    """
    run = Run.open(Path(folder))
    at_once = max(run.manifest.get("at_once", {}).values(), default=1)
    torch.set_num_threads(max(1, run.manifest["machine"]["torch_threads"] // at_once))
    by_stage = mr.tables.read("timings", run.measurements()).groupby("stage")["seconds"].median()
    recorded = by_stage[by_stage > 0].to_dict()
    stages = mr.tables.read("stages", run.measurements())
    recorded["transfer"] = stages.loc[stages["stage"].str.startswith("transfer to "), "seconds"].sum()
    planned = mr.study.plan(run.recipe).set_index("stage")
    each = planned["seconds"] / planned["times"]
    taken = pd.Series(recorded)
    table = pd.DataFrame({"planned": each, "taken": taken, "ratio": each / taken}).loc[each.index]
    return table[table["taken"] > 0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="what the recipe measures first: a folder, or a name to fetch")
    parser.add_argument("checkpoint", nargs="?", help="what it measures then, and whose stages are compared with it")
    parser.add_argument("--run", default="", help="folder of a measured run, in place of both")
    parser.add_argument("--recipe", default="", help="what is measured, by default all that there is at small sizes")
    options = parser.parse_args(arguments)
    if options.run:
        print("| stage | planned, s | taken, s | ratio |\n|---|---|---|---|")
        for stage, planned, taken, ratio in of_run(options.run).itertuples():
            print(f"| {stage} | {planned:,.1f} | {taken:,.1f} | {ratio:.2f} |")
        return
    if not options.checkpoint:
        parser.error("give a model and a checkpoint, or --run with the folder of a measured run")
    torch.set_num_threads(1)
    base = mr.study.load_recipe(options.recipe) if options.recipe else recipe_from_dict(SMALL)
    recipe = replace(base, model=options.model, arms={}, checkpoints={"trained": (options.checkpoint,)})
    with tempfile.TemporaryDirectory() as folder:
        found = measured(recipe, Path(folder) / "run")
    print("| stage | tokens | taken | ratio | seconds | taken | ratio | GiB | taken | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in compared(recipe, found).to_dict("records"):
        digits = {name: 2 if name.endswith("ratio") else _DIGITS[name.split()[0]] for name in row if name != "stage"}
        numbers = ("" if isnan(row[name]) else f"{row[name]:,.{places}f}" for name, places in digits.items())
        print(f"| {row['stage']} | {' | '.join(numbers)} |")


_DIGITS = {"tokens": 0, "seconds": 1, "GiB": 2}


if __name__ == "__main__":
    main()
