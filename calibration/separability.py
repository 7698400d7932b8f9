"""Separability (`geometry.Separability`): what it says where there is nothing, and how often two models differ falsely.

Activations of n harmful and as many harmless prompts, twins among them, in 200 dimensions of falling spread. Two models
share a part of each prompt's activation and have the rest for themselves; the distance of the classes is the same in
both, so that any difference whose interval excludes 0 is false.
"""

import numpy as np
import pandas as pd

from mechrefusal.geometry.separability import Separability, difference

D_MODEL, DRAWS = 200, 500
DISTANCES = {"none": 0.0, "small": 0.3, "large": 1.2}
"""Distance of the classes in each of ten dimensions."""
SHARED = (0.5, 0.95)
NUMBERS = (16, 32)


def drawn(distance: float, shared: float, n: int, random: np.random.Generator) -> list[np.ndarray]:
    """Activations of two models, [prompt, d_model], harmful prompts first; prompt i and n + i are twins."""
    spread = 1 / np.sqrt(np.arange(1, D_MODEL + 1))
    prompts, twins = random.normal(size=(2 * n, D_MODEL)), random.normal(size=(n, D_MODEL))
    common = 0.7 * prompts + 0.7 * np.concatenate([twins, twins])
    signal = np.zeros(D_MODEL)
    signal[5:15] = distance
    made = []
    for _ in range(2):
        own = random.normal(size=(2 * n, D_MODEL))
        activations = (np.sqrt(shared) * common + np.sqrt(1 - shared) * own) * spread
        activations[:n] += signal
        made.append(activations)
    return made


def table(*, runs: int, numbers: tuple[int, ...] = NUMBERS, seed: int = 0) -> pd.DataFrame:
    """Mean of d', share of intervals that exclude 0, and share of paired differences that do."""
    rows = []
    for name, distance in DISTANCES.items():
        for shared in SHARED:
            for n in numbers:
                random, blocks = np.random.default_rng([seed, n]), np.arange(2 * n) % n
                values, alone, apart = [], [], []
                for _ in range(runs):
                    first, second = (
                        Separability.of_activations(each[None], n, blocks=blocks, n_draws=DRAWS)
                        for each in drawn(distance, shared, n, random)
                    )
                    one = first.mean
                    values.append(one.value)
                    alone.append(not one.low <= 0 <= one.high)
                    two = difference(one.value, second.mean.value, first.mean_draws, second.mean_draws, n)
                    apart.append(not two.low <= 0 <= two.high)
                rows.append(
                    {
                        "distance": name,
                        "shared": shared,
                        "prompts": n,
                        "mean d'": np.mean(values),
                        "excludes 0": np.mean(alone),
                        "differences that exclude 0": np.mean(apart),
                    }
                )
    return pd.DataFrame(rows)
