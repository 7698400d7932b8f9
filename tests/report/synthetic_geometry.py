"""The geometry of the made-up run: candidates, subspaces, overlap, doses; and how they move between checkpoints."""

import itertools

import numpy as np
from synthetic_carriers import LAYERS, NAN

BROKEN = "<img src=x onerror=alert(9)> too few prompts & none refused"
DOSES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)


def geometry_tables(rng: np.random.Generator, strength: float, best: int, *, carries: bool) -> dict[str, list[dict]]:
    """Tables of one checkpoint that look at the carrier, or at the best candidate."""
    return {
        "separability": _separability(),
        "separability_draws": [{"draw": draw, "value": 2.0 + 0.1 * draw} for draw in range(5)],
        "subspaces": _subspaces(rng, best, carries=carries),
        "overlap": _overlap(rng, strength, best, carries=carries),
        "coupling": _coupling(rng, strength),
        "linear_probes": _linear_probes(rng, best, carries=carries),
        "doses": _doses(rng, strength),
        "utility_coupling": [
            {
                "intervention": name,
                "measure": measure,
                **_around(0.3 * strength + 0.1 * place, 0.08),
                "random": 0.02,
                "n": 32,
                "reason": "",
            }
            for name in ("ablate", "induce")
            for place, measure in enumerate(("refusal_harmful and loss_harmless", "refusal_harmful and kl_harmless"))
        ]
        + [
            {
                "intervention": "ablate",
                "measure": "refusal_harmful and <b>nothing</b>",
                **_nothing(),
                "random": NAN,
                "n": 0,
                "reason": BROKEN,
            }
        ],
    }


def _drawn(bypass: float) -> dict:
    """Columns of a cone with this mean bypass."""
    worst = {"bypass_worst": bypass + 1, "induce_worst": 0.5 + 0 * bypass, "kl_worst": 0.09 + 0 * bypass}
    return {**worst, "n_sampled": 0 if np.isnan(bypass) else 8, "share_admissible": 0.75 + 0 * bypass}


def _subspaces(rng: np.random.Generator, best: int, *, carries: bool) -> list[dict]:
    rows = []
    for family, gain in (("categories", 1.5), ("pca", 0.9), ("successive", 1.3), ("cone", 1.8), ("random", 0.0)):
        for k in range(1, 6):
            bypass = float(4.2 - (7 * (1 - np.exp(-gain * k / 2))) + rng.normal(0, 0.15))
            short = family == "pca" and k == 5
            fine = carries and k < 4 and not short
            rows.append(
                {
                    "family": family,
                    "k": k,
                    "position": -1,
                    "layer": best,
                    "bypass": NAN if short else bypass,
                    "bypass_low": NAN if short else bypass - 0.6,
                    "bypass_high": NAN if short else bypass + 0.7,
                    "induce": 2.0,
                    "kl": 0.03 * k,
                    "kl_low": 0.02 * k,
                    "kl_high": 0.04 * k,
                    **_drawn(bypass if family == "cone" and k > 1 else NAN),
                    "admissible": fine,
                    "rejected_because": "" if fine else f"kl {0.03 * k:.2f} > 0.1 <i>&</i>",
                    "share_of_best": min(1.0, (4.2 - bypass) / 6.0) if carries and not short else NAN,
                    "smallest": carries and family == "cone" and k == 2,
                    "n": 32,
                    "reason": BROKEN if short else "" if carries else "no subspace is admissible",
                }
            )
    return rows


def _overlap(rng: np.random.Generator, strength: float, best: int, *, carries: bool) -> list[dict]:
    where = {"position": -1, "layer": best}
    rows = [
        {**where, "measure": name, **_around(value, spread), **_floor(middle, wide), "random": middle, "n": 120}
        for name, value, spread, middle, wide in (
            ("projection_auc", 0.5 + 0.4 * strength, 0.07, 0.5, 0.12),
            ("direction_cosine", 0.6 * strength, 0.1, 0.0, 0.15),
            ("variance_share_harmless", 0.02 + 0.05 * strength, 0.01, 0.002, 0.004),
            ("projection_difference", 8 * strength + rng.normal(0, 0.2), 1.2, 0.0, 1.5),
        )
    ]
    rows = [{**row, "reason": ""} for row in rows]
    if not carries:
        rows[1] |= {**_nothing(), **_floor(NAN, NAN), "random": NAN, "reason": BROKEN}
    return rows


def _coupling(rng: np.random.Generator, strength: float) -> list[dict]:
    rows = [
        {
            "measure": "cosine",
            "layer": lay,
            **_around(float(0.7 * np.exp(-lay / 12) * (1 - 0.5 * strength) + rng.normal(0, 0.02)), 0.06),
            **_floor(0.0, 0.12),
            "random": 0.01,
            "n": 96,
            "reason": "",
        }
        for lay in range(LAYERS)
    ]
    rows[0] |= {**_nothing(), "reason": BROKEN}
    for name, value in (("refusal_under_ablated_harmfulness", 1.4), ("harmfulness_auc_under_ablated_refusal", 0.93)):
        extra = {**_around(value, 0.05), **_floor(NAN, NAN), "random": value * 1.04, "n": 32, "reason": ""}
        rows.append({"measure": name, "layer": -1, **extra})
    return rows


