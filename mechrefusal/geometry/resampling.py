"""Two groups of prompts under resampling: every measure is a function of the weights of the prompts.

A contrast is one row of weights: positive ones that sum to 1 on the first group, negative ones that sum to −1 on the
second. What was observed, a bootstrap and shuffled labels differ in the weights only, so that one function of them
gives the value, its interval and its floor.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from mechrefusal.geometry import folds
from mechrefusal.statistics import Estimate

FEWEST = 3
"""Fewer prompts than this in a group say nothing about its noise."""
DRAWS = 1000

Draws = Float[np.ndarray, "draw prompt"]
Blocks = Int[np.ndarray, " prompt"]
"""Prompts with the same number stand or fall together: a harmful and a harmless prompt in the same words."""


def observed(n_first: int, n_second: int) -> Draws:
    """The contrast of the two group means: one draw."""
    return np.concatenate([np.full(n_first, 1 / n_first), np.full(n_second, -1 / n_second)])[None]


def bootstrapped(
    n_first: int, n_second: int, random: np.random.Generator, draws: int = DRAWS, *, blocks: Blocks | None = None
) -> Draws:
    """Contrasts of groups drawn anew, with replacement: prompts, each group from itself, or whole `blocks` of prompts.

    NaN where a draw of blocks leaves a group empty.
    """
    if blocks is None:
        return np.concatenate([resampled(n_first, random, draws), -resampled(n_second, random, draws)], axis=1)
    times = times_drawn(blocks, random, draws)
    return contrast(times * (observed(n_first, n_second) > 0), times * (observed(n_first, n_second) < 0))


def times_drawn(blocks: Blocks, random: np.random.Generator, draws: int = DRAWS) -> Int[np.ndarray, "draw prompt"]:
    """How often each prompt is in each draw of whole blocks, as many as there are, with replacement."""
    n_blocks = int(blocks.max()) + 1
    return random.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=draws)[:, blocks]


def contrast(first: Draws, second: Draws) -> Draws:
    """Contrasts from how often each prompt is in either group; NaN where a group is empty."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return first / first.sum(axis=-1, keepdims=True) - second / second.sum(axis=-1, keepdims=True)


def blocks_of(labels: Sequence[Hashable]) -> Blocks:
    """Number of the block of every prompt: prompts with the same label are in one."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=int)


def dealt(
    is_first: Bool[np.ndarray, " prompt"], blocks: Blocks, parts: int, random: np.random.Generator
) -> Int[np.ndarray, " prompt"]:
    """Deal the prompts out to `parts` parts at random, whole blocks at a time, with like shares of both groups."""
    n_first, n_second = np.bincount(blocks, is_first), np.bincount(blocks, ~is_first)
    # Blocks of the same make go round the parts one after the other.
    order = np.lexsort((random.random(len(n_first)), n_second, n_first))
    part = np.empty(len(order), dtype=int)
    part[order] = np.arange(len(order)) % parts
    return part[blocks]


def shuffled(n_first: int, n_second: int, random: np.random.Generator, draws: int = DRAWS) -> Draws:
    """Contrasts between groups of the same sizes to which the prompts are dealt at random."""
    return random.permuted(observed(n_first, n_second).repeat(draws, axis=0), axis=1)


def resampled(n: int, random: np.random.Generator, draws: int = DRAWS) -> Draws:
    """Weights of n prompts, summing to 1, under resampling with replacement."""
    return random.multinomial(n, np.full(n, 1 / n), size=draws) / n


def estimate(
    value: float,
    draws: Float[np.ndarray, " draw"],
    n: int,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """95% interval around `value` from bootstrap draws, as `folds.interval` takes it; NaN for fewer than `FEWEST`.

    Args:
        n: prompts in the smaller group.
    """
    if n < FEWEST:
        return Estimate(value, float("nan"), float("nan"), n)
    return folds.interval(value, draws, n, bounds=bounds)


def band(draws: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    """The middle 95% of draws; NaN where there is none."""
    if not np.isfinite(draws).any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


def auc(scores: Float[np.ndarray, " prompt"], contrasts: Draws) -> Float[np.ndarray, " draw"]:
    """Chance that a prompt of the first group scores higher than one of the second, ties counting half."""
    above = (scores[:, None] > scores[None]) + 0.5 * (scores[:, None] == scores[None])
    share = ((np.maximum(contrasts, 0) @ above) * np.maximum(-contrasts, 0)).sum(axis=1)
    return share.round(12)  # weights of 1/n do not sum to 1 exactly, and 1 is to be 1


def auc_by_ranks(first: Float[np.ndarray, "n *column"], second: Float[np.ndarray, "m *column"]) -> np.ndarray:
    """`auc` of whole groups, column by column, from ranks."""
    n, m = len(first), len(second)
    ranks = stats.rankdata(np.concatenate([first, second]), axis=0)
    return (ranks[:n].sum(axis=0) - n * (n + 1) / 2) / (n * m)


def random_units(n: int, d_model: int, random: np.random.Generator) -> Float[np.ndarray, "n d_model"]:
    """Random directions of length one."""
    rows = random.normal(size=(n, d_model))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def constant(activations: Float[np.ndarray, "prompt d_model"]) -> bool:
    """Whether all prompts have the same activation, up to float32's rounding, so that they hold no information."""
    spread = np.ptp(activations, axis=0).max()
    return bool(spread <= 1e-5 * np.abs(activations).max())


def row(measure: str, estimate: Estimate, floor: tuple[float, float], by_chance: float, *, n: int) -> dict:
    """One row of the tables `overlap` and `coupling`, without its place."""
    return {
        "measure": measure,
        **estimate.columns("value", ""),
        "floor_low": floor[0],
        "floor_high": floor[1],
        "random": by_chance,
        "n": n,
        "reason": "",
    }


def missing(measure: str, n: int, reason: str) -> dict:
    """A `row` for a measure that cannot be taken, with the reason."""
    nan = float("nan")
    return row(measure, Estimate(nan, nan, nan, n), (nan, nan), nan, n=n) | {"reason": reason}


def unusable(activations: Float[np.ndarray, "prompt d_model"]) -> str:
    """Why activations say nothing; "" where they do."""
    if not np.isfinite(activations).all():
        return "activations are not finite"
    return "activations are the same for every prompt" if constant(activations) else ""


def lengths(contrasts: Draws, gram: Float[np.ndarray, "prompt prompt"]) -> Float[np.ndarray, " draw"]:
    """Length of every contrast of the prompts, from their (centred) inner products; NaN for none."""
    length = np.sqrt(np.maximum(((contrasts @ gram) * contrasts).sum(axis=1), 0))
    return np.where(length > 1e-9 * np.sqrt(np.diag(gram).max()), length, np.nan)


def too_few(first: int, second: int, names: tuple[str, str]) -> str:
    """Why two groups cannot be compared; "" where they can."""
    if min(first, second) >= FEWEST:
        return ""
    return f"{first} {names[0]} and {second} {names[1]} prompts; at least {FEWEST} of each are needed"
