"""Whether numbers and speeds hold on a GPU: a random Llama of a billion parameters, bfloat16 beside float32.

    python scripts/gpu_check.py [--device cuda] [--size 1b|small] [--no-benchmarks] [--out table.json]
    make gpu-check [WHEELS=folder]

At most five minutes, without a network: the model is made here. Each row of the table is a check: what was compared,
by how much the two sides differ, what is allowed and why, and the seconds of both. Then the benchmarks run on the same
model against their peers (`nanogcg` where it is installed). The last line is one JSON object; the exit status is 1
where a check fails.

Allowed differences: float32 sides are two orders of adding up the same products, which on a GPU differ by some 1e-6 of
the logits' size each layer: 1e-3 nats, as for every checkpoint that is loaded (TF32 is off). What bfloat16 costs is
that of rounding, wherever it is done: the same model, in both precisions, on the CPU says how much, of which one and a
half times is allowed.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from mechrefusal import attacks, causal, devices, evaluation, forward, models, prompts, training
from mechrefusal.models.library_output import quiet

SIZES = {"1b": (16, 2048, 32, 8, 8192), "small": (2, 64, 4, 2, 128)}
"""Layers, d_model, query heads, key/value heads, width of the MLP."""
VOCABULARY = 32_768
EXACT = 1e-3
"""Nats; see above."""
BENCHMARKS = ("patching", "training", "gcg")


@dataclass
class Row:
    """One check; `allowed` None: shown, and judged by nobody."""

    check: str
    sides: str
    difference: float
    allowed: float | None
    seconds: tuple[float, float] = (math.nan, math.nan)

    @property
    def holds(self) -> bool:
        """Whether the difference is within what is allowed."""
        return self.allowed is None or self.difference <= self.allowed


def make(folder: Path, size: str) -> Path:
    """A random Llama with the tokenizer and the chat template of the tiny model."""
    n_layers, d_model, heads, kv_heads, width = SIZES[size]
    words = models.tiny.tokenizer()
    config = LlamaConfig(
        vocab_size=max(VOCABULARY if size == "1b" else 0, len(words)),
        hidden_size=d_model,
        intermediate_size=width,
        num_hidden_layers=n_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        initializer_range=2.0 / math.sqrt(d_model),  # logits of a size as trained models have them
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
        words.save_pretrained(folder)
    return folder


def timed(work: Callable, device: str):
    """What `work` gives, and its seconds, all that runs on the device included."""
    devices.synchronise(devices.named(device))
    began = time.perf_counter()
    done = work()
    devices.synchronise(devices.named(device))
    return done, time.perf_counter() - began


@torch.no_grad()
def next_logits(model, tokenizer, texts) -> torch.Tensor:
    """Log-probabilities of the next token, one prompt at a time; float32, on the CPU."""
    device = next(model.parameters()).device
    rows = [prompts.segments(tokenizer, text).prompt_ids for text in texts]
    return torch.stack([model(torch.tensor([row], device=device)).logits[0, -1].float().cpu() for row in rows])


def exactly(folder: Path, device: str, texts) -> list[Row]:
    """Float32: the hooked transformer, the token tree and plain patching of the same model."""
    rows = []
    plain, tokenizer = models.load_causal_lm(folder, device=device)
    wanted, plain_seconds = timed(lambda: next_logits(plain, tokenizer, texts), device)
    hooked, _ = timed(lambda: models.load_hooked(folder, device=device), device)
    tree = forward.runner_of(hooked)
    ids = [prompts.segments(tokenizer, text).prompt_ids for text in texts]
    mine, seconds = timed(
        lambda: torch.stack([hooked(torch.tensor([row], device=device))[0, -1].float().cpu() for row in ids]), device
    )
    difference = (mine.log_softmax(-1) - wanted.log_softmax(-1)).abs().max().item()
    rows.append(
        Row("hooked transformer", "nats from Hugging Face, float32", difference, EXACT, (seconds, plain_seconds))
    )

    pairs = prompts.builtin().pairs.equal_length(hooked.tokenizer)[:1]
    opening = [prompts.opening_ids(hooked.tokenizer, word)[1][0] for word in ("Sorry", "The")]
    metric = forward.RefusalMetric((), (opening[0],), (opening[1],))
    layers = [0, hooked.cfg.n_layers - 1]
    fast, fast_seconds = timed(lambda: causal.patching.heads(hooked, pairs, metric, layers=layers).table, device)
    with hooked.hooks(fwd_hooks=[("hook_embed", lambda stream, hook: stream)]):  # which only its own hooks obey
        slow, slow_seconds = timed(lambda: causal.patching.heads(hooked, pairs, metric, layers=layers).table, device)
    difference = float((fast["raw"] - slow["raw"]).abs().max())
    rows.append(
        Row("patching of heads", f"nats, {tree.name} and hooks", difference, EXACT, (fast_seconds, slow_seconds))
    )

    mine, seconds = timed(
        lambda: evaluation.complete(plain, texts, tokenizer=tokenizer, max_new_tokens=32).texts, device
    )
    theirs, their_seconds = timed(lambda: [_greedy(plain, tokenizer, row) for row in ids], device)
    differing = sum(a != b for a, b in zip(mine, theirs, strict=True)) / len(theirs)
    # Greedy answers part where two tokens are equally likely to rounding, and then differ altogether.
    rows.append(Row("generation", "share of answers unlike transformers'", differing, 0.25, (seconds, their_seconds)))
    return rows


@torch.no_grad()
def _greedy(model, tokenizer, row) -> str:
    device = next(model.parameters()).device
    asked = torch.tensor([row], device=device)
    said = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=32, do_sample=False,
                          pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    return tokenizer.decode(said[0, len(row) :], skip_special_tokens=True)


def in_bfloat16(folder: Path, device: str, texts) -> list[Row]:
    """Bfloat16 beside float32: a pass, GCG and a training step."""
    rows, logits, seconds, losses, gcg_seconds = [], {}, {}, {}, {}
    own = prompts.builtin()
    behaviours = own.pool.harmful.with_targets()[:1]
    how = attacks.GCGSettings(steps=2, width=64, top_k=64)
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        model, tokenizer = models.load_causal_lm(folder, dtype=dtype, device=device)
        next_logits(model, tokenizer, texts[:1])
        logits[name], seconds[name] = timed(lambda m=model, t=tokenizer: next_logits(m, t, texts), device)
        model.requires_grad_(False)
        cases = attacks.gcg.start_all(tokenizer, behaviours, how, source="")
        found, gcg_seconds[name] = timed(
            lambda m=model, t=tokenizer, c=cases: attacks.gcg.optimise(
                m, t, c[0], how, generator=attacks.random_stream(0, "")
            ),
            device,
        )
        losses[name] = abs(_plain_loss(model, tokenizer, found) - found.loss)
        del model
    spread = logits["float32"].std(-1).mean().item()
    allowed = 1.5 * _error(_on_the_cpu(folder, texts[:2]))
    error = _error(logits)
    rows.append(Row("bfloat16", f"logits, root mean square, of a spread of {spread:.1f}", error, allowed,
                    (seconds["bfloat16"], seconds["float32"])))  # fmt: skip
    for name, allowed in (("float32", EXACT), ("bfloat16", 0.05)):
        rows.append(Row(f"GCG, {name}", "nats, loss found and of a plain pass", losses[name], allowed,
                        (gcg_seconds[name], math.nan)))  # fmt: skip
    return [*rows, *_training(folder, own)]


def _error(logits: dict[str, torch.Tensor]) -> float:
    return (logits["bfloat16"] - logits["float32"]).pow(2).mean().sqrt().item()


def _on_the_cpu(folder: Path, texts) -> dict[str, torch.Tensor]:
    logits = {}
    for name in ("float32", "bfloat16"):
        model, tokenizer = models.load_causal_lm(folder, dtype=getattr(torch, name), device="cpu")
        logits[name] = next_logits(model, tokenizer, texts)
    return logits


@torch.no_grad()
def _plain_loss(model, tokenizer, case) -> float:
    """Of the target, through one pass over the whole text, without a cache."""
    parts = prompts.segments(tokenizer, case.behaviour, attack=case.suffix, target=case.target, end_of_turn=False)
    row, where = torch.tensor([parts.ids], device=next(model.parameters()).device), parts.slice("target")
    logits = model(row).logits[0, where.start - 1 : where.stop - 1].float()
    return torch.nn.functional.cross_entropy(logits, row[0, where]).item()


def _training(folder: Path, own) -> list[Row]:
    base = models.Checkpoint.open(folder)
    utility = [{"prompt": text, "answer": "It depends: say a little more."} for text in own.utility_train.texts[:16]]
    logs = {}
    for name, bf16 in (("float32", False), ("bfloat16", True)):
        settings = training.TrainingSettings(
            steps=2, anchors=(2,), utility_per_step=8, harmful_per_step=2, max_length=256, bf16=bf16, n_probe=0,
            save_every=0, learning_rate=1e-6,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as out:
            log = training.train("sft", base=base, utility=utility, behaviours=own.pool.harmful[:4], out=out,
                                 settings=settings)  # fmt: skip
        logs[name] = log
    a, b = (logs[name]["loss"].to_numpy(float) for name in ("float32", "bfloat16"))
    seconds = tuple(float(logs[name]["seconds"].iloc[-1]) for name in ("bfloat16", "float32"))
    return [Row("training step", "nats of the loss, bfloat16 and float32", float(abs(a - b).max()), 0.1, seconds)]


def benchmarks(folder: Path) -> list[dict]:
    """The last line of each benchmark on this model."""
    ended = []
    for name in BENCHMARKS:
        if name != "patching" and find_spec("nanogcg") is None:
            ended.append({"name": name, "left out": "nanogcg is not installed"})
            continue
        file = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
        done = subprocess.run(
            [sys.executable, str(file), "--quick", "--model", str(folder)], capture_output=True, text=True
        )
        last = done.stdout.splitlines()[-1:] or [""]
        try:
            ended.append(json.loads(last[0]))
        except ValueError:
            ended.append({"name": name, "failed": done.stderr.strip().splitlines()[-1:]})
    return ended


def main() -> int:
    """Check, print the table, and say whether all holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=str(devices.first()))
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--no-benchmarks", dest="benchmarks", action="store_false")
    parser.add_argument("--out", type=Path, help="file for the table, as JSON")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    texts = prompts.builtin().direction.harmful.texts[:4] + prompts.builtin().direction.harmless.texts[:4]
    device = (devices.gpu_name() if devices.is_gpu(devices.named(options.device)) else None) or "CPU"
    with tempfile.TemporaryDirectory() as scratch:
        folder = make(Path(scratch) / "model", options.size)
        rows = [*exactly(folder, options.device, texts), *in_bfloat16(folder, options.device, texts)]
        speeds = benchmarks(folder) if options.benchmarks else []
    table = Table(
        "check", "sides", "difference", "allowed", "seconds", "", title=f"{device}, torch {torch.__version__}"
    )
    for row in rows:
        allowed = "" if row.allowed is None else f"{row.allowed:.2g}"
        seconds = " / ".join("" if math.isnan(each) else f"{each:.2f}" for each in row.seconds)
        table.add_row(row.check, row.sides, f"{row.difference:.2g}", allowed, seconds, "yes" if row.holds else "NO")
    Console(width=140).print(table)
    for each in speeds:
        print(json.dumps(each))
    checks = [asdict(row) for row in rows]
    whole = {"device": device, "torch": torch.__version__, "size": options.size, "checks": checks, "benchmarks": speeds}
    if options.out:
        options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(whole))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
