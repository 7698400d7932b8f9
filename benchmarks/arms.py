"""Arms: a step of each against TRL's own trainer of the same kind on the same rows.

    python benchmarks/arms.py [--quick] [--arms refat,circuit_breakers,lat,dpo,kto,rlhf] [--steps 4] [--rows 8]
                              [--cases 3]

Of arms whose loss is a sum of terms the peer is SFTTrainer on all rows that the arm runs in a step: utility, static
refusals, and what each of its terms makes of the drawn cases. Of `dpo`, `kto` and `rlhf` it is DPOTrainer, KTOTrainer
and GRPOTrainer on the very rows. Float32, no gradient checkpointing, the same weights; each part runs in a process of
its own, the peer first. `largest_difference` is that of the first step's losses of `dpo` and `kto`, nats. The last line
is one JSON object; `ratio` is the smallest of all arms (peer's seconds / ours): no step may take more than twice the
peer's.
"""

import argparse
import copy
import json
import logging
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from training import Stopwatch, rows
from transformers import PrinterCallback
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, SFTTrainer

from mechrefusal import models, prompts
from mechrefusal.models.library_output import quiet
from mechrefusal.training import TrainerSetup, TrainingSettings
from mechrefusal.training.registry import arm_named, settings_from
from mechrefusal.training.trainer_setup import ArmInputs

ARMS = ("refat", "circuit_breakers", "lat", "dpo", "kto", "rlhf")
OWN: dict[str, dict[str, Any]] = {"rlhf": {"n_generations": 4, "completion_tokens": 16}}
PEERS = {"dpo": DPOTrainer, "kto": KTOTrainer, "rlhf": GRPOTrainer}


def run(arm_name: str, part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train with an arm or its peer; its seconds a step (the first is not counted) and the first loss."""
    base = models.Checkpoint.open(models.fetch(options.model))
    model, tokenizer = models.load_causal_lm(base)
    arm = arm_named(arm_name)
    own = dict(OWN.get(arm_name, {}))
    if "cases_per_step" in arm.settings.__dataclass_fields__:
        own["cases_per_step"] = options.cases
    settings = TrainingSettings(
        steps=options.steps, anchors=(0, options.steps), utility_per_step=options.rows, harmful_per_step=options.cases,
        max_length=256, n_probe=0, save_every=0,
    )  # fmt: skip
    utility = [
        {"prompt": text, "answer": tokenizer.decode([token for token in row["labels"] if token >= 0][:40])}
        for text, row in zip(prompts.builtin().utility_train.texts, rows(tokenizer, 32), strict=False)
    ]
    behaviours = prompts.builtin().pool.harmful.with_targets()[:24]
    inputs = ArmInputs(arm, base, utility, behaviours, settings, settings_from(arm.settings, own, what=arm_name))
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as scratch:
        setup = TrainerSetup(inputs, model, tokenizer, Path(scratch), [watch])
        trainer: Any = arm.trainer(setup)
        if part == "peer":
            trainer = peer(arm_name, trainer, base, watch)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": statistics.median(watch.seconds[1:]), "loss": losses[0]}


def peer(name: str, ours: Any, base: models.Checkpoint, watch: Stopwatch) -> Any:
    """TRL's trainer of the same kind on the same rows, with the same config."""
    model, tokenizer = models.load_causal_lm(base)
    config = copy.deepcopy(ours.args)
    made: dict[str, Any] = {"model": model, "args": config, "processing_class": tokenizer, "callbacks": [watch]}
    if name not in PEERS:
        every = with_cases(ours)
        config.per_device_train_batch_size = len(every) // config.max_steps
        return SFTTrainer(**made, train_dataset=Dataset.from_list(every))
    kind = type(name, (PEERS[name],), {"_prepare_dataset": lambda self, dataset, *_, **__: dataset})
    if name == "rlhf":
        return kind(**made, train_dataset=ours.train_dataset, reward_funcs=ours.reward_funcs)
    return kind(**made, train_dataset=ours.train_dataset, ref_model=copy.deepcopy(model))


def with_cases(ours: Any) -> list[dict[str, list[int]]]:
    """The rows of every step of an arm of terms, those of its cases among them."""
    given, steps = list(ours.train_dataset), ours.args.max_steps
    each = len(given) // steps
    every = []
    for step in range(steps):
        every += [{key: row[key] for key in ("input_ids", "labels")} for row in given[step * each : (step + 1) * each]]
        for term in ours.terms:
            for case in ours.draw_cases(step) if term.row is not None and term.weight else ():
                prompt, answer = term.row(ours.processing_class, case)
                every.append({"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + list(answer)})
    return every


def main() -> None:
    """Run all arms and their peers, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 steps")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--part", choices=("peer", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.steps = 2
    logging.disable(logging.CRITICAL)
    if options.part:
        with quiet():
            made = run(options.arms, options.part, options)
        print(json.dumps(made))
        return
    seconds: dict[str, dict[str, float]] = {}
    differences = [0.0]
    for name in options.arms.split(","):
        parts = {}
        for part in ("peer", "ours"):
            words = [sys.executable, __file__, *sys.argv[1:], "--arms", name, "--part", part]
            said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            parts[part] = json.loads(said.splitlines()[-1])
        seconds[name] = {part: round(made["seconds"], 2) for part, made in parts.items()}
        differences += [abs(parts["peer"]["loss"] - parts["ours"]["loss"])] if name in ("dpo", "kto") else []
        print(name, seconds[name], flush=True)
    ratios = {name: round(each["peer"] / each["ours"], 2) for name, each in seconds.items()}
    result = {
        "name": "arms",
        "peer": f"trl {version('trl')}: SFTTrainer, DPOTrainer, KTOTrainer, GRPOTrainer",
        "ratio": min(ratios.values()),
        "goal": 0.5,
        "largest_difference": max(differences),
        "settings": {
            "model": options.model,
            "dtype": "float32",
            "threads": torch.get_num_threads(),
            "steps": options.steps,
            "rows": options.rows,
            "cases": options.cases,
            "ratios": ratios,
            "seconds": seconds,
            **OWN,
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
