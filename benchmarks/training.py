"""Training: a step of ours against TRL's default SFTTrainer, and an R2D2 step against TRL plus nanoGCG per case.

    python benchmarks/training.py [--quick] [--steps 6] [--cases 8] [--gcg_steps 5] [--width 64] [--screen]
                                  [--prompt_tokens 49] [--target_tokens 6]

The same batches of utility rows, in float32, from the same weights; `largest_difference` is that of the logged losses,
nats. TRL's defaults are kept (gradient checkpointing is one of them; a second figure is without). The plain composition
of an R2D2 step is nanoGCG on each drawn case, then TRL's step on the utility rows, the refusals and the targets; cases
have the lengths of `gcg.py`. Each part runs in a process of its own, so that its peak memory is its own; the peers go
first. The last line is one JSON object: name, peer, ratio (of an R2D2 step: peer's seconds / ours), goal,
largest_difference, settings.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from typing import Any

import torch
from gcg import INITIAL, peer_config, sized
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from mechrefusal import models, prompts
from mechrefusal.attacks import GCGSettings
from mechrefusal.models.library_output import quiet
from mechrefusal.training import ArmTrainer, CasePool, R2D2Config, R2D2Settings, R2D2Trainer, data
from mechrefusal.training.clock import peak_mib

ANSWER = (
    "It depends on what you have at hand. Begin with the simplest thing that could work, see what it gives you, and "
    "change one thing at a time until the result is what you wanted; then write down what you did."
)
PARTS = ("peer", "peer_unchecked", "ours", "peer_r2d2", "ours_r2d2")


class Stopwatch(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        self._began = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self._began)


def rows(tokenizer: Any, n: int) -> list[data.Row]:
    """Utility rows: built-in instructions, with answers of 12 to 40 words."""
    texts = prompts.builtin().utility_train.texts
    return [
        data.conversation(tokenizer, text, " ".join(ANSWER.split()[: 12 + 4 * (i % 8)]), max_length=2048, name=text)
        for i, text in enumerate(texts[:n])
    ]


def run(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train with one of the parts; its seconds a step (the first is not counted), losses and peak memory."""
    model, tokenizer = models.load_causal_lm(models.fetch(options.model))
    attacked = part.endswith("r2d2")
    steps = 2 if attacked else options.steps
    attack = GCGSettings(steps=options.gcg_steps, width=options.width, initial=INITIAL, screen=options.screen)
    behaviours = sized(
        tokenizer,
        prompts.builtin().pool.harmful.with_targets()[: options.cases],
        prompt_tokens=options.prompt_tokens,
        target_tokens=options.target_tokens,
    )
    pool = CasePool.of(tokenizer, behaviours, attack, seed=0, source="")
    utility = rows(tokenizer, options.rows)
    extra = []
    if part == "peer_r2d2":
        for case in pool.cases:
            for prompt, answer in (data.away_row(tokenizer, case), data.toward_row(tokenizer, case, "Sorry, no.")):
                extra.append({"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + list(answer)})
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as scratch:
        arguments: dict[str, Any] = {
            "output_dir": scratch,
            "max_steps": steps,
            "per_device_train_batch_size": options.rows + len(extra),
            "bf16": False,
            "max_length": None,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            "train_sampling_strategy": "sequential",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        if part == "peer_unchecked" or part.startswith("ours"):
            arguments["gradient_checkpointing"] = False
        made: dict[str, Any] = {
            "model": model,
            "train_dataset": data.dataset(
                utility, extra, steps=steps, utility_each=options.rows, harmful_each=len(extra), seed=0
            ),
            "processing_class": tokenizer,
            "callbacks": [watch],
        }
        trainer: SFTTrainer
        if part == "ours_r2d2":
            settings = R2D2Settings(cases_per_step=options.cases, gcg=attack)
            config = R2D2Config(**arguments, **R2D2Config.fields_of(settings), refusal="Sorry, no.")
            trainer = R2D2Trainer(**made, args=config, pool=pool)
        else:
            kind = ArmTrainer if part == "ours" else SFTTrainer
            trainer = kind(**made, args=SFTConfig(**arguments))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    seconds = statistics.median(watch.seconds[1:])
    if part == "peer_r2d2":
        seconds += nanogcg_seconds(model, tokenizer, pool, attack, options)
    return {
        "seconds": seconds,
        "losses": [entry.get("utility", entry["loss"]) for entry in logs],
        "parts": {k: round(v, 3) for k, v in logs[-1].items() if k.startswith("seconds_")},
        "peak_mib": round(peak_mib(torch.device("cpu"))),
        "tokens": sum(len(row["input_ids"]) for row in utility),
        "padded_tokens": len(utility) * max(len(row["input_ids"]) for row in utility),
    }


def nanogcg_seconds(model: Any, tokenizer: Any, pool: CasePool, attack: GCGSettings, options: Any) -> float:
    """Seconds of nanoGCG on all cases; with --quick one is run and counted for each."""
    import nanogcg

    config = peer_config(attack, initial=attack.initial)
    model.eval().requires_grad_(False)
    chosen = pool.cases[:1] if options.quick else pool.cases
    started = time.perf_counter()
    for case in chosen:
        nanogcg.run(model, tokenizer, case.behaviour, case.target, config)
    return (time.perf_counter() - started) * len(pool.cases) / len(chosen)


def main() -> None:
    """Run all parts and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 steps; 2 cases with 2 GCG steps")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--gcg_steps", type=int, default=5)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--prompt_tokens", type=int, default=49, help="tokens before the suffix at least")
    parser.add_argument("--target_tokens", type=int, default=6, help="tokens of the targets; 0: as they are")
    parser.add_argument("--screen", action="store_true", help="score our candidates in bfloat16 first")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.steps, options.cases, options.gcg_steps = 3, 2, 2
    logging.disable(logging.CRITICAL)
    if options.part:
        with quiet():
            found = run(options.part, options)
        print(json.dumps(found))
        return
    done = {}
    for part in PARTS:
        words = [sys.executable, __file__, *sys.argv[1:], "--part", part]
        done[part] = json.loads(
            subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
        print(part, {name: done[part][name] for name in ("seconds", "peak_mib", "parts")}, flush=True)
    pairs = zip(done["peer"]["losses"], done["ours"]["losses"], strict=True)
    ours, ours_r2d2 = done["ours"]["seconds"], done["ours_r2d2"]["seconds"]
    result = {
        "name": "training",
        "peer": f"trl {version('trl')} SFTTrainer + nanogcg {version('nanogcg')} (without prefix cache)",
        "ratio": round(done["peer_r2d2"]["seconds"] / ours_r2d2, 2),
        "ratio_sft_step": round(done["peer"]["seconds"] / ours, 2),
        "ratio_sft_step_without_checkpointing": round(done["peer_unchecked"]["seconds"] / ours, 2),
        "goal": 4,
        "goal_sft_step": 2,
        "largest_difference": max(abs(a - b) for a, b in pairs),
        "settings": {
            "model": options.model,
            "dtype": "float32",
            "threads": torch.get_num_threads(),
            "rows": options.rows,
            "tokens": done["ours"]["tokens"],
            "padded_tokens": done["ours"]["padded_tokens"],
            "steps": options.steps,
            "cases": options.cases,
            "gcg_steps": options.gcg_steps,
            "gcg_width": options.width,
            "gcg_screen": options.screen,
            "prompt_tokens": options.prompt_tokens,
            "target_tokens": options.target_tokens,
            "seconds": {part: round(done[part]["seconds"], 2) for part in PARTS},
            "peak_mib": {part: done[part]["peak_mib"] for part in PARTS},
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
