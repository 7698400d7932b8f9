"""Cost of removal: how few refusals an ablation leaves for how much damage, in memory and along the model's own
direction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from mechrefusal import causal, prompts
from mechrefusal.causal import Passes, WeightedAblation
from mechrefusal.causal.divergence import kl_of_probabilities, probabilities
from mechrefusal.durability.asking import Judged, judged_answers
from mechrefusal.durability.removal_search import Point, Search, Weights, unbeaten
from mechrefusal.durability.settings import RemovalSettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge
from mechrefusal.forward import unhooked_model
from mechrefusal.forward.direction import Along, Direction, direction_of
from mechrefusal.geometry.contrast import Contrast
from mechrefusal.progress import bar
from mechrefusal.statistics import Observations, Observed, intervals
from mechrefusal.statistics.paired import rate_difference

SEARCH, CONFIRMED = "search", "held-out"
"""Prompts that the trials are chosen by, and prompts that did not choose them."""
UNTOUCHED, EVERYWHERE, DRAWN, STEPPED = "untouched", "everywhere", "drawn", "stepped"
"""Kinds of trials: no ablation, weight 1 at every layer, a point of the hypercube, a step from an unbeaten trial."""
MEASURES = ("refused", "degenerate", "kl")
_OWN = -1


@dataclass(frozen=True)
class Trial:
    """An ablation that was tried. `weights` is None for no ablation, `point` where it is none of the search."""

    kind: str
    weights: Weights | None = None
    point: Point | None = None


@dataclass(frozen=True)
class _Outcome:
    """What one ablation does to one set of prompts, prompt by prompt."""

    judged: Judged
    kl: Float[np.ndarray, " harmless"]

    @property
    def refusals(self) -> float:
        return float(self.judged.refused.mean())

    @property
    def mean_kl(self) -> float:
        return float(self.kl.mean())


@dataclass(frozen=True)
class Removal(Observed):
    """The cost of removal.

    Fields:
        observations: axes set (search, held-out), trial, draw (−1: the model's own direction, else a random one) and
            measure (refused, degenerate: of harmful prompts, 0 or 1; kl: of harmless prompts, nats).
        table: one row a trial, in the columns of the table `removal_trials`.
        confirmed: one row a level of KL, in the columns of the table `removal`.
    """

    observations: Observations
    table: pd.DataFrame
    confirmed: pd.DataFrame

    def _estimate(self, cell: pd.Series, values: np.ndarray, confidence: float) -> intervals.Estimate:
        if cell["measure"] == "kl":
            return intervals.skewed_mean(values, confidence=confidence)
        return intervals.rate(int(values.sum()), len(values), confidence=confidence)


def cost_of_removal(
    model, along: Along, search: Contrast, held_out: Contrast, judge: Judge, settings: RemovalSettings
) -> Removal:
    """Search ablation weights by layer for few refusals of harmful prompts at little KL on harmless ones.

    A trial is an ablation of the direction (`WeightedAblation`) whose weights at attention and at MLP outputs follow a
    kernel each (`Kernel`, as in p-e-w/heretic). First come no ablation and weight 1 everywhere, then half of
    `settings.n_trials` from a Latin hypercube over the eight numbers of the kernels, then steps from the trials that
    are unbeaten so far (`Search`); heretic's tree-structured Parzen estimator, and its choice of the direction by the
    search, are left out. KL is that of the next token after the prompt from that without ablation, as there.

    For each level of KL the trial with the fewest refusals among those that cost no more is taken: the fewest of many
    by the search's prompts, so too few. What it does is therefore asked again of the held-out prompts, beside the
    same weights along random directions (`settings.n_random` of them).

    Args:
        model: a hooked transformer. Interventions stand at it in passing; its weights are left alone.
        along: the direction; its reference is not asked for, as heretic's is zero.
        search, held_out: harmful and harmless prompts, disjoint.

    Raises:
        MechrefusalError: a direction of another model, a subspace, or no prompts.
    """
    direction = direction_of(along)
    if direction.vector.ndim != 1:
        raise MechrefusalError(f"the {direction.name} is a subspace: the cost of removal takes a single direction")
    on = {SEARCH: _Asked(model, search, judge, settings), CONFIRMED: _Asked(model, held_out, judge, settings)}
    n_layers = model.cfg.n_layers
    trials = [Trial(UNTOUCHED), Trial(EVERYWHERE, Weights.everywhere(n_layers))]
    outcomes: list[_Outcome] = []
    points = Search(settings.n_trials, seed=settings.seed)
    trials += [Trial(DRAWN, Weights.at(point, n_layers), point) for point in points.first()]
    with bar("removal", total=settings.n_trials + 2) as progress:
        while True:
            for trial in trials[len(outcomes) :]:
                outcomes.append(on[SEARCH].under(_ablation(trial, direction, n_layers)))
                progress.advance()
            if len(trials) >= settings.n_trials + 2:
                break
            front = [trials[place].point for place in _front(outcomes)]
            known = [point for point in front if point is not None] or points.first()
            point = points.step_from(known)
            trials.append(Trial(STEPPED, Weights.at(point, n_layers), point))
    chosen = [_fewest(outcomes, level) for level in settings.kl_levels]
    seen: dict[tuple[str, int, int], _Outcome] = {(SEARCH, n, _OWN): each for n, each in enumerate(outcomes)}
    controls = [causal.random_like(direction, seed=settings.seed + draw) for draw in range(settings.n_random)]
    for n in sorted({0, *chosen}):
        seen[CONFIRMED, n, _OWN] = on[CONFIRMED].under(_ablation(trials[n], direction, n_layers))
        for draw, control in enumerate(controls if trials[n].weights is not None else []):
            seen[CONFIRMED, n, draw] = on[CONFIRMED].under(_ablation(trials[n], control, n_layers))
    return Removal(
        _observations({name: asked.sizes for name, asked in on.items()}, seen),
        pd.DataFrame([_row(n, trial, outcomes[n]) for n, trial in enumerate(trials)]).assign(
            unbeaten=np.isin(np.arange(len(trials)), _front(outcomes)), reason=""
        ),
        pd.DataFrame(
            [
                _confirmed_row(level, n, trials[n], seen, settings.n_random)
                for level, n in zip(settings.kl_levels, chosen, strict=True)
            ]
        ),
    )


class _Asked:
    """Prompts ready to be asked under one ablation after another."""

    def __init__(self, model, contrast: Contrast, judge: Judge, settings: RemovalSettings) -> None:
        self._harmful = list(contrast.harmful)[: settings.n_prompts]
        harmless = list(contrast.harmless)[: settings.n_prompts]
        if not self._harmful or not harmless:
            raise MechrefusalError(
                f"the cost of removal needs harmful and harmless prompts, got {len(self._harmful)} and "
                f"{len(harmless)}: give one at least"
            )
        self.sizes = {"harmful": len(self._harmful), "harmless": len(harmless)}
        self._unhooked, self._tokenizer = unhooked_model(model), model.tokenizer
        self._judge, self._max_new_tokens = judge, settings.max_new_tokens
        self._passes = Passes(model, prompts.prompt_ids(model.tokenizer, harmless))
        self._untouched = self._following(None)

    def under(self, ablation: WeightedAblation | None) -> _Outcome:
        with causal.intervened(self._unhooked, ablation):
            judged = judged_answers(
                self._unhooked,
                self._harmful,
                self._judge,
                max_new_tokens=self._max_new_tokens,
                tokenizer=self._tokenizer,
            )
        kl = kl_of_probabilities(self._untouched, self._untouched if ablation is None else self._following(ablation))
        return _Outcome(judged, kl.double().cpu().numpy())

    @torch.no_grad()
    def _following(self, ablation: WeightedAblation | None) -> torch.Tensor:
        """Probabilities of the next token of every harmless prompt."""
        return probabilities(self._passes.logits(ablation)[0][:, 0])


def _ablation(trial: Trial, along: Direction, n_layers: int) -> WeightedAblation | None:
    if trial.weights is None:
        return None
    attention, mlp = (kernel.weights(n_layers) for kernel in (trial.weights.attention, trial.weights.mlp))
    return WeightedAblation(along.vector, attention, mlp, weights=along.weights)


def _front(outcomes: Sequence[_Outcome]) -> list[int]:
    """The unbeaten trials, by KL."""
    kl = np.array([each.mean_kl for each in outcomes])
    front = np.flatnonzero(unbeaten(np.array([each.refusals for each in outcomes]), kl))
    return front[np.argsort(kl[front], kind="stable")].tolist()


def _fewest(outcomes: Sequence[_Outcome], level: float) -> int:
    """The trial with the fewest refusals at a KL of `level` at most, of several that with the least KL."""
    within = [n for n in _front(outcomes) if outcomes[n].mean_kl <= level]
    return within[-1]  # no ablation has a KL of 0; along the front refusals fall


def _row(n: int, trial: Trial, outcome: _Outcome) -> dict[str, Any]:
    """One row of `removal_trials`."""
    numbers = dict.fromkeys(Weights.everywhere(1).columns, float("nan"))
    weights = numbers if trial.weights is None else trial.weights.columns
    return {"trial": n, "kind": trial.kind, **weights, **_columns(outcome)}


def _columns(outcome: _Outcome) -> dict[str, Any]:
    refused = intervals.rate(int(outcome.judged.refused.sum()), len(outcome.judged.refused))
    kl = intervals.skewed_mean(outcome.kl)
    return {
        **refused.columns("refused", ""),
        "n": refused.n,
        "degenerate": float(outcome.judged.degenerate.mean()),
        **kl.columns("kl"),
        "n_harmless": kl.n,
    }


def _confirmed_row(
    level: float, n: int, trial: Trial, seen: dict[tuple[str, int, int], _Outcome], n_random: int
) -> dict[str, Any]:
    """One row of `removal`."""
    own, untouched = seen[CONFIRMED, n, _OWN], seen[CONFIRMED, 0, _OWN]
    changed = rate_difference(untouched.judged.refused.astype(float), own.judged.refused.astype(float))
    random = [seen[key] for draw in range(n_random) if (key := (CONFIRMED, n, draw)) in seen]
    refusals = [each.refusals for each in random] or [float("nan")]
    none = "no trial within this KL has fewer refusals than no ablation" if trial.weights is None else ""
    return {
        "level": level,
        "trial": n,
        "kind": trial.kind,
        "search_refused": seen[SEARCH, n, _OWN].refusals,
        "search_kl": seen[SEARCH, n, _OWN].mean_kl,
        **_columns(own),
        "untouched": untouched.refusals,
        **changed.columns("change"),
        "random_refused": float(np.mean(refusals)),
        "random_least": float(np.min(refusals)),
        "random_most": float(np.max(refusals)),
        "random_kl": float(np.mean([each.mean_kl for each in random])) if random else float("nan"),
        "n_random": len(random),
        "reason": none,
    }


def _observations(sizes: dict[str, dict[str, int]], seen: dict[tuple[str, int, int], _Outcome]) -> Observations:
    cells: dict[tuple, tuple[str, np.ndarray]] = {}
    for (name, trial, draw), outcome in seen.items():
        values = (outcome.judged.refused.astype(float), outcome.judged.degenerate.astype(float), outcome.kl)
        for measure, side, by_prompt in zip(MEASURES, ("harmful", "harmful", "harmless"), values, strict=True):
            cells[name, trial, draw, measure] = f"{name} {side}", by_prompt
    flat = {f"{name} {side}": n for name, of_sides in sizes.items() for side, n in of_sides.items()}
    return Observations.of_sides(flat, cells, ("set", "trial", "draw", "measure"))