def _separability() -> list[dict]:
    rows = [{"layer": 0, **_nothing(), "auc": NAN, "reason": BROKEN}]
    rows += [{"layer": lay, **_around(0.1 * lay, 0.3), "auc": 0.8, "reason": ""} for lay in (-1, *range(1, LAYERS))]
    return [row | {"position": -1, "n": 32} for row in rows]


def _linear_probes(rng: np.random.Generator, best: int, *, carries: bool) -> list[dict]:
    rows = []
    for target, position, layers in (
        ("harmful", -6, range(LAYERS)),
        ("harmful", -1, range(LAYERS)),
        ("refused", -1, range(LAYERS)),
        ("overrefused", -1, [best]),
    ):
        for lay in layers:
            auc = float(np.clip(0.55 + 0.45 * lay / 12, 0, 0.99) + rng.normal(0, 0.004))
            row = {"target": target, "position": position, "layer": lay, "auc": auc, "low": auc - 0.06}
            row |= {"high": min(1.0, auc + 0.05), "mean_auc": auc - 0.03, "shuffled_auc": 0.5, "cosine": 0.6}
            row |= {"n_positive": 60, "n_negative": 58, "reason": ""}
            if not carries and target == "refused":
                row |= dict.fromkeys(("auc", "low", "high", "mean_auc", "shuffled_auc", "cosine"), NAN)
                row |= {"n_positive": 0, "reason": BROKEN}
            rows.append(row)
    return rows


def _doses(rng: np.random.Generator, strength: float) -> list[dict]:
    rows = []
    for name, sign in (("ablate", -1), ("induce", 1)):
        for control in (False, True):
            for dose in DOSES:
                push = sign * dose * (0.05 if control else 1.0)
                values = {
                    "refusal_harmful": 4 * strength + 3 * push,
                    "refusal_harmless": -5 + 3 * push,
                    "refused_harmless": float(np.clip(0.02 + 0.3 * push, 0, 1)),
                    "loss_harmless": 1.1 + 0.2 * push**2,
                    "kl_harmless": 0.05 * push**2,
                }
                for measure, value in values.items():
                    spread = 0.05 * (1 + abs(value))
                    row = {"intervention": f"{name}_random" if control else name, "coefficient": dose}
                    rows.append({**row, "measure": measure, **_around(float(value), spread), "n": 32})
    return rows


def movement_tables(rng: np.random.Generator, ids: list[tuple[str, int]], arms: tuple[str, ...], last: int) -> dict:
    """Tables `drift`, `transfer`, `relocation` and `effective_rank`."""
    pairs = _pairs(ids, arms)
    return {
        "drift": _drift(rng, pairs, last),
        "transfer": [_transfer(rng, a, b) for a, b in itertools.product(ids, ids)],
        "relocation": [row for a, b in pairs for row in _relocation(a, b)],
        "power": _power(),
        "effective_rank": _ranks(rng, ids),
    }


TRANSFERRED = ("bypass", "induce", "decrease", "rise", "kl")


def _transfer(rng: np.random.Generator, a: tuple[str, int], b: tuple[str, int]) -> dict:
    kind = "best candidate" if a[0] == "base" else "carrier"
    power = 0.15 if "base" in (a[0], b[0]) else 1.0 if a[0] == b[0] else 0.5
    bypass, induce = 4.2 - 7 * power + rng.normal(0, 0.3), -5 + 8 * power + rng.normal(0, 0.3)
    row = {"arm_source": a[0], "step_source": a[1], "arm_target": b[0], "step_target": b[1], "kind": kind}
    row |= {"position": -1, "layer": 12, "bypass": bypass, "bypass_low": bypass - 0.8, "bypass_high": bypass + 0.8}
    row |= {"induce": induce, "induce_low": induce - 1, "induce_high": induce + 1, "kl": 0.04, "n_harmful": 32}
    row |= {"baseline_harmful": 4.2, "baseline_harmless": -5.0, "random_bypass": 4.0, "random_induce": -4.7}
    row |= {"decrease": 4.2 - bypass, "decrease_low": 3.7 - bypass, "decrease_high": 4.7 - bypass}
    row |= {"rise": induce + 5, "rise_low": induce + 4, "rise_high": induce + 6, "random_decrease": 0.2}
    row |= {"decrease_half_low": 3.5 - bypass, "decrease_half_high": 4.3 - bypass}
    names = ("decrease_held_out", "decrease_held_out_low", "decrease_held_out_high")
    row |= dict(zip(names, [3.9 - bypass, 3.3 - bypass, 4.5 - bypass] if a == b else [NAN] * 3, strict=True))
    row |= {"n_harmless": 32, "reason": ""}
    if a[1] == 50 and b[0] == "base":
        row |= {name: NAN for name in row if name.startswith(TRANSFERRED)} | {"reason": BROKEN}
    return row


