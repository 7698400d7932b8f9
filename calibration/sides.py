"""Where a behaviour changes sides (`statistics.sides`): coverage of its interval, and how often there is a side at all.

Of n prompts the source refuses a share and the target another, drawn prompt by prompt. At the output of a layer of 30 a
prompt is answered as by the source where the layer lies at or above the prompt's own turning point, drawn around layer
15, else as by the target; a share of all answers is turned over at random, layer by layer.

    sharp   turning points within half a layer, 2% turned over
    wide    turning points 4 layers around, 2% turned over
    noisy   turning points 2 layers around, 10% turned over
"""

import numpy as np
import pandas as pd

from mechrefusal.statistics.sides import side_change

N_LAYERS, AT = 30, 15
PROFILES = {"sharp": (0.5, 0.02), "wide": (4.0, 0.02), "noisy": (2.0, 0.10)}
"""Spread of the turning points (layers), share of answers turned over."""
RATES = {"apart": (0.9, 0.1), "alike": (0.9, 0.9)}
"""Share of prompts that the source, and the target, refuses."""
NUMBERS = (8, 16, 32, 64)


def drawn(
    kind: str, rates: tuple[float, float], n: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outcomes by prompt and layer, and those of source and target."""
    spread, turned = PROFILES[kind]
    there, here = ((random.random(n) < rate).astype(float) for rate in rates)
    at = random.normal(AT - 0.5, spread, n)
    as_there = np.arange(N_LAYERS)[None, :] >= at[:, None]
    outcomes = np.where(as_there, there[:, None], here[:, None])
    over = random.random(outcomes.shape) < turned
    return np.where(over, 1 - outcomes, outcomes), there, here


def table(*, runs: int, numbers: tuple[int, ...] = NUMBERS, seed: int = 0) -> pd.DataFrame:
    """Shares of draws with an interval, of intervals that hold the true layer, and mean depth and width of them."""
    rows = []
    for kind in PROFILES:
        for name, rates in RATES.items():
            for n in numbers:
                random = np.random.default_rng([seed, n])
                found = [
                    side_change(outcomes, there, here, layers=range(N_LAYERS), beyond=N_LAYERS, draws=500).depth
                    for outcomes, there, here in (drawn(kind, rates, n, random) for _ in range(runs))
                ]
                known = [depth for depth in found if np.isfinite(depth.low)]
                rows.append(
                    {
                        "profile": kind,
                        "sides": name,
                        "prompts": n,
                        "with an interval": len(known) / runs,
                        "holds layer 15": np.mean([each.low <= AT <= each.high for each in known]) if known else np.nan,
                        "mean depth": np.mean([each.value for each in known]) if known else np.nan,
                        "mean width": np.mean([each.high - each.low for each in known]) if known else np.nan,
                    }
                )
    return pd.DataFrame(rows)
