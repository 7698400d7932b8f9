"""What training wrote in the made-up run: losses, refreshes of a pool with resets, probes, costs, attack cases."""

from collections.abc import Sequence

import numpy as np

from mechrefusal.statistics import intervals

GONE = float("nan")
OWN_TERM = "margin<b>"
POOL, DRAWN, RESET_EVERY, RESET_SHARE = 24, 4, 50, 0.25
UNLOGGED = 9
"""Step at which nothing but the losses was logged."""


def training_tables(
    arms: Sequence[str], anchors: Sequence[int], *, hostile: Sequence[str], warm_up: int = 0, seed: int = 1
) -> dict[str, list[dict]]:
    """Rows of the tables that training writes, and of `cases`. Every second step is logged; r2d2 alone attacks.

    A warm-up is logged as an arm of its own; the arms go on from its last step, where they ask their first probes.
    """
    rng = np.random.default_rng(seed)
    made: dict[str, list[dict]] = {"training": [], "terms": [], "refreshes": [], "probes": [], "cases": []}
    parts = [("warm-up", 1, warm_up)] * (warm_up > 0) + [(arm, warm_up + 1, max(anchors)) for arm in arms]
    for arm, first, last in parts:
        ages, losses = np.zeros(POOL, dtype=int), np.full(POOL, 2.4)
        for step in range(first, last + 1, 2):
            refreshed = _refreshes(rng, arm, step, ages, losses, hostile) if arm == "r2d2" else []
            made["refreshes"] += refreshed
            made["training"].append(_step(rng, arm, step, max(anchors), refreshed))
            made["terms"] += _terms(rng, made["training"][-1])
    asked = [("warm-up", step) for step in (0, warm_up) if warm_up]
    asked += [(arm, step) for arm in arms for step in sorted({*anchors, warm_up}) if step >= warm_up]
    made["probes"] = [row for arm, step in asked for row in _probes(arm, step)]
    made["cases"] = _cases(rng, [arm for arm in ("base", *arms) if arm != "sft"], hostile)
    return made


def _refreshes(
    rng: np.random.Generator, arm: str, step: int, ages: np.ndarray, losses: np.ndarray, hostile: Sequence[str]
) -> list[dict]:
    """Refresh a few cases; `ages` and `losses` of the pool are changed in place."""
    if step % RESET_EVERY == 1 and step > 1:
        reset = rng.permutation(POOL)[: round(RESET_SHARE * POOL)]
        ages[reset], losses[reset] = 0, 2.4 + step / 100
    rows = []
    for place in rng.permutation(POOL)[:DRAWN]:
        before = losses[place] + (rng.uniform(0.2, 0.8) if ages[place] else 0.0)
        ages[place], losses[place] = ages[place] + 1, before - rng.uniform(0.1, 0.6)
        rows.append(
            {
                "arm": arm,
                "step": step,
                "case": f"case-{place} {hostile[place % len(hostile)]}",
                "loss_before": float(before),
                "loss_after": float(losses[place]) if (step, place) != (3, 3) else GONE,
                "age": int(ages[place]),
                "forward_tokens": int(rng.integers(20_000, 30_000)),
                "dropped": int(rng.integers(0, 9)),
            }
        )
    return rows


def _step(rng: np.random.Generator, arm: str, step: int, last: int, refreshed: list[dict]) -> dict:
    utility = float(2.2 * np.exp(-step / 80) + 1 + rng.normal(0, 0.1))
    away, toward = (float(np.exp(-step / 50)), float(2 * np.exp(-step / 30))) if refreshed else (GONE, GONE)
    row = {
        "arm": arm,
        "step": step,
        "loss": utility + (0.5 * away + 0.5 * toward if refreshed else 0.0),
        "utility": utility,
        "away": away,
        "toward": toward,
        "attack_loss_before": float(np.mean([r["loss_before"] for r in refreshed])) if refreshed else GONE,
        "attack_loss_after": float(np.mean([r["loss_after"] for r in refreshed])) if refreshed else GONE,
        "pool_age": float(np.mean([r["age"] for r in refreshed])) if refreshed else GONE,
        "attack_tokens": float(sum(r["forward_tokens"] for r in refreshed)) if refreshed else GONE,
        "grad_norm": float(rng.gamma(4, 0.3)),
        "learning_rate": 2e-5 * min(1.0, step / 20) * (1 - step / (last + 1)),
        "seconds_refresh": float(rng.uniform(6, 8)) if refreshed else GONE,
        "seconds_forward": float(rng.uniform(0.4, 0.5)) * (2 if refreshed else 1),
        "seconds_backward": float(rng.uniform(0.7, 0.9)) * (2 if refreshed else 1),
        "seconds_optimizer": float(rng.uniform(0.1, 0.15)),
        "peak_mib": (1800.0 if refreshed else 1400.0) + step / 10,
    }
    row["seconds"] = sum(v for name, v in row.items() if name.startswith("seconds_") and v == v) + 0.2
    if step == UNLOGGED:
        row.update({name: GONE for name in row if name.startswith(("seconds", "peak", "grad", "learning"))})
    return row


def _terms(rng: np.random.Generator, row: dict) -> list[dict]:
    weighted = {"utility": 1.0, "away": 0.5, "toward": 0.5}
    rows = [(term, weight, row[term]) for term, weight in weighted.items() if row[term] == row[term]]
    if row["arm"] == "r2d2":
        rows.append((OWN_TERM, 0.0, float(rng.normal(0, 1)) if row["step"] % 3 else GONE))
    return [
        {"arm": row["arm"], "step": row["step"], "term": term, "weight": weight, "value": value}
        for term, weight, value in rows
    ]


def _probes(arm: str, step: int) -> list[dict]:
    rates = {"harmful": min(1.0, 0.1 + step / 80), "harmless": 0.05 + step / 2000}
    if arm == "r2d2":
        rates["attacked"] = min(1.0, step / 120)
    rows = []
    for name, rate in rates.items():
        n = 16
        refused = round(rate * n)
        found = intervals.rate(refused, n)
        key = {"arm": arm, "step": step, "set": name, "metric": "any_refusal", "judge": "refusal-phrases"}
        rows.append({**key, "value": found.value, "n": n, "low": found.low, "high": found.high})
    return rows


def _cases(rng: np.random.Generator, sources: Sequence[str], hostile: Sequence[str]) -> list[dict]:
    rows = []
    for source in sources:
        for place in range(len(hostile)):
            first = float(rng.uniform(2, 3))
            rows.append(
                {
                    "source": "base-step-00000" if source == "base" else "sha256:" + "cd" * 32,
                    "method": "gcg" if source == "base" else "gcg <i>own</i>",
                    "case": f"case-{place}",
                    "behaviour": f"Behaviour: {hostile[place]}",
                    "prompt": f"Attacked: {hostile[place]} " + "! " * 40 + "the end of the suffix",
                    "loss_first": first,
                    "loss": first - 1.0 if place else GONE,
                    "steps": 20,
                    "forward_tokens": int(rng.integers(100_000, 900_000)),
                    "dropped": int(rng.integers(0, 50)),
                    "seconds": float(rng.uniform(3, 9)) if source != "base" else GONE,
                }
            )
    return rows
