"""Relocation of the carrier's layer: false alarms, power and coverage of `statistics.depth` by number of prompts.

Scores are drawn as bypass[layer, prompt] = profile(layer) + direction noise(layer) + prompt noise(layer, prompt), half
of the variance of either noise shared by the two checkpoints, as the prompts are the same. Three profiles, in a model
of 30 layers with candidates at the first 24:

    sharp   4 nats deep, 2 layers wide, prompt noise of 1 nat, direction noise of 1 nat / √prompts
    noisy   4 nats deep, 2.5 layers wide, prompt noise of 4 nats, direction noise of 4 nats / √prompts
    flat    2.5 nats deep, 6 layers wide, prompt noise of 2 nats, direction noise of 2 nats / √prompts
"""

import numpy as np
import pandas as pd

from mechrefusal.statistics.depth import Profile, depth_difference, depth_verdict

N_LAYERS, N_CANDIDATES, AT = 30, 24, 9
PROFILES = {"sharp": (4.0, 2.0, 1.0, 1.0), "noisy": (4.0, 2.5, 4.0, 4.0), "flat": (2.5, 6.0, 2.0, 2.0)}
"""Depth (nats), width (layers), noise of a prompt (nats), noise of the directions of one prompt (nats)."""

NUMBERS = (16, 32, 64, 128, 256)

CONTENDERS = 5
"""Candidates that halves of the direction prompts are asked about, as in the package."""


def pair(kind: str, n: int, moved: float, random: np.random.Generator) -> tuple[Profile, Profile]:
    """Two checkpoints whose carriers are `moved` layers apart, asked the same n prompts of either side."""
    deep, wide, of_prompt, of_direction = PROFILES[kind]
    layers = np.arange(N_CANDIDATES, dtype=float)

    def noise(size: tuple[int, ...], scale: float) -> list[np.ndarray]:
        shared = random.normal(size=size)
        return [scale * (shared + random.normal(size=size)) / np.sqrt(2) for _ in range(2)]

    prompts = noise((N_CANDIDATES, n), of_prompt)
    directions = noise((N_CANDIDATES,), of_direction / np.sqrt(n))
    # What half of the difference between two halves of as many direction prompts is: as noisy as all of them.
    halves = noise((N_CANDIDATES,), of_direction / np.sqrt(n))
    found = []
    for side, centre in enumerate((AT, AT + moved)):
        bypass = -deep * np.exp(-((layers - centre) ** 2) / (2 * wide**2))
        bypass = bypass[:, None] + directions[side][:, None] + prompts[side]
        shifts = np.zeros((1, 3, N_CANDIDATES))
        likeliest = bypass.mean(axis=1).argsort()[:CONTENDERS]
        shifts[0, 0, likeliest] = halves[side][likeliest]
        same, units = np.ones((N_CANDIDATES, n)), list(range(n))
        found.append(Profile(layers, bypass, same, 0 * same, units, units, shifts))
    return found[0], found[1]


def table(*, runs: int, numbers: tuple[int, ...] = NUMBERS, seed: int = 0) -> pd.DataFrame:
    """Shares of verdicts, and of intervals that hold the true difference, by profile, prompts and true move."""
    rows = []
    for kind in PROFILES:
        for n in numbers:
            for moved in (0, 3, 5):
                random = np.random.default_rng([seed, n, moved])
                verdicts, covered = [], []
                for _ in range(runs):
                    found = depth_difference(*pair(kind, n, moved, random), seed=int(random.integers(2**31)))
                    verdicts.append(depth_verdict(found, n_layers=N_LAYERS)[0])
                    covered.append(found.low <= moved <= found.high)
                shares = {name: verdicts.count(name) / runs for name in ("moved", "not moved", "cannot tell")}
                rows.append({"profile": kind, "n": n, "true move": moved, **shares, "coverage": np.mean(covered)})
    return pd.DataFrame(rows)
