"""Cost of removal and spectrum of the update of the made-up run: one arm gives way early, the other holds."""

import numpy as np
import pandas as pd

from mechrefusal import tables
from mechrefusal.statistics import intervals

LEVELS, N, N_RANDOM = (0.01, 0.1, 0.3), 16, 2
MATRICES = {"self_attn.q_proj": (576, 576), "mlp.down_proj": (576, 1536)}
LAYERS, RANKS, SCALES, DRAWS = 6, (1, 16), (0.0, 0.5, 1.0), 2
JUDGE = "refusal-rules"
NOWHERE = "other architectures (llama and gpt2) <b>"
NAN = float("nan")


def rate(share: float) -> dict:
    """A rate of N prompts near a share, in the columns of both tables."""
    estimate = intervals.rate(round(share * N), N)
    return {**estimate.columns("refused", ""), "n": N, "degenerate": 0.0}


def removal_tables(rng: np.random.Generator, strength: float, *, carries: bool) -> dict[str, list[dict]]:
    """The tables of one checkpoint; without a carrier there is a row that says why."""
    trials = [_trial(rng, number, strength) for number in range(8)]
    prompts = [
        {"set": "search", "trial": n, "draw": -1, "measure": "refused", "prompt_id": f"p{i}", "value": float(i % 2)}
        for n in range(2)
        for i in range(3)
    ]
    if not carries:
        nothing = dict.fromkeys(tables.columns("removal")) | {"trial": -1, "n": 0, "n_harmless": 0, "n_random": 0}
        reason = "no candidate direction was scored, so there is none to ablate"
        return {
            "removal": [nothing | {"judge": JUDGE, "reason": reason}],
            "removal_trials": trials,
            "removal_prompts": prompts,
        }
    rows = []
    for place, level in enumerate(LEVELS):
        kept = rate(strength * (1 - 0.25 * place))
        cost = {"kl": level * 1.4, "kl_low": level, "kl_high": level * 2, "n_harmless": N}
        random = {"random_refused": strength, "random_least": strength - 0.05, "random_most": strength + 0.05}
        change = {"change": -0.2 * place, "change_low": -0.2 * place - 0.2, "change_high": -0.2 * place + 0.1}
        found = {"search_refused": kept["refused"] / 2, "search_kl": level * 0.9, "untouched": strength}
        known = {"along": "difference in means (position -1, layer 3)", "trial": place + 2, "kind": "stepped"}
        ends = {"random_kl": 0.001, "n_random": N_RANDOM, "judge": JUDGE, "reason": ""}
        rows.append({"level": level, **known, **found, **kept, **cost, **change, **random, **ends})
    return {"removal": rows, "removal_trials": trials, "removal_prompts": prompts}


def _trial(rng: np.random.Generator, number: int, strength: float) -> dict:
    kl = 0.0 if number == 0 else 10 ** (-3 + 0.5 * number)
    numbers = {
        f"{part}_{name}": NAN if number == 0 else float(rng.uniform(0, 1))
        for part in ("attention", "mlp")
        for name in ("peak", "position", "least", "distance")
    }
    kind = ("untouched", "everywhere", "drawn", "stepped")[min(number, 3)]
    cost = {"kl": kl, "kl_low": kl / 2, "kl_high": kl * 2, "n_harmless": N}
    return {
        "trial": number,
        "kind": kind,
        **numbers,
        **rate(strength * (1 - 0.1 * number)),
        **cost,
        "unbeaten": number % 2 == 0,
    }


def update_tables(rng: np.random.Generator, ids: list[tuple[str, int]]) -> dict[str, pd.DataFrame]:
    """The tables of every checkpoint from the first one; the last of them cannot be compared."""
    spectrum, refusals, prompts = [], [], []
    for key in ids[1:]:
        owner = dict(zip(("arm_a", "step_a", "arm_b", "step_b"), (*ids[0], *key), strict=True))
        if key == ids[-1]:
            for name, rows in (("update_spectrum", spectrum), ("update_refusals", refusals)):
                nothing = {"n": 0} if name == "update_refusals" else {}
                rows.append(
                    dict.fromkeys(tables.columns(name)) | nothing | owner | {"reason": f"not compared: {NOWHERE}"}
                )
            continue
        spectrum += [owner | row for row in _spectrum(rng)]
        refusals += [owner | row for row in _refusals(key)]
        verdict = {"kept": "top", "k": 1, "draw": None, "scale": NAN, "side": "harmful", "measure": "refused"}
        prompts.append(owner | verdict | {"prompt_id": "p0", "value": 1.0})
    made = {"update_spectrum": spectrum, "update_refusals": refusals, "update_prompts": prompts}
    return {name: tables.frame(name, rows) for name, rows in made.items()}


def _spectrum(rng: np.random.Generator) -> list[dict]:
    rows = []
    for matrix, shape in MATRICES.items():
        for layer in range(LAYERS):
            rank = float(rng.uniform(50, 200))
            sizes = {"n_rows": shape[0], "n_columns": shape[1], "rank": 576}
            ranks = {
                "effective_rank": rank,
                "effective_rank_squared": rank / 4,
                "random": 460.0,
                "random_squared": 350.0,
            }
            norms = {"largest": 0.5, "norm": 1.1, "relative_norm": 0.01, "reason": ""}
            rows.append({"matrix": matrix, "layer": layer, **sizes, **ranks, **norms})
    embedding = {**rows[0], "matrix": "model.embed_tokens", "layer": None, "effective_rank": 300.0}
    return [*rows, embedding]


def _refusals(key: tuple[str, int]) -> list[dict]:
    strength = 0.9 if key[0] == "r2d2" else 0.5
    parts = [("scaled", None, None, scale, scale**2, strength * scale) for scale in SCALES]
    for k in RANKS:
        share = 0.2 if k == 1 else 0.6
        parts += [("top", k, None, NAN, share, strength * share), ("all but top", k, None, NAN, 1 - share, 0.1)]
        for draw in range(DRAWS):
            parts += [("random", k, draw, NAN, 0.01, 0.1 * draw), ("all but random", k, draw, NAN, 0.99, strength)]
    rows = []
    for kept, k, draw, scale, share, refused in parts:
        for side in ("harmful", "harmless"):
            known = {"kept": kept, "k": k, "draw": draw, "scale": scale, "share": share, "side": side}
            change = {"change": -0.1, "change_low": -0.3, "change_high": 0.1, "judge": JUDGE, "reason": ""}
            rows.append(known | rate(refused if side == "harmful" else 0.0) | change)
    return rows
