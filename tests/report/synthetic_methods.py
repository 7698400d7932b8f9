"""Tables `methods` and `method_differences` of the made-up run."""

import itertools

import numpy as np
from synthetic_behaviour import HOSTILE
from synthetic_carriers import LAYERS

RATES = {"refused": 60, "answered": 60, "overrefused": 40, "useful": 30, "attack_success": 12}


def methods_tables(rng: np.random.Generator, ids: list[tuple[str, int]], guided: dict[str, str]) -> dict:
    """Both tables; `guided`: of each arm with a guide its twin."""
    last = dict(sorted(ids, key=lambda key: key[1]))
    pairs = [(a, b, "methods") for a, b in itertools.combinations(last.items(), 2) if "base" not in (a[0], b[0])]
    pairs = [pair for pair in pairs if not {pair[0][0], pair[1][0]} <= {*guided, *guided.values()}]
    pairs += [(("base", 0), end, "start") for end in last.items() if end[0] != "base" and "base" in last]
    for arm, twin in guided.items():
        pairs += [((twin, last[twin]), (arm, last[arm]), "control" if arm.endswith("random") else "guided")]
    return {
        "methods": [_row(rng, arm, step, guided, is_last=last[arm] == step) for arm, step in ids],
        "method_differences": [row for pair in pairs for row in _differences(rng, *pair)],
    }


def _row(rng: np.random.Generator, arm: str, step: int, guided: dict[str, str], *, is_last: bool) -> dict:
    row = {"arm": arm, "step": step, "is_last": is_last, "method": "" if arm == "base" else "sft", "judge": "rules"}
    row |= {"guide": "", "along": "", "twin": guided.get(arm, ""), "gate": arm != "base", "attack": "gcg"}
    if arm in guided:
        row |= {"guide": "hold_weight 1.0", "along": "random" if arm.endswith("random") else "refusal"}
    for name, n in RATES.items():
        value = float(rng.uniform(0.2, 0.8))
        row |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1, f"{name}_n": n}
    layer = None if arm == "base" else 12
    row |= {"layer": layer, "layer_low": layer and layer - 1, "layer_high": layer and layer + 2, "n_layers": LAYERS}
    row |= {"depth": float("nan") if layer is None else layer / LAYERS, "rank": 4.4, "rank_low": 4.2, "rank_high": 4.8}
    apart = (3.1, 2.8, 3.5) if layer else (float("nan"),) * 3
    row |= dict(zip(("separability", "separability_low", "separability_high"), apart, strict=True))
    for name in ("given", "taken"):
        row |= {name: 0.84, f"{name}_least": 0.5, f"{name}_most": 0.97, f"{name}_n": 2}
    numbers = (0.1, 0.3, 0.2, 0.42, 24, 0.9, 0.8) if layer else (float("nan"),) * 4 + (0,) + (float("nan"),) * 2
    names = ("kl", "refused", "low", "high", "n", "untouched", "random")
    row |= {f"removal_{name}": number for name, number in zip(names, numbers, strict=True)}
    return row | {"reason": f"no admissible carrier {HOSTILE[1]}" if arm == "base" else ""}


def _differences(rng: np.random.Generator, a: tuple[str, int], b: tuple[str, int], relation: str) -> list[dict]:
    ends = {"arm_a": a[0], "step_a": a[1], "arm_b": b[0], "step_b": b[1], "relation": relation, "is_last": True}
    rows = []
    for measure, n in (RATES | {"removal_refused": 24, "carrier_layer": 30, "separability": 30}).items():
        change = float(rng.uniform(-0.3, 0.3))
        row = ends | {"measure": measure, "attack": "gcg" if measure == "attack_success" else "none", "judge": "rules"}
        row |= {"mean_a": 0.5, "mean_b": 0.5 + change, "difference": change, "low": change - 0.2, "high": change + 0.2}
        row |= {"mcnemar_p": 0.03, "p_adjusted": 0.4, "n": n, "reason": ""}
        if measure in ("carrier_layer", "separability"):
            row |= {"judge": "", "mcnemar_p": float("nan"), "p_adjusted": float("nan")}
            if a[0] == "base":
                row |= dict.fromkeys(("difference", "low", "high"), float("nan")) | {"n": 0, "reason": "no carrier"}
        rows.append(row)
    return rows
