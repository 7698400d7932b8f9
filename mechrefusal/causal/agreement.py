"""How well first-order estimates agree with what was measured exactly."""

import numpy as np
from jaxtyping import Float
from scipy import stats


def agreement_of(estimate: Float[np.ndarray, " cell"], exact: Float[np.ndarray, " cell"]) -> dict[str, float | int]:
    """n, spearman with low and high, sign, error, relative_error, as in `attribution_patching.Screened`."""
    n, nan = len(estimate), float("nan")
    varies = n > 1 and np.ptp(estimate) > 0 and np.ptp(exact) > 0
    rank = float(stats.spearmanr(estimate, exact).statistic) if varies else nan
    low = high = nan
    if n > 4 and varies and abs(rank) < 1 - 1e-9:
        # Fisher's z, with the standard error that Bonett and Wright (2000) give for ranks.
        half = stats.norm.ppf(0.975) * np.sqrt((1 + rank**2 / 2) / (n - 3))
        z = np.arctanh(rank)
        low, high = float(np.tanh(z - half)), float(np.tanh(z + half))
    error, size = np.abs(exact - estimate), np.abs(exact).sum()
    return {
        "n": n,
        "spearman": rank,
        "low": low,
        "high": high,
        "sign": float((np.sign(estimate) == np.sign(exact)).mean()) if n else nan,
        "error": float(error.mean()) if n else nan,
        "relative_error": float(error.sum() / size) if size > 0 else nan,
    }