def _power() -> list[dict]:
    of = "sft-step-00050 and r2d2-step-00050"
    known = {"question": "move of the carrier", "of": of, "n": 32, "unit": "prompts", "could_tell": 4.2, "wanted": 5.0}
    missing = {"could_tell": NAN, "n_needed": NAN, "reason": BROKEN}
    return [{**known, "n_needed": 27, "reason": "3 layers count as the same depth"}, {**known, **missing}]


def _relocation(a: tuple[str, int], b: tuple[str, int]) -> list[dict]:
    pair = {"arm_a": a[0], "step_a": a[1], "arm_b": b[0], "step_b": b[1], "n_to_decide": NAN}
    overall = "cannot tell" if a[0] == "base" else "moved" if b[0] == "r2d2" else "not moved"
    why = BROKEN if a[0] == "base" else "the layers' intervals do not overlap" if overall == "moved" else "at rest"
    depth = {"measure": "carrier_layer", "value": 3.0, "low": 1.0, "high": 5.0, "floor": 1.0}
    turn = {"measure": "direction_cosine", "value": 0.71, "low": 0.6, "high": 0.8, "floor": 0.96}
    return [
        {**pair, **depth, "verdict": overall, "reason": why},
        {**pair, **turn, "verdict": "moved", "reason": "across 0.71 where 0.96 is expected of noise alone"},
        {**pair, "measure": "overall", **_nothing(), "floor": NAN, "verdict": overall, "reason": why},
    ]


def _drift(rng: np.random.Generator, pairs: list, last: int) -> list[dict]:
    drift = []
    for a, b in pairs:
        pair = {"arm_a": a[0], "step_a": a[1], "arm_b": b[0], "step_b": b[1]}
        reason = "no carrier at one of the two" if a[0] == "base" else ""
        far = 0.5 * ((b[1] - a[1]) / last) + (0.3 if a[0] not in (b[0], "base") else 0.1)

        def row(measure, layer, value, floor, random, spread, n, why="", pair=pair):
            numbers = {**_around(value, spread), "floor": floor, "random": random}
            if why:
                numbers = dict.fromkeys(numbers, NAN)
            return {**pair, "measure": measure, "layer": layer, **numbers, "n": n, "reason": why}

        drift.append(row("carrier_cosine", -1, 1 - far, 0.98, 0.05, 0.08, 1, reason))
        for lay in range(-1, LAYERS):
            if lay >= 0:
                value = float(1 - far * lay / LAYERS + rng.normal(0, 0.01))
                drift.append(row("direction_cosine", lay, value, 0.96, 0.05, 0.05, 1))
            for measure, factor in (("principal_angle_mean", 50), ("principal_angle_max", 88)):
                value = factor * min(1.0, 0.1 + far)
                drift.append(row(measure, lay, value, factor * 0.1, 85.0, 4.0, 5, reason if lay == -1 else ""))
    return drift


def _ranks(rng: np.random.Generator, ids: list[tuple[str, int]]) -> list[dict]:
    ranks = []
    variants = itertools.product(
        ids, ("positions", "layers", "admissible"), ("raw", "unit"), ("sigma", "sigma_squared")
    )
    for (arm, step), rows, scaling, weight in variants:
        none = rows == "admissible" and arm == "base"
        value = NAN if none else float(1.2 + rng.uniform(0, 1) + 2 * (scaling == "unit") + 2 * (weight == "sigma"))
        reason = "no admissible candidate" if none else ""
        row = {"arm": arm, "step": step, "rows": rows, "scaling": scaling, "weight": weight, **_around(value, 0.2)}
        ranks.append({**row, "n_rows": 0 if none else 30, "reason": reason})
    return ranks


def _pairs(ids: list[tuple[str, int]], arms: tuple[str, ...]) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Consecutive anchors of an arm, the base and the last anchor, arms at the same step: as the study pairs them."""
    found = []
    if not arms:
        return found
    shared = [i for i in ids if i[0] in ("base", "warm-up")]
    found += itertools.pairwise(shared)
    for arm in arms:
        line = [shared[-1], *[i for i in ids if i[0] == arm]]
        found += [*itertools.pairwise(line), (line[0], line[-1])]
    return found + [
        (a, b) for a in ids for b in ids if a[0] == arms[0] and b[0] == arms[-1] and a[0] != b[0] and a[1] == b[1]
    ]


def _around(value: float, spread: float) -> dict:
    return {"value": value, "low": value - spread, "high": value + spread}


def _floor(middle: float, spread: float) -> dict:
    return {"floor_low": middle - spread, "floor_high": middle + spread}


def _nothing() -> dict:
    return dict.fromkeys(("value", "low", "high"), NAN)
