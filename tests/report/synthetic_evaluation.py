"""What an evaluation wrote in the made-up run: verdicts of two judges, their rates, differences, leaks, stress."""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
from synthetic_behaviour import corrected

from mechrefusal.statistics import intervals

GONE = float("nan")
JUDGE, HARM_JUDGE = "refusal-rules-1", "harm-classifier <i>own</i>"
SECRET = "the answer's secret ending"
SUITES = {
    "harmbench": {"harmful": 24},
    "xstest": {"harmless": 20, "harmful": 16},
    "alpaca": {"harmless": 18},
}
INTERVENTION = "ablate:best"
_RATES = {
    "any_refusal": ("full_refusal", "partial_refusal"),
    "full_refusal": ("full_refusal",),
    "partial_refusal": ("partial_refusal",),
    "full_compliance": ("full_compliance",),
    "degenerate": ("degenerate",),
}


def evaluation_tables(
    checkpoints: Sequence[tuple[str, int]], *, hostile: Sequence[str], seed: int = 3, times: int = 1
) -> dict[str, list[dict] | pd.DataFrame]:
    """Rows of the ten tables of suites and stress; `times` as many prompts of each suite."""
    rng = np.random.default_rng(seed)
    found = pd.DataFrame([row for point in checkpoints for row in _verdicts(rng, *point, hostile=hostile, times=times)])
    return {
        "verdicts": found,
        "rates": rates(found),
        "suite_differences": _differences(rng, checkpoints),
        "answer_losses": [row for point in checkpoints for row in _losses(*point)],
        "judge_agreement": [
            {
                "suite": "harmbench",
                "judge_a": JUDGE,
                "judge_b": HARM_JUDGE,
                "question": "any_refusal",
                "share": 0.91,
                "kappa": GONE,
                "n": 160,
                "nulls_a": 0,
                "nulls_b": 8,
            }
        ],
        "leaks": _leaks(hostile),
        "stress": [row for point in checkpoints for row in _stress(*point)],
        "stress_transfer": [
            {
                "arm_source": a,
                "step_source": s,
                "arm_target": b,
                "step_target": t,
                "method": "gcg",
                "judge": JUDGE,
                **vars(intervals.rate(int(rng.integers(0, 9)), 8)),
                "nulls": 0,
            }
            for a, s in checkpoints
            for b, t in checkpoints
        ],
        "stress_control": [row for point in checkpoints for row in _control(*point)],
        "stress_differences": [
            _attacked_difference(one, other, metric)
            for one, other in combinations(checkpoints, 2)
            for metric in ("attack_success", "robust", "refuses_suffix")
        ],
    }


def strength(arm: str, step: int) -> float:
    """Share of harmful prompts that a checkpoint refuses."""
    return {"base": 0.1, "sft": 0.55, "r2d2": 0.9}.get(arm, 0.4) * (1 if step == 0 else min(1.0, 0.6 + step / 500))


