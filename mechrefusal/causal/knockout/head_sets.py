"""The smallest set of heads whose joint knock-out takes a share of refusal away, found greedily."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.components import Component
from mechrefusal.causal.knockout.passes import KnockOutPasses
from mechrefusal.causal.knockout.replacements import How
from mechrefusal.causal.patching.pair_runs import SMALLEST_GAP
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.models import require_layers
from mechrefusal.progress import bar
from mechrefusal.statistics import Observations, Observed
from mechrefusal.statistics.observations import numbered

N_CANDIDATES = 32
"""Heads that greedy search chooses from: those with the largest falls of refusal on their own."""

COLUMNS = (
    "size", "layer", "head", "heads", "share", "refusal", "low", "high", "harmless", "harmless_low", "harmless_high",
    "kl", "kl_low", "kl_high", "n_harmful", "n_harmless", "random_refusal", "random_refusal_least",
    "random_refusal_most", "random_harmless", "random_kl", "n_random", "held_out_share", "held_out_refusal",
    "held_out_low", "held_out_high", "held_out_kl", "n_held_out",
)  # fmt: skip

Head = tuple[int, int]


@dataclass(frozen=True)
class HeadSet(Observed):
    """What greedy search found.

    `heads`: (layer, head) in the order in which they were added. `reached`: whether their knock-out takes `share` of
    `gap` away; where not, `reason` says why, and `heads` is the best that was found.

    `curve`, one row a size: size, layer, head (the one added), heads (all, as "L.H L.H"), share (of the gap that is
    gone), then refusal, low, high, harmless, ..., kl, ... as in `KnockOuts`, and for random sets of that size
    random_refusal, random_refusal_least, random_refusal_most (mean and range over `n_random` sets of the mean change),
    random_harmless, random_kl (means), n_random.
    `held_out_*`: the same set on prompts that the search did not see, held_out_share of their own gap; NaN without any.

    `gap`: mean refusal score of the harmful prompts minus that of the harmless ones, nothing replaced, nats.
    `observations`: change of refusal of every harmful prompt (axis size), nats.
    """

    heads: tuple[Head, ...]
    reached: bool
    reason: str
    share: float
    gap: float
    curve: pd.DataFrame
    observations: Observations
    harmful: Float[Tensor, " harmful"]
    harmless: Float[Tensor, " harmless"]

    @property
    def table(self) -> pd.DataFrame:
        """`curve`."""
        return self.curve


def smallest_set(
    model,
    harmful: Sequence[str],
    harmless: Sequence[str],
    metric: RefusalMetric,
    *,
    share: float = 0.5,
    how: How = "mean",
    candidates: Sequence[Head] | None = None,
    largest: int = 20,
    n_random: int = 10,
    reference: Sequence[str] | None = None,
    held_out: tuple[Sequence[str], Sequence[str]] | None = None,
    draws: int = 4,
    seed: int = 0,
) -> HeadSet:
    """The smallest set of heads, as far as greedy search finds it, whose knock-out takes `share` of refusal away.

    Refusal is the gap between the mean score of harmful and of harmless prompts with nothing replaced; a share of it is
    gone where the mean score of the harmful prompts has fallen by share · gap. At each size the head is added that
    makes it fall most together with those chosen before. A smaller set may exist that no greedy path leads to.

    Args:
        share: of the gap, above 0.
        candidates: heads to choose from; by default the `N_CANDIDATES` with the largest falls on their own.
        largest: size at which the search gives up.
        n_random: random sets of each size, drawn from all heads with `seed`, each set holding the smaller ones. With
            none, their columns are NaN.
        held_out: harmful and harmless prompts that the set is measured on once more. The best of many sets looks
            better on the prompts it was chosen by than it is.
        how, reference, draws, seed: as in `knock_out`. What stands in on held-out prompts comes from `reference` too.

    Raises:
        MechrefusalError: as `knock_out`; or a candidate is not in the model, a number is out of range, or a held-out
            prompt is one that the search sees.
    """
    if not 0 < share < float("inf"):
        raise MechrefusalError(f"share is {share}: give the part of refusal to take away, above 0 (0.5: half)")
    if largest < 1 or n_random < 0:
        raise MechrefusalError(f"largest is {largest} and n_random {n_random}: give at least 1 and 0")
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    everyone = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    pool = everyone if candidates is None else _checked(model, candidates)
    if held_out is not None and (seen := {*harmful, *harmless} & {text for side in held_out for text in side}):
        raise MechrefusalError(f"{len(seen)} held-out prompts are among those of the search, such as {min(seen)!r}")
    passes_of = partial(KnockOutPasses, model, metric=metric, how=how, draws=draws, seed=seed)
    parts = _parts(everyone if n_random else pool)
    passes = passes_of(harmful=harmful, harmless=harmless, parts=parts, reference=reference)
    gap = float(passes.base.harmful.mean() - passes.base.harmless.mean())
    if not gap >= SMALLEST_GAP:
        reason = (
            f"harmful prompts score {gap:.3g} nats above harmless ones, less than {SMALLEST_GAP}: "
            "there is no refusal to take away"
        )
        return _head_set(passes, [], [], [], reason, share, gap)
    chosen, reason = _greedy(passes, pool, share * gap, largest, narrow=candidates is None)
    rows, changes = _curve(passes, chosen, everyone, gap, n_random, seed)
    if held_out is not None and chosen:
        standing_in = [*harmful, *harmless] if reference is None else reference
        unseen = passes_of(harmful=held_out[0], harmless=held_out[1], parts=_parts(chosen), reference=standing_in)
        rows = [row | _held_out(unseen, chosen[: row["size"]]) for row in rows]
    return _head_set(passes, chosen, rows, changes, reason, share, gap)


def _greedy(
    passes: KnockOutPasses, pool: Sequence[Head], goal: float, largest: int, *, narrow: bool
) -> tuple[list[Head], str]:
    """The heads, and why they do not reach the goal ("" where they do)."""
    base = float(passes.base.harmful.mean())

    def fall(heads: Sequence[Head]) -> float:
        return base - float(passes.harmful_under(_parts(heads)).mean())

    with bar("single heads", len(pool)) as progress:
        falls = {}
        for head in pool:
            falls[head] = fall([head])
            progress.advance()
    order = sorted(pool, key=lambda head: -falls[head])
    left = order[:N_CANDIDATES] if narrow else order
    chosen: list[Head] = []
    fallen = 0.0
    with bar("smallest set of heads", largest) as progress:
        while True:
            best, most = left[0], falls[left[0]]
            if chosen:
                together = {head: fall([*chosen, head]) for head in left}
                best = max(left, key=lambda head: together[head])
                most = together[best]
            if not most > fallen:
                return chosen, f"no further head lowers the score: {_far(fallen, goal)} with a set of {len(chosen)}"
            chosen.append(best)
            fallen = most
            left = [head for head in left if head != best]
            progress.advance()
            if fallen >= goal:
                return chosen, ""
            if len(chosen) == largest:
                return chosen, f"{_far(fallen, goal)} with {largest} heads, the largest set allowed"
            if not left:
                return chosen, f"{_far(fallen, goal)} with all {len(chosen)} candidates"


def _far(fallen: float, goal: float) -> str:
    return f"the score of harmful prompts fell by {fallen:.3g} of the {goal:.3g} nats asked for"


def _curve(
    passes: KnockOutPasses, chosen: Sequence[Head], everyone: Sequence[Head], gap: float, n_random: int, seed: int
) -> tuple[list[dict], list[Float[Tensor, " harmful"]]]:
    """Rows of the curve, and the change of every harmful prompt at each size."""
    orders = [np.random.default_rng([seed, number]).permutation(len(everyone)) for number in range(n_random)]
    rows, changes = [], []
    with bar("against random sets", len(chosen) * (1 + n_random)) as progress:
        for size in range(1, len(chosen) + 1):
            scores = passes.under(_parts(chosen[:size]))
            effect = passes.effect(scores)
            changes.append(scores.harmful - passes.base.harmful)
            progress.advance()
            random_effects = []
            for order in orders:
                random_effects.append(passes.effect(passes.under(_parts([everyone[i] for i in order[:size]]))))
                progress.advance()
            refusal, cost, kl = (
                np.array([draw[name] for draw in random_effects] or [np.nan]) for name in ("refusal", "harmless", "kl")
            )
            layer, head = chosen[size - 1]
            rows.append(
                {
                    "size": size,
                    "layer": layer,
                    "head": head,
                    "heads": " ".join(f"{layer}.{head}" for layer, head in chosen[:size]),
                    "share": -effect["refusal"] / gap,
                    **effect,
                    "random_refusal": float(refusal.mean()),
                    "random_refusal_least": float(refusal.min()),
                    "random_refusal_most": float(refusal.max()),
                    "random_harmless": float(cost.mean()),
                    "random_kl": float(kl.mean()),
                    "n_random": n_random,
                }
            )
    return rows, changes


def _held_out(passes: KnockOutPasses, heads: Sequence[Head]) -> dict[str, float | int]:
    effect = passes.effect(passes.under(_parts(heads)))
    gap = float(passes.base.harmful.mean() - passes.base.harmless.mean())
    return {
        **{f"held_out_{name}": effect[name] for name in ("refusal", "low", "high", "kl")},
        # Without refusal to lose there is no share of it.
        "held_out_share": -effect["refusal"] / gap if gap >= SMALLEST_GAP else float("nan"),
        "n_held_out": effect["n_harmful"],
    }


def _head_set(
    passes: KnockOutPasses,
    heads: Sequence[Head],
    rows: list[dict],
    changes: Sequence[Float[Tensor, " harmful"]],
    reason: str,
    share: float,
    gap: float,
) -> HeadSet:
    curve, base = pd.DataFrame(rows, columns=COLUMNS), passes.base
    values = torch.stack([torch.zeros_like(base.harmful), *changes], dim=1)[:, 1:].double().numpy()
    observations = Observations(values, curve[["size"]], numbered(len(values)))
    return HeadSet(tuple(heads), not reason, reason, share, gap, curve, observations, base.harmful, base.harmless)


def _parts(heads: Sequence[Head]) -> list[Component]:
    return [Component("head", layer, head) for layer, head in heads]


def _checked(model, candidates: Sequence[Head]) -> list[Head]:
    heads = list(dict.fromkeys((int(layer), int(head)) for layer, head in candidates))
    if not heads:
        raise MechrefusalError("no candidate heads; give some as (layer, head), or None for the largest single effects")
    require_layers(model, sorted({layer for layer, _ in heads}))
    if outside := [head for _, head in heads if not 0 <= head < model.cfg.n_heads]:
        raise MechrefusalError(f"head {outside[0]} is not in this model; it has heads 0 to {model.cfg.n_heads - 1}")
    return heads
