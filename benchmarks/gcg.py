"""GCG: ours against nanoGCG, wall time to equal loss on the same model, behaviours, targets, first suffix and width.

    python benchmarks/gcg.py [--quick] [--dtype float32|bfloat16] [--steps 10] [--our_steps 5] [--width 64]
                             [--rounds 10] [--cases 8] [--seeds 1] [--prompt_tokens 49] [--target_tokens 6]

The peer runs in two modes: with its defaults, and with probe sampling (arXiv 2403.01251) whose draft is the first third
of the model's layers, saved as a folder of its own. Both without its prefix cache, which fails on transformers 5 (as
`prefix_cache` in the settings says, tried anew each time). Ours is GCG with `rounds`; the published GCG of ours
(`rounds` 1) is timed beside it.

To equal loss: of each case and seed, the loss that both reach is the worse of the two lowest losses that they found,
and each side's time is that at the end of the step in which it first had a loss as low. The ratio is the median over
cases and seeds, for each mode of the peer alone; `ratio` is the smaller one, that against the better mode. The peer
runs one case after another, and its clock starts at its first step, so that its preparations are left out; ours runs
all cases together and counts everything, each case its even share. `ratios_processor` are the same in seconds of
processor time, which other programs on the machine disturb less (it means something with one thread). Ratios of a step
and case are of the medians over steps. `largest_difference` is that of our final losses from a plain float32
recomputation, in nats a token. The last line is one JSON object.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import nanogcg
import torch
from transformers import AutoModelForCausalLM

from mechrefusal import models, prompts
from mechrefusal.attacks import AttackCase, GCGSettings, gcg
from mechrefusal.training.clock import peak_mib

INITIAL = "! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! !"
CLOCKS: tuple[Callable[[], float], ...] = (time.perf_counter, time.process_time)


@dataclass(frozen=True)
class Curve:
    """What a search found on one case: after each step, seconds by each clock since it began, and the lowest loss."""

    seconds: tuple[tuple[float, ...], ...]
    lowest: tuple[float, ...]

    def until(self, loss: float, clock: int) -> float:
        """Seconds until a loss as low was found."""
        return next(at[clock] for at, found in zip(self.seconds, self.lowest, strict=True) if found <= loss)

    def steps_until(self, loss: float) -> int:
        """Steps until a loss as low was found."""
        return next(step for step, found in enumerate(self.lowest, start=1) if found <= loss)

    def steps(self) -> Iterator[float]:
        """Wall seconds of each step."""
        wall = [0.0, *(at[0] for at in self.seconds)]
        return (after - before for before, after in pairwise(wall))


def plain_loss(model, tokenizer, case: AttackCase) -> float:
    """Cross-entropy of the target through one pass over the whole text, without a cache, in the model's precision."""
    parts = prompts.segments(tokenizer, case.behaviour, attack=case.suffix, target=case.target, end_of_turn=False)
    where = parts.slice("target")
    row = torch.tensor([parts.ids], device=next(model.parameters()).device)
    with torch.no_grad():
        logits = model(row).logits[0, where.start - 1 : where.stop - 1].float()
    return float(torch.nn.functional.cross_entropy(logits, row[0, where]))


def peer_config(settings: GCGSettings, *, initial: str, seed: int = 0, draft=None, cache=False) -> nanogcg.GCGConfig:
    """The same search for nanoGCG; with `draft` (a model and its tokenizer), by probe sampling."""
    probing = None if draft is None else nanogcg.gcg.ProbeSamplingConfig(*draft)
    return nanogcg.GCGConfig(
        num_steps=settings.steps,
        search_width=settings.width,
        topk=settings.top_k,
        optim_str_init=" " + initial,
        use_prefix_cache=cache,
        seed=seed,
        verbosity="ERROR",
        probe_sampling_config=probing,
    )


def peer(model, tokenizer, case: AttackCase, config: nanogcg.GCGConfig) -> Curve:
    """The search of nanoGCG on one case; its clock starts where the first step takes its gradient."""
    began: list[tuple[float, ...]] = []
    gradient = nanogcg.gcg.GCG.compute_token_gradient  # the first thing that a step does

    def timed(self, *args):
        began.append(now())
        return gradient(self, *args)

    nanogcg.gcg.GCG.compute_token_gradient = timed
    try:
        found = nanogcg.run(model, tokenizer, case.behaviour, case.target, config)
        began.append(now())
    finally:
        nanogcg.gcg.GCG.compute_token_gradient = gradient
        torch.use_deterministic_algorithms(False)  # which nanoGCG turns on
    return Curve(since(began[0], began[1:]), tuple(accumulate(map(float, found.losses), min)))


