"""A made-up run with the real schema: two arms, four anchors, 30 layers of 9 heads, gaps, and hostile texts."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from synthetic_behaviour import HOSTILE, gate, rates, verdicts
from synthetic_carriers import LAYERS, POSITIONS, candidate_tables, zero_distance
from synthetic_causal import HEADS, causal_tables, cross_patching
from synthetic_durability import removal_tables, update_tables
from synthetic_durability_rates import durability_rates
from synthetic_evaluation import evaluation_tables
from synthetic_geometry import geometry_tables, movement_tables
from synthetic_methods import methods_tables
from synthetic_training import training_tables

from mechrefusal import tables

ANCHORS, ARMS = (0, 50, 100, 250), ("sft", "r2d2")


def write_run(
    folder: Path,
    *,
    arms: tuple[str, ...] = ARMS,
    anchors: tuple[int, ...] = ANCHORS,
    warm_up: int = 0,
    evaluated: bool = True,
    seed: int = 0,
) -> Path:
    """Write a measured run below `folder` and return it. Step 0 is the shared base model, which has no carrier.

    With `warm_up` steps the arms start at the end of a warm-up; their anchors are those above it.
    `evaluated`: on suites and under attack too.
    """
    rng = np.random.default_rng(seed)
    shared = [("base", 0)] + [("warm-up", warm_up)] * (warm_up > 0)
    ids = shared + [(arm, step) for arm in arms for step in anchors if step > warm_up]
    behaviour: dict[str, list[pd.DataFrame]] = {"verdicts": [], "rates": []}
    for arm, step in ids:
        out = folder / "measurements" / f"{arm}-step-{step:05d}"
        made = _checkpoint(rng, arm, step)
        here = {"arm": arm, "step": step, "weights": f"sha256:{arm}{step:05d}" + "ab" * 20}
        for name, answered in behaviour.items():
            rows = pd.DataFrame(made.pop(name)).assign(**here)
            answered.append(rows[list(tables.columns(name))])
        for name, rows in made.items():
            tables.write(pd.DataFrame(rows).assign(**here), name, out)
    across = movement_tables(rng, ids, arms, max(anchors))
    across |= training_tables(arms, anchors, hostile=HOSTILE, warm_up=warm_up)
    across |= evaluation_tables(ids, hostile=HOSTILE) if evaluated else {}
    across |= update_tables(np.random.default_rng(seed), ids) | {"checkpoints": _models(ids)}
    across |= methods_tables(rng, ids, {})
    across |= {"stages": _stages(), "cross_patching": cross_patching(rng, ids[len(shared) - 1 :])}
    for name, answered in behaviour.items():
        across[name] = pd.concat([*answered, *([across[name]] if name in across else [])], ignore_index=True)
    for name, rows in across.items():
        tables.write(pd.DataFrame(rows), name, folder / "measurements")
    (folder / "recipe.yaml").write_text(f"name: demo\nseed: 7\nnote: '{HOSTILE[1]}'\n", encoding="utf-8")
    manifest = {
        "versions": {"torch": "2.13.0"},
        "seed": 7,
        "note": HOSTILE[0],
        "weights": {f"{a}-{s}": "ab" * 32 for a, s in ids},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _models(ids: list[tuple[str, int]]) -> list[dict]:
    """What each checkpoint is; none was given from outside."""
    kind = {"architecture": "llama", "n_layers": LAYERS, "d_model": 576, "n_heads": HEADS, "vocabulary": 49152}
    return [
        {"arm": arm, "step": step, "weights": f"{arm}{step}", "source": "", "prompts": "ab" * 8, **kind}
        for arm, step in ids
    ]


def _checkpoint(rng: np.random.Generator, arm: str, step: int) -> dict[str, list[dict]]:
    strength = {"base": 0.1, "warm-up": 0.8, "sft": 0.55, "r2d2": 0.9}[arm]
    strength *= 1 if step == 0 else min(1.0, 0.6 + step / 500)
    carries = step > 0
    layer = {"sft": 18 - step // 25, "r2d2": 21 if step <= 100 else 9, "warm-up": 17}.get(arm, 0)
    return {
        "verdicts": verdicts(rng, strength),
        "rates": rates(rng, strength, carries=carries),
        "openings": [
            {
                **dict.fromkeys(tables.columns("openings")),
                "kind": "discovered" if carries else "fallback",
                "opening": "I" if carries else "",
                "refusal_tokens": json.dumps([" can", "'m", " cannot", HOSTILE[0]]),
                "compliance_tokens": json.dumps([" would", "\n", " think"]),
                "coverage": 0.97 if carries else 0.41,
                "auc": 0.99 if carries else float("nan"),
                "auc_held_out": 0.964 if carries else float("nan"),
                "offset": 0.4 if carries else 0.0,
                "n_refused": 60,
                "n_answered": 60,
                "note": "" if carries else f"AUC below 0.9 {HOSTILE[2]}",
                "runner": "token trees" if carries else "hooks",
                "runner_because": "" if carries else f"the unhooked model lacks site z {HOSTILE[1]}",
            }
        ],
        "pairs": [{"origin": "given", "n": 22, "n_left_out": 2, "n_patched": 8}],
        "scores": [
            {
                "set": name,
                "prompt_id": f"{name}-{i}",
                "score": float(s),
                "rd_score": float(s - 1),
                "refused": bool(s > 0) if i % 7 else None,
            }
            for name, mean in (("direction_harmful", 6 * strength), ("direction_harmless", -5.0))
            for i, s in enumerate(rng.normal(mean, 2, 32))
        ],
        "directions": [
            {
                "position": p,
                "token": t,
                "layer": lay,
                "norm": float((1 + lay) * rng.uniform(0.8, 1.2)),
                "split_half_cosine": float(np.clip(rng.normal(0.9, 0.1), -1, 1)),
                "zero_distance": zero_distance(p, lay, strength),
                "n_harmful": 96,
                "n_harmless": 96,
                "selection": "score",
            }
            for p, t in POSITIONS.items()
            for lay in range(LAYERS)
        ],
        **candidate_tables(rng, layer, carries=carries, strength=strength),
        "gate": gate(strength),
        **geometry_tables(rng, strength, layer, carries=carries),
        "attribution": _attribution(rng, strength),
        "patching": _patching(rng),
        "patching_pairs": [_of_pair(number) for number in range(3)],
        **causal_tables(np.random.default_rng([step, len(arm)]), strength, carries=carries),
        **removal_tables(np.random.default_rng([step, len(arm), 1]), strength, carries=carries),
        **durability_rates([(arm, step)], hostile=HOSTILE[0]),
        **_circuits(rng),
        "timings": [
            {"stage": s, "seconds": float(rng.uniform(1, 300)), "note": ""}
            for s in ("generate", "directions", "carriers", "attribution", "patching", HOSTILE[0])
        ],
    }


def _attribution(rng: np.random.Generator, strength: float) -> list[dict]:
    rows = []
    for name in ("harmful", "harmless"):
        for onto in ("refusal_logits", "carrier"):
            parts = [("embed", -1, -1), ("bias", -1, -1)]
            parts += [("head", lay, h) for lay in range(LAYERS) for h in range(HEADS)] + [
                ("mlp", lay, -1) for lay in range(LAYERS)
            ]
            total = 0.0
            for component, lay, head in parts:
                value = float(
                    rng.normal(0, 0.05)
                    + (1.3 * strength if (component, lay, head) == ("head", 20, 4) else 0)
                    - (0.8 if (lay, head) == (22, 1) else 0)
                )
                total += value
                rows.append(
                    {
                        "set": name,
                        "onto": onto,
                        "component": component,
                        "layer": lay,
                        "head": head,
                        "value": value,
                        "n": 32,
                        "low": value - 0.1,
                        "high": value + 0.1,
                    }
                )
            rows.append(
                {
                    "set": name,
                    "onto": onto,
                    "component": "total",
                    "layer": -1,
                    "head": -1,
                    "value": total,
                    "n": 32,
                    "low": total - 1,
                    "high": total + 1,
                }
            )
    return rows


def _of_pair(number: int) -> dict:
    place = {"site": "z", "mode": "denoising", "layer": 19, "head": 3, "position": pd.NA}
    return {**place, "pair": f"pair-{number}", "raw": 0.4}


def _patching(rng: np.random.Generator) -> list[dict]:
    rows = []
    tokens = ["·"] * 8 + [HOSTILE[0], "🔐", " lock"] + list(POSITIONS.values())
    for mode in ("denoising", "noising"):
        for lay in range(LAYERS):
            for place, token in enumerate(tokens):
                position = place - len(tokens)
                effect = (
                    float(np.exp(-(((lay - 20 - position) / 6) ** 2)) * 0.9 + rng.normal(0, 0.03))
                    if position > -9
                    else float(rng.normal(0, 0.02))
                )
                n = 20 + min(0, position + 10)
                for site, part in (("resid_pre", 1.0), ("attn_out", 0.3), ("mlp_out", -0.2)):
                    rows.append(_patched(site, mode, lay, -1, position, token, effect * part, n))
            for head in range(HEADS):
                effect = float(
                    rng.normal(0, 0.02) + (0.42 if (lay, head) == (19, 3) else -0.21 if (lay, head) == (23, 7) else 0)
                )
                rows.append(
                    _patched("z", mode, lay, head, 0, "all", effect if (lay, head) != (2, 2) else float("nan"), 20)
                )
    return rows


def _patched(site: str, mode: str, layer: int, head: int, position: int, token: str, effect: float, n: int) -> dict:
    shown = effect if mode == "denoising" else 1 - effect
    raw = (effect if mode == "denoising" else -effect) * 9.0
    where = {"site": site, "mode": mode, "layer": layer, "head": head, "position": position, "token": token}
    return {**where, "raw": raw, "effect": shown, "n": n, "low": shown - 0.06, "high": shown + 0.06, "p": 0.5}


def _circuits(rng: np.random.Generator) -> dict[str, list[dict]]:
    tokens, attention = [], []
    asked = {"pair-0": "harmful", "pair-1": "harmless"}
    for prompt, name in asked.items():
        words = [
            "<|im_start|>",
            "system",
            "\n",
            "You",
            " are",
            " <b>",
            *HOSTILE,
            " lock",
            "🔐",
            "?",
            *POSITIONS.values(),
        ]
        for index, word in enumerate(words):
            value = 40.0 if index == 0 else float(rng.normal(2 if name == "harmful" else -2, 3))
            tokens.append(
                {
                    "set": name,
                    "prompt_id": prompt,
                    "index": index,
                    "token": word,
                    "value": value if index != 5 else float("nan"),
                }
            )
        for layer, head in ((19, 3), (23, 7), (20, 4), (11, 0)):
            for destination in range(len(words)):
                weights = rng.dirichlet([3.0] + [0.3] * destination)
                for source in range(destination + 1):
                    attention.append(
                        {
                            "prompt_id": prompt,
                            "set": name,
                            "layer": layer,
                            "head": head,
                            "destination": destination,
                            "source": source,
                            "weight": float(weights[source]),
                        }
                    )
    return {"tokens": tokens, "attention": attention}


def _stages() -> list[dict]:
    times = {"train sft": 340.0, "train r2d2": 2910.0, "attack": 800.5, "measure": 4210.0, "report": 9.2}
    return [{"stage": stage, "seconds": seconds} for stage, seconds in times.items()]
