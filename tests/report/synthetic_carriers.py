"""The candidates of the made-up run: scores, ablated to the harmless mean and to zero, and which is the carrier."""

import numpy as np

LAYERS = 30
POSITIONS = {-5: "<|im_end|>", -4: "\n", -3: "<|im_start|>", -2: "assistant", -1: "\n"}
NO_CARRIER = "no admissible carrier: induce < 0 (88), kl > 0.1 (62) <b>of 150</b>"
NAN = float("nan")


def zero_distance(position: int, layer: int, strength: float) -> float:
    """Where zero lies along a made-up direction: not known at layer 0, and far away at layer 1."""
    if layer == 0:
        return NAN
    return 90.0 if layer == 1 else 2.5 - 3 * layer / LAYERS + strength + 0.1 * position


def candidate_tables(
    rng: np.random.Generator, best: int, *, carries: bool, strength: float = 1.0
) -> dict[str, list[dict]]:
    """The tables of one checkpoint's candidates and of its carrier; without `carries` none is admissible."""
    rows = [_candidate(rng, p, lay, best, carries=carries) for p in POSITIONS for lay in range(LAYERS)]
    allowed = [r for r in rows if r["admissible"]]
    row = {"baseline_harmful": 4.2, "baseline_harmless": -5.1, "n_candidates": len(rows), "n_admissible": len(allowed)}
    instead = min((r for r in rows if r["bypass"] == r["bypass"]), key=lambda r: r["bypass"])
    row |= {"rounding_score": 0.02, "rounding_kl": 0.01}
    row |= {"n_bootstrap": 1000, "none_frequency": 0.02 if allowed else 0.97, "ablated_to": "harmless"}
    row |= {"n_admissible_zero": sum(r["admissible_zero"] for r in rows)}
    scores = [
        {
            "position": r["position"],
            "layer": r["layer"],
            "measure": m,
            "prompt_id": f"validation-{i}",
            "value": r[m] + i,
        }
        for r in rows[:2]
        for m in ("bypass", "induce", "kl")
        for i in range(3)
    ]
    halves = [
        {
            **{name: r[name] for name in ("position", "layer", "induce", "kl")},
            "half": half,
            "bypass": r["bypass"] + half,
        }
        for r in rows[:2]
        for half in (1, 2)
    ]
    kept = {"carriers": rows, "candidate_scores": scores, "half_scores": halves}
    if not allowed:
        gone = dict.fromkeys(("position", "layer", "bypass", "induce", "kl", "win_frequency", "margin"), NAN)
        gone |= dict.fromkeys(("n_halves", "layer_half_low", "layer_half_high"), NAN)
        gone |= dict.fromkeys(("bypass_held_out", "bypass_held_out_low", "bypass_held_out_high"), NAN)
        gone |= {"margin_low": NAN, "margin_high": NAN, "layer_low": 4, "layer_high": 9, "token": ""}
        found = {"kind": "best candidate", "position": instead["position"], "layer": instead["layer"]}
        gone |= {f"reference_{name}": value for name, value in found.items()}
        gone |= _zero(instead, strength)
        return {**kept, "half_scores": [], "carrier": [{**gone, **row, "reason": NO_CARRIER}]}
    winner, *others = sorted(allowed, key=lambda r: r["bypass"])
    winner |= {"winner": True, "win_frequency": 0.71, "half_wins": 1}
    for share, other in zip((0.14, 0.08, 0.03, 0.02), others, strict=False):
        other["win_frequency"] = share
    chosen = {name: winner[name] for name in ("position", "layer", "bypass", "induce", "kl", "win_frequency")}
    chosen |= {"margin": 0.42, "margin_low": 0.05, "margin_high": 0.9, "token": POSITIONS[winner["position"]]}
    chosen |= {"layer_low": winner["layer"] - 2, "layer_high": winner["layer"] + 1, "reference_kind": "carrier"}
    chosen |= {"reference_position": winner["position"], "reference_layer": winner["layer"], "reason": ""}
    chosen |= {"n_halves": 2, "layer_half_low": winner["layer"] - 1, "layer_half_high": winner["layer"]}
    chosen |= _zero(winner, strength)
    held_out = winner["bypass"] + 0.3
    chosen |= {"bypass_held_out": held_out, "bypass_held_out_low": held_out - 0.7}
    chosen |= {"bypass_held_out_high": held_out + 0.7}
    return {**kept, "carrier": [{**chosen, **row}]}


def _zero(candidate: dict, strength: float) -> dict:
    found = {name: candidate[name] for name in candidate if name.endswith("_zero")} | {
        "n_harmful": 30,
        "n_harmless": 31,
    }
    return found | {"zero_distance": zero_distance(candidate["position"], candidate["layer"], strength)}


def _candidate(rng: np.random.Generator, p: int, lay: int, best: int, *, carries: bool) -> dict:
    near = np.exp(-(((lay - best) / 4) ** 2)) * (0.5 + 0.5 * (p == -1))
    bypass, induce, kl = (
        5 - 12 * near + rng.normal(0, 0.5),
        -4 + 9 * near + rng.normal(0, 0.5),
        float(10 ** rng.normal(-1.6 + 1.5 * lay / LAYERS, 0.5)),
    )
    broken = lay == 3 and p == -4
    faults = {"layer is not below 24": lay >= 24, "kl > 0.1": kl > 0.1, "induce < 0": induce < 0, "is NaN": broken}
    why = [reason for reason, bad in faults.items() if bad]
    admissible = carries and not why
    return {
        "position": p,
        "layer": lay,
        "bypass": NAN if broken else float(bypass),
        "induce": float(induce),
        "kl": kl,
        "exact": not (lay % 5 == 0 and why),
        "admissible_layer": lay < 24,
        "admissible_kl": kl <= 0.1,
        "admissible_induce": induce >= 0,
        "admissible": admissible,
        "rejected_because": "; ".join(why) or ("" if admissible else NO_CARRIER),
        "winner": False,
        "win_frequency": 0.0,
        "half_wins": NAN,
        "bypass_zero": NAN if broken else float(bypass) + 0.5,
        "induce_zero": float(induce) - 0.5,
        "kl_zero": kl * 8,
        "admissible_zero": admissible and kl * 8 <= 0.1,
    }