def ours(model, tokenizer, cases: list[AttackCase], settings: GCGSettings, *, seed: int):
    """Our search on all cases together: a curve for each, with its share of the time, and what was found."""
    streams = [gcg.random_stream(seed, case.id) for case in cases]
    at = [now()]
    found = gcg.optimise_all(model, tokenizer, cases, settings, generators=streams, on_step=lambda _: at.append(now()))
    seconds = tuple(tuple(value / len(cases) for value in one) for one in since(at[0], at[1:]))
    return [Curve(seconds, case.history[1:]) for case in found], found


def now() -> tuple[float, ...]:
    """This moment by every clock."""
    return tuple(clock() for clock in CLOCKS)


def since(start: tuple[float, ...], moments: list[tuple[float, ...]]) -> tuple[tuple[float, ...], ...]:
    """Seconds from `start` to each moment, by every clock."""
    return tuple(tuple(b - a for a, b in zip(start, moment, strict=True)) for moment in moments)


def draft_of(folder: Path, to: Path):
    """The first third of a model's layers with its output matrix, saved to a folder of its own and loaded from it."""
    layers = AutoModelForCausalLM.from_pretrained(folder).config.get_text_config().num_hidden_layers
    AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=layers // 3).save_pretrained(to)
    models.load_tokenizer(folder).save_pretrained(to)
    return models.load_causal_lm(to)


def cache_works(model, tokenizer, case: AttackCase, settings: GCGSettings) -> bool:
    """Whether nanoGCG's prefix cache runs with this transformers."""
    tiny = replace(settings, steps=1, width=2)
    try:
        nanogcg.run(model, tokenizer, case.behaviour, case.target, peer_config(tiny, initial=case.suffix, cache=True))
    except Exception as error:
        print(f"nanoGCG with its prefix cache: {type(error).__name__}: {str(error)[:150]}")
        return False
    return True


def to_equal_loss(mine: list[Curve], theirs: list[Curve], clock: int = 0) -> list[float]:
    """Theirs over mine, seconds to the loss that both reach, of each pair."""
    found = []
    for one, other in zip(mine, theirs, strict=True):
        loss = max(one.lowest[-1], other.lowest[-1])
        found.append(other.until(loss, clock) / one.until(loss, clock))
    return found


def step_of(curves: list[Curve]) -> float:
    """Median seconds of a step and case."""
    return median(seconds for curve in curves for seconds in curve.steps())


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
            ids = prompts.opening_ids(tokenizer, target)[1][:target_tokens]
            table.loc[row, "target"] = tokenizer.decode(ids)
    return prompts.PromptSet(behaviours.name, table)


def report(curves: dict[str, list[Curve]], *, difference: float, settings: dict[str, Any]) -> dict[str, Any]:
    """What is printed last: the ratios, and what they are made of."""
    modes = ("defaults", "probe_sampling")
    ratios = {mode: to_equal_loss(curves["rounds"], curves[mode]) for mode in modes}
    wall = {mode: round(median(found), 2) for mode, found in ratios.items()}
    steps = {name: step_of(found) for name, found in curves.items()}
    return {
        "name": "gcg",
        "peer": f"nanogcg {version('nanogcg')}, the better of its defaults and probe sampling (no prefix cache)",
        "ratio": min(wall.values()),
        "goal": 5,
        "largest_difference": difference,
        "settings": settings
        | {
            "ratios": wall,
            "ratios_of_cases": {mode: [round(ratio, 2) for ratio in found] for mode, found in ratios.items()},
            "ratios_processor": {
                mode: round(median(to_equal_loss(curves["rounds"], curves[mode], clock=1)), 2) for mode in modes
            },
            "ratios_published": {
                mode: round(median(to_equal_loss(curves["published"], curves[mode])), 2) for mode in modes
            },
            "ratios_published_processor": {
                mode: round(median(to_equal_loss(curves["published"], curves[mode], clock=1)), 2) for mode in modes
            },
            "ratios_a_step": {mode: round(steps[mode] / steps["rounds"], 2) for mode in modes},
            "ratios_a_step_published": {mode: round(steps[mode] / steps["published"], 2) for mode in modes},
            "seconds_a_step_and_case": {name: round(seconds, 3) for name, seconds in steps.items()},
            "lowest_loss": {name: [round(curve.lowest[-1], 3) for curve in found] for name, found in curves.items()},
            "rounds_steps_to_equal_loss": {
                mode: [
                    one.steps_until(max(one.lowest[-1], other.lowest[-1]))
                    for one, other in zip(curves["rounds"], curves[mode], strict=True)
                ]
                for mode in modes
            },
        },
    }


