"""Cause and attribution of the made-up run: hand-made heads carry refusal, everything else is noise."""

import itertools

import numpy as np
from synthetic_geometry import BROKEN, LAYERS, NAN

HEADS = 9
CARRIERS = {(19, 3): 0.42, (20, 4): 0.31, (23, 7): -0.21, (15, 1): 0.12}
"""(layer, head) and its effect; MLP 18 carries 0.25."""
HOSTILE_TOKEN = "<img src=x onerror=alert(7)>"
HOSTILE_SITE = "odd <b>site</b>"
POSITIONS = range(-6, 0)


def causal_tables(rng: np.random.Generator, strength: float, *, carries: bool) -> dict[str, list[dict]]:
    """The tables of one checkpoint; without `carries` there is no gap to have a share of."""
    return {
        "attribution_compared": _compared(rng, strength),
        "token_sources": _sources(rng, strength),
        "logit_lens": _lens(strength),
        **_screened(rng),
        "knockout": _knockout(rng, strength),
        "knockout_prompts": [{"component": "head", "layer": 19, "head": 3, "prompt_id": "a", "value": -0.4}],
        "head_sets": _head_sets(carries=carries),
        **_circuit(rng, carries=carries),
    }


def effect_of(component: str, layer: int, head: int, noise: float) -> float:
    """What a component does: planted, or noise."""
    return noise + (CARRIERS.get((layer, head), 0.0) if component == "head" else 0.25 if layer == 18 else 0.0)


