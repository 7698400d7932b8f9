"""Measures on the prompts that made them, and held out: bias and coverage where the truth is known. No model runs.

    python -m calibration.held_out [--quick]

share: refusals of safe prompts lie along the refusal direction by half of what harmful and harmless prompts differ by;
`overlap` says how much, from directions of few prompts. carrier: candidates of known effects, chosen by few prompts;
`held_out.ChosenCandidate` says how far the chosen one lowers the score, nats. By number of prompts: bias as it was on
the prompts that made the direction, or chose the carrier (`own`), bias held out, its standard error and deviation, and
how often the 95% interval holds the truth.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from calibration.written import written
from mechrefusal.geometry import overlap
from mechrefusal.geometry.carrier_scores import CarrierScores
from mechrefusal.geometry.held_out import Choice, ChosenCandidate
from mechrefusal.statistics import intervals

D_MODEL, LENGTH, SAFE, SHARE = 256, 5.2, 40, 0.5
"""Width, length of the true direction (prompts scatter by 1 in every dimension), safe prompts of each kind, truth."""
CANDIDATES, BEST, SPREAD, NOISE = 24, 6.0, 1.5, 2.0
"""Candidates, the best true decrease, the span of all, and what prompts' own decreases scatter by (nats)."""


def share_of(seed: int, n: int) -> tuple[float, intervals.Estimate]:
    """projection_share: on the prompts that made the direction, and as the package takes it."""
    random = np.random.default_rng([seed, n])
    harmful, harmless = random.normal(size=(2, n, D_MODEL))
    safe = random.normal(size=(2 * SAFE, D_MODEL))
    harmful[:, 0] += LENGTH
    safe[:SAFE, 0] += SHARE * LENGTH
    r = harmful.mean(0) - harmless.mean(0)
    table = overlap.overlap(safe[:SAFE], safe[SAFE:], r, harmful=harmful, harmless=harmless, seed=seed)
    row = table.set_index("measure").loc["projection_share"]
    own = (safe[:SAFE].mean(0) - safe[SAFE:].mean(0)) @ r / (r @ r)
    return own - SHARE, intervals.Estimate(row["value"] - SHARE, row["low"] - SHARE, row["high"] - SHARE, n)


def carrier_of(seed: int, n: int) -> tuple[float, intervals.Estimate]:
    """The chosen candidate's decrease less the true one: on the prompts that chose it, and on those that did not."""
    random = np.random.default_rng([seed, n])
    truth = BEST - SPREAD * random.random(CANDIDATES)
    decrease = truth[:, None] + NOISE * (random.normal(size=n) + random.normal(size=(CANDIDATES, n)))
    before = 8 + random.normal(size=n)
    kl, induce = random.normal(0.07, 0.05, (CANDIDATES, n)), random.normal(2, 1, (CANDIDATES, n))
    bypass = before - decrease
    table = pd.DataFrame({"position": -1, "layer": range(CANDIDATES), "exact": True})
    folds = [row % 16 for row in range(n)]
    choice = Choice(CarrierScores(table, bypass, induce, kl), (folds, folds), 2 * CANDIDATES)
    chosen = choice.held_out().whole
    names = [("harmful", row) for row in range(n)], [("harmless", row) for row in range(n)]
    found = ChosenCandidate(choice, names, names[0]).decrease(before, bypass[chosen], seed=seed)
    true = truth[chosen]
    moved = intervals.Estimate(found.value - true, found.low - true, found.high - true, n)
    return decrease[chosen].mean() - true, moved


def table(simulate: Callable, sizes: Sequence[int], runs: int) -> pd.DataFrame:
    """One row a number of prompts."""
    found = []
    for size in sizes:
        own, held_out = zip(*(simulate(seed, size) for seed in range(runs)), strict=True)
        values = np.array([each.value for each in held_out])
        found.append(
            {
                "prompts": size,
                "own": float(np.mean(own)),
                "held out": float(values.mean()),
                "standard error": float(values.std() / np.sqrt(runs)),
                "standard deviation": float(values.std()),
                "coverage": float(np.mean([each.low <= 0 <= each.high for each in held_out])),
            }
        )
    return pd.DataFrame(found)


def main() -> int:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    runs = 40 if parser.parse_args().quick else 400
    overlap.N_RANDOM = 20  # random directions are not looked at here
    for name, simulate, sizes in (
        ("share", share_of, (16, 40, 64, 128)),
        ("carrier", carrier_of, (16, 32, 128)),
    ):
        print(written(f"Bias of {name}", table(simulate, sizes, runs)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