def lengths(tokenizer, cases: list[AttackCase]) -> dict[str, list[int]]:
    """Tokens before the suffixes and of the targets."""
    parts = [
        prompts.segments(tokenizer, c.behaviour, attack=c.suffix, target=c.target, end_of_turn=False) for c in cases
    ]
    return {
        "tokens_before_suffix": [len(p.before) + len(p.instruction) for p in parts],
        "tokens_of_target": [len(p.target) for p in parts],
    }


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 steps of one case, about a minute on two cores")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=10, help="of the peer, and of our published GCG")
    parser.add_argument("--our_steps", type=int, default=5, help="of ours in rounds")
    parser.add_argument("--width", type=int, default=64, help="the peer's probe sampling needs more than 32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--prompt_tokens", type=int, default=49, help="tokens before the suffix at least")
    parser.add_argument("--target_tokens", type=int, default=6, help="tokens of the targets; 0: as they are")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.our_steps, options.cases, options.seeds = 2, 2, 1, 1
    return options


def main() -> None:
    """Time both and print the ratios."""
    options = arguments()
    logging.disable(logging.CRITICAL)
    folder = models.fetch(options.model)
    dtype = getattr(torch, options.dtype)
    model, tokenizer = models.load_causal_lm(folder, dtype=dtype)
    model.requires_grad_(False)  # for the peer too: it would collect gradients that nobody reads
    published = GCGSettings(steps=options.steps, width=options.width, initial=INITIAL)
    fast = replace(published, steps=options.our_steps, rounds=options.rounds)
    behaviours = sized(
        tokenizer,
        prompts.builtin().pool.harmful.with_targets()[: options.cases],
        prompt_tokens=options.prompt_tokens,
        target_tokens=options.target_tokens,
    )
    cases = gcg.start_all(tokenizer, behaviours, published, source="")
    warm_up = replace(published, steps=0)
    gcg.optimise(model, tokenizer, cases[0], warm_up, generator=gcg.random_stream(0, ""))

    seeds = range(options.seeds)
    found: list[AttackCase] = []
    curves: dict[str, list[Curve]] = {"published": [], "rounds": [], "defaults": [], "probe_sampling": []}
    for seed in seeds:
        for name, settings in (("published", published), ("rounds", fast)):
            mine, reached = ours(model, tokenizer, cases, settings, seed=seed)
            curves[name] += mine
            print(name, [round(at[1], 1) for at in mine[0].seconds], [one.lowest for one in mine], flush=True)
            found += reached
    memory = peak_mib(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        small, words = draft_of(folder, Path(scratch))
    draft = (small.to(dtype).requires_grad_(False), words)
    for name, given in (("defaults", None), ("probe_sampling", draft)):
        for seed in seeds:
            for case in cases:
                config = peer_config(published, initial=case.suffix, seed=seed, draft=given)
                curves[name].append(peer(model, tokenizer, case, config))
                print(name, [round(at[1], 1) for at in curves[name][-1].seconds], curves[name][-1].lowest, flush=True)
    cached = cache_works(model, tokenizer, cases[0], published)

    reference, _ = models.load_causal_lm(folder)
    plain = [plain_loss(reference, tokenizer, case) for case in found]
    difference = max(abs(case.loss - loss) for case, loss in zip(found, plain, strict=True))
    settings = {
        **vars(options),
        "prefix_cache": cached,
        "draft_layers": small.config.get_text_config().num_hidden_layers,
        "top_k": published.top_k,
        **lengths(tokenizer, cases),
        "threads": torch.get_num_threads(),
        "ours_peak_mib": round(memory),
        "peak_mib": round(peak_mib(torch.device("cpu"))),
    }
    print(json.dumps(report(curves, difference=difference, settings=settings)))


if __name__ == "__main__":
    main()
