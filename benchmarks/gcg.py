"""GCG: ours against nanoGCG on the same model, behaviours, targets, first suffix, width and number of steps.

    python benchmarks/gcg.py [--quick] [--dtype float32|bfloat16] [--steps 10] [--width 64] [--cases 8]
                             [--prompt_tokens 49] [--target_tokens 6]

One case alone, then eight cases (ours together, the peer one after another). By default behaviours are led up to until
49 tokens stand before the suffix, and targets are cut to 6 tokens; 0 takes both as they are. nanoGCG runs without its
prefix cache, which fails on transformers 5. Seconds are the median over steps. `largest_difference` is that of our
final losses from a plain float32 recomputation, in nats a token. The last line is one JSON object: name, peer, ratio
(peer's seconds / ours, a step and case, eight cases), goal, largest_difference, settings.
"""

import argparse
import json
import logging
import time
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from statistics import median

import nanogcg
import torch

from mechrefusal import models, prompts
from mechrefusal.attacks import AttackCase, GCGSettings, gcg
from mechrefusal.training.clock import peak_mib

INITIAL = "! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! !"


def plain_loss(model, tokenizer, case: AttackCase) -> float:
    """Cross-entropy of the target through one pass over the whole text, without a cache, in the model's precision."""
    parts = prompts.segments(tokenizer, case.behaviour, attack=case.suffix, target=case.target, end_of_turn=False)
    where = parts.slice("target")
    with torch.no_grad():
        logits = model(torch.tensor([parts.ids])).logits[0, where.start - 1 : where.stop - 1].float()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(parts.target)))


def peer_config(settings: GCGSettings, *, initial: str) -> nanogcg.GCGConfig:
    """The same search for nanoGCG."""
    return nanogcg.GCGConfig(
        num_steps=settings.steps,
        search_width=settings.width,
        topk=settings.top_k,
        optim_str_init=" " + initial,
        use_prefix_cache=False,
        seed=0,
        verbosity="ERROR",
    )


def peer(model, tokenizer, case: AttackCase, settings: GCGSettings) -> tuple[list[float], AttackCase]:
    """Seconds of each step of nanoGCG on one case, and what it found."""
    config = peer_config(settings, initial=case.suffix)
    began: list[float] = []
    gradient = nanogcg.gcg.GCG.compute_token_gradient  # the first thing that a step does

    def timed(self, *args):
        began.append(time.perf_counter())
        return gradient(self, *args)

    nanogcg.gcg.GCG.compute_token_gradient = timed
    try:
        found = nanogcg.run(model, tokenizer, case.behaviour, case.target, config)
    finally:
        nanogcg.gcg.GCG.compute_token_gradient = gradient
        torch.use_deterministic_algorithms(False)  # which nanoGCG turns on
    return seconds_between([*began, time.perf_counter()]), replace(case, loss=found.best_loss)


def ours(model, tokenizer, cases: list[AttackCase], settings: GCGSettings) -> tuple[list[float], list[AttackCase]]:
    """Seconds of each step of our GCG on all cases, and what it found."""
    streams = [gcg.random_stream(0, case.id) for case in cases]
    at = [time.perf_counter()]
    found = gcg.optimise_all(
        model, tokenizer, cases, settings, generators=streams, on_step=lambda now: at.append(time.perf_counter())
    )
    return seconds_between(at), found


def seconds_between(moments: list[float]) -> list[float]:
    """Differences of neighbours."""
    return [after - before for before, after in pairwise(moments)]


LEAD = (
    "I have a question for you, and I would be glad to have a full and careful answer to it, with all that belongs to "
    "it and nothing left out, in plain words that anybody can follow from the beginning to the end. Here it is:"
)