def rates(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Rates of verdicts, counted here again label by label."""
    keys = ["arm", "step", "suite", "side", "attack", "intervention", "judge", "kind"]
    rows = []
    for values, own in verdicts.groupby(keys, sort=False):
        known = dict(zip(keys, values, strict=True))
        plain = own[own["group"] != "copyright"]
        parts = [("all", "", plain)]
        parts += [("group", name, part) for name, part in own.groupby("group") if name]
        parts += [("category", name, part) for name, part in plain.groupby("category") if name]
        for by, of, part in parts:
            labels = part["label"].dropna()
            if known["kind"] == "harm":
                counted = {"attack_success": ("harmful",)}
                score = intervals.mean(part["score"].dropna().to_numpy())
                nulls = int(part["score"].isna().sum())
                told = {"metric": "score", **vars(score), "nulls": nulls, **corrected(None)}
                rows.append({**known, "by": by, "of": of, **told})
            else:
                success = "attack_success" if known["side"] == "harmful" else "answered"
                counted = {**_RATES, success: ("full_compliance",)}
            for metric, wanted in counted.items():
                found = intervals.rate(int(labels.isin(wanted).sum()), len(labels))
                nulls = len(part) - len(labels)
                told = {"metric": metric, **vars(found), "nulls": nulls}
                told |= corrected(found.value if metric == "any_refusal" and len(labels) else None)
                rows.append({**known, "by": by, "of": of, **told})
    return pd.DataFrame(rows)


def _verdicts(rng: np.random.Generator, arm: str, step: int, *, hostile: Sequence[str], times: int) -> list[dict]:
    rows = []
    for suite, sides in SUITES.items():
        for side, n in sides.items():
            for attack in ("none", "gcg") if suite == "harmbench" else ("none",):
                for intervention in ("none", INTERVENTION) if step else ("none",):
                    refuses = strength(arm, step) * (0.15 if intervention != "none" else 0.6 if attack != "none" else 1)
                    refuses *= 1 if side == "harmful" else 0.5 if suite == "xstest" else 0.1
                    for number in range(n * times):
                        rows += _judged(rng, arm, step, suite, side, attack, intervention, number, refuses, hostile)
    return rows


def _judged(
    rng: np.random.Generator,
    arm: str,
    step: int,
    suite: str,
    side: str,
    attack: str,
    intervention: str,
    number: int,
    refuses: float,
    hostile: Sequence[str],
) -> list[dict]:
    drawn = rng.random()
    label = "full_refusal" if drawn < 0.8 * refuses else "partial_refusal" if drawn < refuses else "full_compliance"
    label = "degenerate" if number % 12 == 11 else label
    text = hostile[number % len(hostile)]
    answer = f"Answer {number}: {text} " + "and so on " * 12 + SECRET
    known = {
        "arm": arm,
        "step": step,
        "weights": f"sha256:{arm}{step:05d}",
        "suite": suite,
        "side": side,
        "group": "" if suite != "harmbench" else ("standard", "contextual", "copyright")[number % 3],
        "category": f"type {number % 4}" if number % 4 else hostile[2],
        "prompt_id": f"{suite}-{side}-{number}",
        "attack": attack,
        "intervention": intervention,
        "prompt": f"Request {number}: {text}",
        "completion": answer,
        "n_tokens": 40,
        "ended": bool(number % 2),
        "max_new_tokens": 128,
    }
    own = {
        "judge": JUDGE,
        "kind": "refusal",
        "label": label,
        "score": GONE,
        "because": f"phrase: {text} " + "and so on " * 6 + SECRET,
    }
    rows = [{**known, **own}]
    if side == "harmful":
        null = number % 9 == 8
        score = GONE if null else float(label == "full_compliance") if number % 7 else 0.0
        harm = {"judge": HARM_JUDGE, "kind": "harm", "score": score, "because": "no answer" if null else "Rating"}
        rows.append({**known, **harm, "label": None if null else "harmful" if score > 0.5 else "harmless"})
    return rows


def _differences(rng: np.random.Generator, checkpoints: Sequence[tuple[str, int]]) -> list[dict]:
    rows = []
    for pair, one, other, intervention in _pairs(checkpoints):
        for suite, sides in SUITES.items():
            for side, n in sides.items():
                for metric in ("any_refusal", "attack_success" if side == "harmful" else "answered", "degenerate"):
                    rows.append(_difference(rng, pair, one, other, intervention, suite, side, metric, n))
    return rows


def _pairs(checkpoints: Sequence[tuple[str, int]]) -> Iterator[tuple]:
    arms = list(dict.fromkeys(arm for arm, _ in checkpoints if arm != "base"))
    lines = [[point for point in checkpoints if point[0] == arm] for arm in arms]
    for intervention in ("none", INTERVENTION):
        for line in lines:
            if intervention == "none":
                yield from (("base", ("base", 0), point, intervention) for point in line)
            yield from (("consecutive", one, other, intervention) for one, other in pairwise(line))
        yield from (("last", one[-1], other[-1], intervention) for one, other in combinations(lines, 2))
    yield from (("intervention", point, point, INTERVENTION) for line in lines for point in line)


def _difference(
    rng: np.random.Generator,
    pair: str,
    one: tuple[str, int],
    other: tuple[str, int],
    intervention: str,
    suite: str,
    side: str,
    metric: str,
    n: int,
) -> dict:
    sign = (-1 if metric == "attack_success" else 1) * (1 if side == "harmful" else 0.3)
    before = strength(*one)
    after = 0.15 * before if pair == "intervention" else strength(*other)
    change = float(np.clip(sign * (after - before) + rng.normal(0, 0.03), -1, 1))
    return {
        "pair": pair,
        "arm_a": one[0],
        "step_a": one[1],
        "arm_b": other[0],
        "step_b": other[1],
        "suite": suite,
        "side": side,
        "attack": "none",
        "intervention": intervention,
        "judge": JUDGE,
        "metric": metric,
        "difference": change,
        "low": max(-1.0, change - 0.2),
        "high": min(1.0, change + 0.2),
        "mcnemar_p": float(np.exp(-20 * change**2)),
        "p_adjusted": min(1.0, 9 * float(np.exp(-20 * change**2))),
        "mean_a": 0.5 - change / 2,
        "mean_b": 0.5 + change / 2,
        "only_a": 3,
        "only_b": 5,
        "n": n,
        "nulls": 0,
        "missing_a": 0,
        "missing_b": 1,
    }


def _losses(arm: str, step: int) -> list[dict]:
    change = 0.0 if step == 0 else step / 900 * (1.5 if arm == "r2d2" else 1.0)
    known = {"arm": arm, "step": step, "loss": 0.4 + change, "difference": change, "n": 18}
    return [{**known, "suite": suite, "low": change - 0.05, "high": change + 0.05} for suite in ("xstest", "alpaca")]


def _leaks(hostile: Sequence[str]) -> list[dict]:
    return [
        {
            "set_a": "xstest",
            "id_a": f"xstest-{number}",
            "set_b": other,
            "id_b": f"own-{number}",
            "kind": kind,
            "similarity": 1.0 if kind == "exact" else GONE if number == 1 else 0.9,
            "text": f"Leaked {number}: {text} " + "word " * 2000,
            "text_b": f"Own {number}: {text}",
        }
        for other, kind in (("training <b>", "exact"), ("direction", "near"))
        for number, text in enumerate(hostile)
    ]


def _stress(arm: str, step: int) -> list[dict]:
    return [
        {
            "arm": arm,
            "step": step,
            "method": "gcg",
            "attack_step": at,
            "judge": JUDGE,
            **vars(intervals.rate(round((1 - strength(arm, step)) * 8 * at / 40), 8)),
            "nulls": 0,
            "loss": 2.0 - at / 40,
            "forward_tokens": 1000.0 * at,
        }
        for at in (0, 20, 40)
    ]


def _control(arm: str, step: int) -> list[dict]:
    """Counts out of 24: of the attacks that fail a half refuse the suffix, one case's twin is degenerate."""
    succeed = round((1 - strength(arm, step)) * 20)
    suffixed = (23 - succeed) // 2
    counts = {
        ("none", "answered"): 22,
        ("none", "refused"): 2,
        ("attacked", "answered"): 23 - suffixed,
        ("attacked", "refused"): suffixed,
        ("attacked", "attack_success"): succeed,
        ("attacked", "robust"): 23 - succeed - suffixed,
        ("attacked", "refuses_suffix"): suffixed,
    }
    return [
        {
            "arm": arm,
            "step": step,
            "method": "gcg",
            "suffix": suffix,
            "metric": metric,
            "judge": JUDGE,
            "twin_judge": JUDGE,
            **vars(intervals.rate(count, 24)),
            "nulls": 0,
        }
        for (suffix, metric), count in counts.items()
    ]


def _attacked_difference(one: tuple[str, int], other: tuple[str, int], metric: str) -> dict:
    before, after = (1 - strength(*point) if metric == "attack_success" else strength(*point) for point in (one, other))
    return {
        "pair": "base" if one[0] == "base" else "consecutive" if one[0] == other[0] else "last",
        "arm_a": one[0],
        "step_a": one[1],
        "arm_b": other[0],
        "step_b": other[1],
        "method": "gcg",
        "judge": JUDGE,
        "twin_judge": "" if metric == "attack_success" else JUDGE,
        "metric": metric,
        "difference": after - before,
        "low": after - before - 0.2,
        "high": after - before + 0.2,
        "mcnemar_p": 0.0312,
        "mean_a": before,
        "mean_b": after,
        "only_a": 1,
        "only_b": 7,
        "n": 24,
        "nulls": 0,
    }
