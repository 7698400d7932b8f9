"""Maps of 270 correlated heads: how often a map of nothing has a mark, and how many of ten heads of d = 1 are found."""

import numpy as np
import pandas as pd

from mechrefusal.statistics.maps import among_controls_p, sign_flip_p
from mechrefusal.statistics.power import map_critical

HEADS, TRUE = 270, 10


def heads(random: np.random.Generator, n: int, share: float) -> np.ndarray:
    """Changes (prompt, head) with mean 0 and variance 1, `share` of it common to all heads."""
    common = random.normal(size=(n, 1)) * np.sign(random.normal(size=HEADS))
    return np.sqrt(share) * common + np.sqrt(1 - share) * random.normal(size=(n, HEADS))


def table(*, runs: int, seed: int = 0) -> pd.DataFrame:
    """By prompts and correlation: 95% intervals that exclude 0 in a map of nothing, and marks by adjusted p."""
    rows = []
    for share in (0.0, 0.5):
        for n in (8, 16, 32, 64):
            random = np.random.default_rng([seed, n])
            excluded, marked, found, false, critical = [], [], [], [], []
            for _ in range(runs):
                nothing = heads(random, n, share)
                t = np.abs(nothing.mean(0)) / (nothing.std(0, ddof=1) / np.sqrt(n))
                excluded.append((t > 2.0 + 2.4 / n).sum())  # about Student's 97.5% point
                marked.append((sign_flip_p(nothing, draws=1000) < 0.05).any())
                something = heads(random, n, share)
                something[:, :TRUE] += 1.0
                marks = sign_flip_p(something, draws=1000) < 0.05
                found.append(marks[:TRUE].sum())
                false.append(marks[TRUE:].any())
                critical.append(map_critical(nothing, draws=400))
            rows.append(
                {
                    "common variance": share,
                    "n": n,
                    "intervals that exclude 0": np.mean(excluded),
                    "maps of nothing with a mark": np.mean(marked),
                    "found of ten": np.mean(found),
                    "maps with a false mark beside them": np.mean(false),
                    "critical t": np.mean(critical),
                }
            )
    return pd.DataFrame(rows)


def controls(*, runs: int, seed: int = 0) -> pd.DataFrame:
    """Values that are one more draw of their control, in 270 cells: maps with a mark, by draws and unlikeness."""
    rows = []
    for unlike in (0.0, 0.5, 1.0):
        for draws in (3, 5, 10):
            random = np.random.default_rng([seed, draws])
            sizes = random.lognormal(sigma=unlike, size=HEADS)
            marked, found = [], []
            for _ in range(runs):
                values = random.normal(0.2, 1, size=(draws + 1, HEADS)) * sizes
                marked.append((among_controls_p(values[0], values[1:]) < 0.05).any())
                values[0, :TRUE] += 8 * sizes[:TRUE]
                found.append((among_controls_p(values[0], values[1:])[:TRUE] < 0.05).sum())
            rows.append(
                {
                    "sd of log size": unlike,
                    "rotations": draws,
                    "maps of nothing with a mark": np.mean(marked),
                    "found of ten, 8 sd each": np.mean(found),
                }
            )
    return pd.DataFrame(rows)