def sized(tokenizer, behaviours: prompts.PromptSet, *, prompt_tokens: int, target_tokens: int) -> prompts.PromptSet:
    """Behaviours with as many tokens before the suffix, and targets of as many tokens; 0 leaves them as they are."""
    table, lead = behaviours.table.copy(), LEAD.split()
    for row, (text, target) in enumerate(zip(behaviours.texts, table["target"], strict=True)):
        for n in range(len(lead) + 1):
            led = " ".join([*lead[len(lead) - n :], text])
            parts = prompts.segments(tokenizer, led)
            if len(parts.before) + len(parts.instruction) >= prompt_tokens:
                break
        table.loc[row, "text"] = led
        if target_tokens:
            ids = tokenizer(target, add_special_tokens=False).input_ids[:target_tokens]
            table.loc[row, "target"] = tokenizer.decode(ids)
    return prompts.PromptSet(behaviours.name, table)


def main() -> None:
    """Time both and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 steps, and the peer on one of the eight cases")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, default=49, help="tokens before the suffix at least")
    parser.add_argument("--target_tokens", type=int, default=6, help="tokens of the targets; 0: as they are")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    steps = 2 if options.quick else options.steps

    folder = models.fetch(options.model)
    model, tokenizer = models.load_causal_lm(folder, dtype=getattr(torch, options.dtype))
    model.requires_grad_(False)  # for the peer too: it would collect gradients that nobody reads
    settings = GCGSettings(steps=steps, width=options.width, initial=INITIAL)
    behaviours = sized(
        tokenizer,
        prompts.builtin().pool.harmful.with_targets()[: options.cases],
        prompt_tokens=options.prompt_tokens,
        target_tokens=options.target_tokens,
    )
    cases = gcg.start_all(tokenizer, behaviours, settings, source="")
    gcg.optimise(model, tokenizer, cases[0], replace(settings, steps=0), generator=gcg.random_stream(0, ""))  # warm up

    one, _ = ours(model, tokenizer, cases[:1], settings)
    eight, found = ours(model, tokenizer, cases, settings)
    screened, rough = ours(model, tokenizer, cases, replace(settings, screen=True))
    memory = peak_mib(torch.device("cpu"))
    compared = cases[:1] if options.quick else cases
    theirs = [peer(model, tokenizer, case, settings) for case in compared]
    peer_one, peer_each = median(theirs[0][0]), median([s for seconds, _ in theirs for s in seconds])
    reference, _ = models.load_causal_lm(folder)
    plain = [plain_loss(reference, tokenizer, case) for case in found]
    parts = [
        prompts.segments(tokenizer, c.behaviour, attack=c.suffix, target=c.target, end_of_turn=False) for c in cases
    ]
    result = {
        "name": "gcg",
        "peer": f"nanogcg {version('nanogcg')} (without prefix cache)",
        "ratio": round(peer_each / (median(eight) / len(cases)), 2),
        "ratio_one_case": round(peer_one / median(one), 2),
        "ratio_with_screen": round(peer_each / (median(screened) / len(cases)), 2),
        "goal": 4,
        "goal_one_case": 3,
        "largest_difference": max(abs(case.loss - loss) for case, loss in zip(found, plain, strict=True)),
        "settings": {
            "model": options.model,
            "dtype": options.dtype,
            "steps": steps,
            "width": options.width,
            "top_k": settings.top_k,
            "suffix_tokens": settings.suffix_length,
            "cases": len(cases),
            "peer_cases": len(compared),
            "prompt_tokens": [len(p.before) + len(p.instruction) for p in parts],
            "target_tokens": [len(p.target) for p in parts],
            "threads": torch.get_num_threads(),
            "ours_seconds_a_step": round(median(one), 3),
            "ours_seconds_a_step_and_case": round(median(eight) / len(cases), 3),
            "screened_seconds_a_step_and_case": round(median(screened) / len(cases), 3),
            "peer_seconds_a_step": round(peer_each, 3),
            "ours_final_loss": round(sum(c.loss for c in found[: len(compared)]) / len(compared), 4),
            "screened_final_loss": round(sum(c.loss for c in rough[: len(compared)]) / len(compared), 4),
            "peer_final_loss": round(sum(c.loss for _, c in theirs) / len(theirs), 4),
            "ours_peak_mib": round(memory),
            "peak_mib": round(peak_mib(torch.device("cpu"))),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
