"""Scores of candidate carriers: ours, exact and screened, against a plain loop of hooks on the same model and prompts.

    python benchmarks/carriers.py [--quick] [--checkpoint FOLDER_OR_NAME] [--prompts 32]

The peer runs the hooked transformer three times a candidate (harmful ablated, harmless ablated, harmless with the
direction added), prompts padded to one batch. The last line is one JSON object: name, peer, ratio (peer's seconds /
ours, a candidate), goal, largest_difference, settings; `screened` holds the same for the screening mode.
"""

import argparse
import json
import time
from importlib.metadata import version

import numpy as np
import torch

from mechrefusal import evaluation, forward, geometry, models, prompts
from mechrefusal.causal.reference import ZERO
from mechrefusal.forward import runner_of
from mechrefusal.geometry.scoring import Scorer, scores_of

TIMED = 3
"""Candidates that the peer scores: its time is the same for each."""


def plain_loop(model, directions, places, harmful, harmless, metric) -> tuple[list[dict], float]:
    """The scores of the peer, and its fastest candidate in seconds."""
    n_layers, pad = model.cfg.n_layers, model.tokenizer.pad_token_id
    batches = []
    for token_ids in (harmful, harmless):
        longest = max(map(len, token_ids))
        padded = torch.full((len(token_ids), longest), pad)
        for row, tokens in enumerate(token_ids):
            padded[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask = torch.stack([(torch.arange(longest) >= longest - len(tokens)).long() for tokens in token_ids])
        batches.append((padded, mask))

    def run(batch, hooks):
        with model.hooks(fwd_hooks=hooks):
            return model(batch[0], attention_mask=batch[1], return_type="logits")

    ends = len(metric.opening) + 1
    base = run(batches[1], [])[:, -ends].log_softmax(-1)
    found, seconds = [], []
    for position, layer in places:
        direction = directions.at(position, layer).vector.float()
        unit = direction / direction.norm()

        def ablate(x, hook, unit=unit):
            return x - (x @ unit)[..., None] * unit

        def add(x, hook, direction=direction):
            return x + direction

        everywhere = [
            (f"blocks.{each}.{site}", ablate)
            for each in range(n_layers)
            for site in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
        ]
        started = time.perf_counter()
        bypass = metric.of(run(batches[0], everywhere)[:, -1]).mean().item()
        ablated = run(batches[1], everywhere)
        kl = geometry.kl_divergence(base, ablated[:, -ends].log_softmax(-1)).mean().item()
        added = run(batches[1], [(f"blocks.{layer}.hook_resid_pre", add)])
        induce = metric.of(added[:, -1]).mean().item()
        seconds.append(time.perf_counter() - started)
        found.append({"position": position, "layer": layer, "bypass": bypass, "induce": induce, "kl": kl})
    return found, min(seconds)


def rounding(model, directions, places, validation, metric, exact) -> dict[str, float]:
    """What bfloat16 alone shifts the means by: standard deviation over candidates, of the KL as a share of it."""
    scorer = Scorer(model, validation, metric, low_precision=True)
    known = exact.table.set_index(["position", "layer"])
    shifts = []
    for place in places:
        means = [values.mean() for values in scores_of(scorer, directions.at(*place))]
        true = known.loc[place, ["bypass", "induce", "kl"]].to_numpy(float)
        shifts.append((means - true) / [1, 1, true[2]])
    return {
        name: round(float(value), 4) for name, value in zip(("bypass", "induce", "kl"), np.std(shifts, 0), strict=True)
    }


@torch.no_grad()
def main() -> None:
    """Time the peer and both of ours, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every other layer at the last two positions")
    parser.add_argument("--checkpoint", default="smollm2-135m-instruct", help="checkpoint folder, packaged or hub name")
    parser.add_argument("--prompts", type=int, default=32, help="validation prompts of each side")
    options = parser.parse_args()

    model = models.load_hooked(models.fetch(options.checkpoint))
    asked = prompts.builtin()
    direction, validation = asked.direction.take(64), asked.validation.take(options.prompts)
    found = evaluation.discover_refusal(model, direction)
    # Both sides score the same thing: the peer knows token sets only, and ablates to zero and adds, as published.
    metric = forward.RefusalMetric(found.opening, found.refusal_tokens, found.compliance_tokens, kind=found.kind)
    directions = geometry.difference_in_means(model, direction)
    layers = geometry.Admissible().layers(model.cfg.n_layers)[1 :: 2 if options.quick else 1]
    positions = directions.positions[-2:] if options.quick else directions.positions
    places = geometry.carriers.candidates(directions, layers=layers, positions=positions)
    places = [place for place in places if models.is_direction(directions.at(*place).vector)]
    harmful, harmless = (
        [[*ids, *metric.opening] for ids in prompts.prompt_ids(model.tokenizer, texts)]
        for texts in (validation.harmful, validation.harmless)
    )
    timed = places[:: max(1, len(places) // TIMED)][:TIMED]
    plain_loop(model, directions, timed[:1], harmful[:2], harmless[:2], metric)  # sets up what both use
    theirs, peer_seconds = plain_loop(model, directions, timed, harmful, harmless, metric)

    started = time.perf_counter()
    exact = geometry.score(model, directions, validation, metric, places=places, reference=ZERO)
    exact_seconds = (time.perf_counter() - started) / len(places)
    # Thresholds that each let a quarter of the candidates pass, whatever the checkpoint: a race with a winner, or near.
    rule = geometry.Admissible(
        kl=float(exact.table["kl"].quantile(0.25)), induce=float(exact.table["induce"].quantile(0.75))
    )
    started = time.perf_counter()
    screened = geometry.screened(model, directions, validation, metric, rule, places=places, reference=ZERO)
    screened_seconds = (time.perf_counter() - started) / len(places)

    ours = exact.table.set_index(["position", "layer"])
    differences = [
        abs(ours.loc[(row["position"], row["layer"]), name] - row[name])
        for row in theirs
        for name in ("bypass", "induce", "kl")
    ]
    rough = ~screened.table["exact"].to_numpy()
    shifts = {
        name: round(float(np.abs(screened.table[name] - exact.table[name])[rough].max()), 4) if rough.any() else 0.0
        for name in ("bypass", "induce", "kl")
    }
    stable = geometry.stability.bootstrap(exact, model.cfg.n_layers, rule).table["win_frequency"]
    winners = [geometry.select(scores, admissible=rule).winner for scores in (exact, screened)]
    named = [None if winner is None else list(winner.place) for winner in winners]
    result = {
        "name": "carriers.score",
        "peer": f"transformer_lens {version('transformer-lens')} run_with_hooks, three passes a candidate",
        "ratio": round(peer_seconds / exact_seconds, 2),
        "goal": 3,
        "largest_difference": float(max(differences)),
        "screened": {
            "ratio": round(peer_seconds / screened_seconds, 2),
            "goal": 8,
            "same_winner": named[0] == named[1],
            "winner": named[0],
            "finalists": int(screened.table["exact"].sum()),
            "bootstraps_lost": round(float(stable[rough].sum()), 4),
            "largest_shift": shifts,
            "bfloat16_shift": rounding(
                model, directions, places[:: max(1, len(places) // 12)], validation, metric, exact
            ),
        },
        "settings": {
            "checkpoint": options.checkpoint,
            "dtype": "float32",
            "runner": runner_of(model).name,
            "candidates": len(places),
            "peer_candidates": len(timed),
            "prompts": [len(harmful), len(harmless)],
            "tokens": max(map(len, harmful + harmless)),
            "opening": len(metric.opening),
            "metric": metric.kind,
            **{f"{name}_threshold": round(getattr(rule, name), 4) for name in ("kl", "induce")},
            "threads": torch.get_num_threads(),
            "peer_seconds_a_candidate": round(peer_seconds, 2),
            "exact_seconds_a_candidate": round(exact_seconds, 3),
            "screened_seconds_a_candidate": round(screened_seconds, 3),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
