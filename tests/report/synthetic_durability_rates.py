"""Tables of harmful fine-tuning, answers by their length and prefilled openings, made up: several arms and draws."""

import pandas as pd

from mechrefusal import tables
from mechrefusal.statistics import intervals

CHECKPOINTS = (("base", 0), ("sft", 50), ("r2d2", 50), ("r2d2", 100))
N = 20


def rate(key, *parts):
    """A rate that depends on all that it is of."""
    refused = sum(map(ord, "".join(map(str, (*key, *parts))))) % (N + 1)
    change = {"difference": -0.1, "difference_low": -0.3, "difference_high": 0.05, "mcnemar_p": 0.5}
    return {**vars(intervals.rate(refused, N)), **change, "n_compared": N, "reason": ""}


def durability_rates(checkpoints=CHECKPOINTS, *, hostile=""):
    """All five tables, each with a row that says why there is no rate."""
    rows = {
        name: [] for name in ("harmful_fine_tuning", "fine_tunings", "answer_length", "refusal_places", "prefilled")
    }
    for arm, step in checkpoints:
        owner = {"arm": arm, "step": step, "weights": f"{arm}{step}"}
        gap = dict.fromkeys(("value", "difference", "difference_low", "difference_high", "mcnemar_p"), float("nan"))
        none = {**rate(owner), **gap, "low": 0.0, "high": 1.0, "n": 0, "n_compared": 0, "reason": f"too few {hostile}"}
        trained = [(m, n, d) for m in ("harmful", "harmless") for n in (10, 50) for d in (0, 1)]
        for material, n, draw in [("none", 0, 0), *trained]:
            for side in ("harmful", "harmless"):
                for measure in ("refused", "degenerate"):
                    cell = {"material": material, "n_examples": n, "draw": draw, "side": side, "measure": measure}
                    rows["harmful_fine_tuning"].append(owner | cell | rate((arm, step), *cell.values()))
            if material != "none":
                known = {"n_steps": n // 2, "loss_first": 3.0, "loss_last": 1.0, "put_back": "ab" * 8}
                rows["fine_tunings"].append(owner | {"material": material, "n_examples": n, "draw": draw} | known)
        cell = {"material": "harmful", "n_examples": 500, "draw": 0, "side": "harmful", "measure": "refused"}
        rows["harmful_fine_tuning"].append(owner | cell | none)
        for side in ("harmful", "harmless"):
            for n in (8, 16, 64):
                cell = {"side": side, "n_tokens": n, "measure": "refused"}
                rows["answer_length"].append(owner | cell | rate((arm, step), *cell.values()))
            rows["answer_length"].append(owner | {"side": side, "n_tokens": 64, "measure": "delayed"} | none)
            for number in range(N):
                token = None if number % 4 == 0 or side == "harmless" else (0, 0, 7, 7 + step // 10)[number % 4]
                place = {"refused": token is not None, "sentence": token and 1 if token is not None else None}
                known = {"side": side, "prompt_id": f"{side}-{number}", "n_tokens": 64, "ended": True}
                rows["refusal_places"].append(owner | known | place | {"token": token})
            openings = [("affirmative", 0), *(("neutral", draw) for draw in range(3))]
            for opening, draw, n in [("none", 0, 0), *((o, d, n) for o, d in openings for n in (1, 5))]:
                cell = {"opening": opening, "draw": draw, "side": side, "n_tokens": n, "measure": "refused"}
                rows["prefilled"].append(owner | cell | rate((arm, step), *cell.values()))
            cell = {"opening": "affirmative", "draw": 0, "side": side, "n_tokens": 20, "measure": "refused"}
            rows["prefilled"].append(owner | cell | none)
    return {name: tables.frame(name, pd.DataFrame(of_name)) for name, of_name in rows.items()}