def components() -> list[tuple[str, int, int]]:
    """Every head and MLP."""
    heads = [("head", layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    return heads + [("mlp", layer, -1) for layer in range(LAYERS)]


def _compared(rng: np.random.Generator, strength: float) -> list[dict]:
    rows = []
    for onto in ("refusal_logits", "carrier"):
        for component, layer, head in [("embed", -1, -1), *components(), ("total", -1, -1)]:
            value = effect_of(component, layer, head, float(rng.normal(0, 0.02))) * 3 * strength
            row = {"onto": onto, "component": component, "layer": layer, "head": head, "harmful": value - 0.1}
            row |= {"harmless": -0.1, "difference": value, "low": value - 0.08, "high": value + 0.08, "floor": 0.07}
            p = NAN if component == "total" else 0.01 if abs(value) > 0.08 else 0.6
            rows.append(row | {"n_harmful": 16, "n_harmless": 15, "p": p})
    rows[5] |= dict.fromkeys(("low", "high", "floor", "p"), NAN)
    return rows


def _sources(rng: np.random.Generator, strength: float) -> list[dict]:
    rows = []
    names = [("segment", name) for name in ("before", "instruction", "after", "opening")]
    names += [("token", name) for name in (HOSTILE_TOKEN, " bomb", "\n", "<|im_start|>", "assistant", "?", " the", ".")]
    for name, (layer, head), (by, what) in itertools.product(("harmful", "harmless"), CARRIERS, names):
        value = float(rng.normal(0, 0.1) + (0.8 * strength if name == "harmful" and what == "instruction" else 0))
        row = {"set": name, "layer": layer, "head": head, "by": by, "name": what, "value": value}
        rows.append(row | {"low": value - 0.1, "high": value + 0.1, "weight": 0.2, "n": 16 if by == "segment" else 3})
    rows[-1] |= {"low": NAN, "high": NAN, "n": 1}
    return rows


def _lens(strength: float) -> list[dict]:
    rows = []
    for name, sign in (("harmful", 1), ("harmless", -1)):
        for layer in range(LAYERS + 1):
            late = 1 / (1 + np.exp(-(layer - 20) / 2))
            values = {"refusal": -12 + (11.5 if sign > 0 else 2) * late * strength, "compliance": -11 + 4 * late}
            values |= {"score": values["refusal"] - values["compliance"], "rank": float(round(900 * (1 - late)) + 1)}
            for quantity, value in values.items():
                row = {"set": name, "layer": layer, "quantity": quantity, "value": float(value)}
                rows.append(row | {"low": value - 0.8, "high": value + 0.8, "n": 16})
    return rows


def _screened(rng: np.random.Generator) -> dict[str, list[dict]]:
    rows, agreement = [], []
    for site in ("z", "attn_out", "mlp_out", "resid_pre"):
        for layer in range(LAYERS):
            for head, position in [(h, 0) for h in range(HEADS)] if site == "z" else [(-1, p) for p in POSITIONS]:
                exact = float(rng.normal(0, 0.6))
                estimate = exact * 0.8 + float(rng.normal(0, 0.2))
                scored = "finalist" if layer == 20 else "random" if layer == 3 else ""
                row = {"site": site, "mode": "denoising", "layer": layer, "head": head, "position": position}
                row |= {"token": HOSTILE_TOKEN if position else "all", "estimate": estimate, "effect": estimate / 9}
                row |= {"estimate_low": estimate - 0.3, "estimate_high": estimate + 0.3}
                row |= {"scored": scored, "exact": exact if scored else NAN, "n": 16, "method": "eap", "tool": "twin"}
                row |= {"low": exact - 0.2 if scored else NAN, "high": exact + 0.2 if scored else NAN}
                rows.append(row | {"error": row["exact"] - estimate})
    for site, scored in itertools.product(("all", "z", HOSTILE_SITE), ("finalist", "random", "both")):
        few = scored == "random" and site == "z"
        row = {"site": site, "scored": scored, "n": 4 if few else 40, "spearman": 0.93, "low": NAN if few else 0.88}
        agreement.append(row | {"high": NAN if few else 0.96, "sign": 0.9, "error": 0.21, "relative_error": 0.26})
    return {"attribution_patching": rows, "attribution_agreement": agreement}


def _knockout(rng: np.random.Generator, strength: float) -> list[dict]:
    rows = []
    for component, layer, head in components():
        refusal = -8 * strength * effect_of(component, layer, head, float(rng.normal(0, 0.008)))
        kl = float(abs(rng.normal(0, 0.004)) + (0.4 if (component, layer) == ("mlp", 0) else 0))
        row = {"component": component, "layer": layer, "head": head, "how": "mean", "refusal": refusal}
        row |= {"low": refusal - 0.2, "high": refusal + 0.2, "harmless": 0.05, "harmless_low": -0.1}
        row |= {"harmless_high": 0.2, "kl": kl, "kl_low": 0.0, "kl_high": 2 * kl, "n_harmful": 16, "n_harmless": 14}
        rows.append(row | {"p": 0.01 if abs(refusal) > 0.2 else 0.6})
    rows[40] |= dict.fromkeys(("refusal", "low", "high", "p"), NAN)
    rows[41] |= {"kl": 0.0}
    return rows


def _head_sets(*, carries: bool) -> list[dict]:
    rows = []
    heads = [(19, 3), (20, 4), (15, 1)] if carries else [(11, 0)]
    gap = 8.0 if carries else 0.4
    for size, (layer, head) in enumerate(heads, start=1):
        share = 0.2 * size if carries else 0.1
        row = {"size": size, "layer": layer, "head": head, "heads": " ".join(f"{a}.{b}" for a, b in heads[:size])}
        row |= {"share": share, "refusal": -share * gap, "low": -share * gap - 0.5, "high": -share * gap + 0.5}
        row |= {"harmless": 0.1 * size, "harmless_low": -0.1, "harmless_high": 0.4, "kl": 0.01 * size, "kl_low": 0.0}
        row |= {"kl_high": 0.03 * size, "n_harmful": 16, "n_harmless": 14, "random_refusal": -0.02 * gap}
        row |= {"random_refusal_least": -0.06 * gap, "random_refusal_most": 0.04 * gap, "random_harmless": 0.02}
        row |= {"held_out_share": 0.8 * share if carries else NAN, "held_out_refusal": -0.8 * share * gap}
        row |= {"held_out_low": -share * gap, "held_out_high": 0.1, "held_out_kl": 0.02 * size, "n_held_out": 12}
        row |= {"random_kl": 0.004, "n_random": 5, "reached": carries, "gap": gap, "reason": "" if carries else BROKEN}
        rows.append(row)
    return rows


def _circuit(rng: np.random.Generator, *, carries: bool) -> dict[str, list[dict]]:
    nodes = []
    for component, layer, head in components():
        effect = effect_of(component, layer, head, float(rng.normal(0, 0.006)))
        node = f"head {layer}.{head}" if component == "head" else f"mlp {layer}"
        row = {"node": node, "component": component, "layer": layer, "head": head, "raw": 9 * effect, "effect": effect}
        row |= {"low": effect - 0.05, "high": effect + 0.05, "n": 8, "estimate": NAN, "kept": abs(effect) > 0.05}
        row |= {"reason": ""}
        if not carries:
            row |= {"effect": NAN, "low": NAN, "high": NAN, "kept": False, "reason": BROKEN}
        nodes.append(row | _held_out(row))
    kept = [row for row in nodes if row["kept"]]
    order = [{"node": "embedding", "layer": -1, "component": ""}, *kept]
    order.append({"node": "logits", "layer": LAYERS, "component": ""})
    edges = []
    for one, other in itertools.combinations(sorted(order, key=lambda r: (r["layer"], r["component"] == "mlp")), 2):
        if not carries or one["layer"] == other["layer"]:
            continue
        effect = float(rng.normal(0.03, 0.05))
        row = {"sender": one["node"], "receiver": other["node"], "raw": 9 * effect, "effect": effect}
        row |= {"low": effect - 0.02, "high": effect + 0.02, "n": 8, "kept": abs(effect) > 0.02}
        edges.append(row | _held_out(row))
    return {"circuit_nodes": nodes, "circuit_edges": edges, "faithfulness": _faithful(len(kept), carries=carries)}


def _held_out(row: dict) -> dict:
    """Columns of what is kept, on 8 pairs that did not choose it."""
    if not row["kept"]:
        return {"held_out": NAN, "held_out_low": NAN, "held_out_high": NAN, "n_held_out": 0, "p": NAN}
    effect, p = 0.8 * row["effect"], 0.0078 if abs(row["effect"]) > (0.06 if "sender" in row else 0.12) else 0.4
    return {"held_out": effect, "held_out_low": effect - 0.05, "held_out_high": effect + 0.05, "n_held_out": 8, "p": p}


def _faithful(circuit: int, *, carries: bool) -> list[dict]:
    rows = []
    total = len(components())
    sizes = sorted({0, 1, 2, 4, 8, 16, 32, 64, 128, 256, total, circuit})
    for size, of in itertools.product(sizes, ("harmful", "difference")):
        kept = float(1 - np.exp(-size / 4)) if size < total else 1.0
        row = {"of": of, "size": size, "heads": size - size // 9, "mlps": size // 9, "is_circuit": size == circuit}
        row |= {"node": "head 19.3" if size else "", "kept": kept, "kept_low": kept - 0.1, "kept_high": kept + 0.1}
        row |= {"lost": kept * 0.9, "lost_low": kept * 0.9 - 0.1, "lost_high": kept * 0.9 + 0.1, "n_random": 5}
        for name in ("kept", "lost"):
            mean = size / total
            row |= {f"random_{name}": mean, f"random_{name}_least": mean - 0.05, f"random_{name}_most": mean + 0.1}
        row |= {"full": 4.1, "ablated": -3.9, "n": 8, "reason": "", "measured_on": "held-out pairs"}
        if not carries:
            row |= {name: NAN for name in row if name.startswith(("kept", "lost", "random"))} | {"reason": BROKEN}
        rows.append(row)
    return rows


def cross_patching(rng: np.random.Generator, ids: list[tuple[str, int]]) -> list[dict]:
    """Table `cross_patching`: from the first checkpoint to every later one, and back."""
    rows, start = [], ids[0]
    for arm, step in ids[1:]:
        for source, target, sign in ((start, (arm, step), -1), ((arm, step), start, 1)):
            pair = {
                "arm_source": source[0],
                "step_source": source[1],
                "arm_target": target[0],
                "step_target": target[1],
            }
            sites = itertools.product(("harmful", "harmless"), ("resid_pre", "attn_out", "mlp_out", "z"), range(LAYERS))
            for prompts, site, layer in sites:
                for head in range(HEADS) if site == "z" else [-1]:
                    size = CARRIERS.get((layer, head), 0.0) if site == "z" else 0.8 * (layer > 18)
                    raw = sign * 5 * size + float(rng.normal(0, 0.05))
                    raw *= 1 if prompts == "harmful" else 0.5
                    row = {
                        **pair,
                        "set": prompts,
                        "site": site,
                        "layer": layer,
                        "head": head,
                        "raw": raw,
                        "low": raw - 0.15,
                    }
                    row |= {"high": raw + 0.15, "effect": raw / 6 * sign, "effect_low": raw / 6 * sign - 0.1}
                    row |= {"effect_high": raw / 6 * sign + 0.1, "control": 0.01, "n": 8, "reason": ""}
                    row |= {"control_low": -0.02, "control_high": 0.04, "control_size": 0.01}
                    row |= {"source_score": 3.0 * sign, "target_score": -3.0 * sign}
                    row |= {"p": 0.01 if abs(raw - 0.01) > 0.15 else 0.6}
                    if (layer, head) == (2, 2):
                        row |= dict.fromkeys(("effect", "effect_low", "effect_high"), NAN) | {"reason": BROKEN}
                    rows.append(row)
    return rows
