"""Coverage of 95% intervals by number of prompts: skewed means, ratios, paired rates, rates that a judge counted."""

import numpy as np
import pandas as pd
from scipy import stats

from mechrefusal.evaluation.judge_error import JudgeCounts, corrected_rate
from mechrefusal.statistics import intervals
from mechrefusal.statistics.paired import rate_difference

NUMBERS = (16, 32, 64, 128)


def means(*, runs: int, seed: int = 0) -> pd.DataFrame:
    """Means of values as skewed as divergences are: Student's interval, and Hall's (`intervals.skewed_mean`)."""
    rows = []
    for kind, true in (("log-normal, σ 1", np.exp(0.5)), ("one prompt in ten moves", 0.1), ("normal", 0.0)):
        for n in NUMBERS:
            random = np.random.default_rng([seed, n])
            covered: dict[str, list[bool]] = {"Student": [], "Hall": []}
            for _ in range(runs):
                if kind == "normal":
                    values = random.normal(size=n)
                elif kind.startswith("log"):
                    values = random.lognormal(size=n)
                else:
                    values = (random.random(n) < 0.1) * random.exponential(size=n)
                for name, interval in (("Student", intervals.mean), ("Hall", intervals.skewed_mean)):
                    found = interval(values)
                    covered[name].append(found.low <= true <= found.high)
            rows.append({"values": kind, "n": n, **{name: np.mean(each) for name, each in covered.items()}})
    return pd.DataFrame(rows)


def ratios(*, runs: int, seed: int = 0) -> pd.DataFrame:
    """Effects as shares of a gap: with the gap held, and linearised (`intervals.ratio`)."""
    rows = []
    for kind in ("proportional", "independent"):
        for n in NUMBERS:
            random = np.random.default_rng([seed, n])
            covered: dict[str, list[bool]] = {"gap held": [], "linearised": []}
            for _ in range(runs):
                gaps = random.normal(5, 2, n)
                parts = 0.3 * gaps + random.normal(0, 0.3, n) if kind == "proportional" else random.normal(1.5, 1, n)
                plain, found = intervals.mean(parts / gaps.mean()), intervals.ratio(parts, gaps)
                covered["gap held"].append(plain.low <= 0.3 <= plain.high)
                covered["linearised"].append(found.low <= 0.3 <= found.high)
            rows.append({"effects": kind, "n": n, **{name: np.mean(each) for name, each in covered.items()}})
    return pd.DataFrame(rows)


def paired_rates(*, runs: int, seed: int = 0) -> pd.DataFrame:
    """Differences of rates on the same prompts (`paired.rate_difference`), and intervals without a width."""
    rows = []
    for p, q in ((0.95, 0.95), (0.9, 0.6), (0.5, 0.5), (0.05, 0.2)):
        for n in NUMBERS:
            random = np.random.default_rng([seed, n])
            covered, width = [], []
            for _ in range(runs):
                common = random.normal(size=n)
                first, second = ((common + random.normal(size=n)) / np.sqrt(2) for _ in range(2))
                found = rate_difference(
                    (first < stats.norm.ppf(p)).astype(float), (second < stats.norm.ppf(q)).astype(float)
                )
                covered.append(found.low <= q - p <= found.high)
                width.append(found.high - found.low)
            rows.append({"rates": f"{p:g} and {q:g}", "n": n, "coverage": np.mean(covered), "width": np.mean(width)})
    return pd.DataFrame(rows)


def corrected_rates(*, runs: int, seed: int = 0) -> pd.DataFrame:
    """Rates of 50 answers by a judge with sensitivity .95 and specificity .92: as counted (Wilson), and corrected.

    The judge's error is known from `labels` answers of the same kind, half of them refusals (`judge_error`).
    """
    rows = []
    for true in (0.05, 0.3, 0.8, 0.95):
        for labels in (40, 200, 1000):
            random = np.random.default_rng([seed, labels])
            covered: dict[str, list[bool]] = {"as counted": [], "corrected": []}
            width = []
            for _ in range(runs):
                half = labels // 2
                judge = JudgeCounts(
                    int(random.binomial(half, 0.95)), half, int(random.binomial(labels - half, 0.92)), labels - half
                )
                hits = int(random.binomial(50, true * 0.95 + (1 - true) * 0.08))
                counted, corrected = intervals.rate(hits, 50), corrected_rate(hits, 50, judge)
                for name, found in (("as counted", counted), ("corrected", corrected)):
                    covered[name].append(found.low <= true <= found.high)
                width.append(corrected.high - corrected.low)
            shares = {name: np.mean(each) for name, each in covered.items()}
            rows.append({"true rate": true, "labels": labels, **shares, "width": np.mean(width)})
    return pd.DataFrame(rows)
