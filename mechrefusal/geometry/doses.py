"""Dose and response: what ablating or adding a direction by degrees does to refusal, and what to harmless answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from mechrefusal import prompts
from mechrefusal.causal import AnswerPasses, Intervention, put_in, random_like, taken_out
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric, end_tokens, generate
from mechrefusal.forward.direction import Carrier, Direction, direction_of, require_weights
from mechrefusal.geometry import resampling
from mechrefusal.geometry.contrast import Lists, Texts
from mechrefusal.geometry.scoring import Scorer, as_array
from mechrefusal.models import TokenBatch, require_direction, require_layers
from mechrefusal.progress import track
from mechrefusal.statistics import Observations, Observed, intervals

COEFFICIENTS = tuple(float(c) for c in np.arange(-2, 2.5, 0.5))
ANSWER_TOKENS = 16
CHUNK = 64
"""Prompts answered at once."""
MEASURES = ("refusal_harmful", "refusal_harmless", "refused_harmless", "loss_harmless", "kl_harmless")
INTERVENTIONS = ("ablate", "induce")

Curve = Float[np.ndarray, "coefficient prompt"]
NAN = float("nan")


@dataclass(frozen=True)
class Doses(Observed):
    """`table`: one row an intervention, coefficient and measure. `area`: one row an intervention and pair of curves.

    `observations`: every prompt's value; axes intervention, coefficient and measure. A measure of the harmful prompts
    has none of the harmless ones, and the other way round.
    """

    table: pd.DataFrame
    area: pd.DataFrame
    observations: Observations

    def _estimate(self, cell: pd.Series, values: Float[np.ndarray, " prompt"], confidence: float) -> intervals.Estimate:
        return _estimate(cell["measure"], values, confidence)


def dose_response(
    model,
    direction: Direction | Carrier,
    harmful: Texts,
    harmless: Texts,
    metric: RefusalMetric,
    *,
    answers: Sequence[Sequence[int]] | None = None,
    coefficients: Sequence[float] = COEFFICIENTS,
    control_seed: int = 0,
) -> Doses:
    """Ablate a direction and put it in by degrees; measure refusal, and what it costs on harmless prompts.

    Interventions where the direction's reference is zero: ablate takes `coefficient` times the direction's part out of
    the residual stream (1 is the ablation of Arditi et al., 2406.11717, eq. 4; negative ones put more of it in); induce
    adds `coefficient` times the direction at its layer (eq. 3). Where it is the harmless mean: ablate takes the part
    `coefficient` of the way to that mean, induce that far to the harmful one, from its layer on (2411.09003; 1 goes all
    the way, 0 nowhere). ablate_random and induce_random do the same with a random direction of the same norm, at every
    other coefficient, both ends and 0.
    Coefficient 0 is no intervention, taken once.

    Measures: refusal_harmful and refusal_harmless (mean refusal score, nats), refused_harmless (share of the harmless
    prompts with a score above 0), loss_harmless (cross-entropy of the model's own greedy answers to the harmless
    prompts, nats a token; prompts answered with nothing are left out), kl_harmless (KL of the next token's
    distribution from that without intervention, nats).

    Utility coupling, from two curves over the coefficients: the refusal moved, |Δ refusal_harmful|, and the cost,
    |Δ loss_harmless|, each the mean over prompts minus that at coefficient 0.
    cost_per_refusal: the area under the cost divided by the area under the refusal moved, nats a token that harmless
    answers lose for each nat that the refusal score moves. It is the number to compare checkpoints by: a direction that
    does little of either does not look harmless. area_between: the area under the refusal moved minus that under the
    cost, the signed area between the curves, in nats times coefficient; it grows with the direction's strength.
    Areas are by the trapezoidal rule.

    Args:
        model: a hooked transformer.
        answers: the model's own answers to the harmless prompts (token ids without the end token); by default
            generated, `ANSWER_TOKENS` tokens at most.
        coefficients: 0 is added where it is missing.

    Returns:
        `table` in the columns of the table `doses`, `area` in those of `utility_coupling`. Intervals are 95% over
        prompts: Student's t (Wilson for the share), bootstrap for the areas. `random` is the value for the random
        direction on its coarser coefficients.

    Raises:
        MechrefusalError: no harmful or no harmless prompts; a direction that is zero, not finite, or of other weights
            or another width; a layer that is not there, or not known; coefficients that are not finite, or only 0;
            answers that are not one a prompt.
    """
    r = direction_of(direction)
    require_weights(model, r.weights, r.name)
    require_direction(model, r.vector.detach())
    require_layers(model, [r.require_layer()])
    if not len(harmful) or not len(harmless):
        raise MechrefusalError(
            f"doses need harmful and harmless prompts, got {len(harmful)} and {len(harmless)}: give one at least"
        )
    grid = sorted({float(c) for c in coefficients} | {0.0})
    if not all(map(isfinite, grid)) or len(grid) < 2:
        raise MechrefusalError(f"coefficients {list(coefficients)} are not doses; give finite ones, one besides 0")
    response = _Response(model, harmful, harmless, metric, answers)
    control = random_like(r, seed=control_seed)
    coarse = sorted({*grid[::2], grid[-1], 0.0})  # from end to end, or areas could not be compared
    plans: dict[str, tuple[list[float], Callable[..., Intervention]]] = {
        "ablate": (grid, partial(taken_out, r)),
        "induce": (grid, partial(put_in, r)),
        "ablate_random": (coarse, partial(taken_out, control)),
        "induce_random": (coarse, partial(put_in, control)),
    }
    cells = [
        (name, dose, under(dose=dose) if dose else None) for name, (doses, under) in plans.items() for dose in doses
    ]
    untouched = response.under(None)
    values = {
        (name, dose): untouched if intervention is None else response.under(intervention)
        for name, dose, intervention in track(cells, "doses")
    }
    curves = {
        name: {measure: np.stack([values[name, dose][measure] for dose in doses]) for measure in MEASURES}
        for name, (doses, _) in plans.items()
    }
    rows = [
        {"intervention": name, "coefficient": dose, "measure": measure, **vars(_estimate(measure, curve[row]))}
        for name, (doses, _) in plans.items()
        for measure, curve in curves[name].items()
        for row, dose in enumerate(doses)
    ]
    random = np.random.default_rng(control_seed)
    area = [
        row
        for name in INTERVENTIONS
        for row in _areas(name, grid, curves[name], coarse, curves[f"{name}_random"], random)
    ]
    return Doses(pd.DataFrame(rows), pd.DataFrame(area), response.observations(values))


class _Response:
    """Prompts and answers, ready to be run under one intervention after another."""

    def __init__(
        self, model, harmful: Texts, harmless: Texts, metric: RefusalMetric, answers: Sequence[Sequence[int]] | None
    ) -> None:
        harmless_ids = prompts.prompt_ids(model.tokenizer, harmless)
        if answers is None:
            answers = _own_answers(model, harmless_ids)
        if len(answers) != len(harmless_ids):
            raise MechrefusalError(
                f"{len(harmless_ids)} harmless prompts came with {len(answers)} answers; give the token ids of one a "
                "prompt"
            )
        self._scorer = Scorer(model, Lists(harmful, harmless), metric)
        self._sizes = {"harmful": len(harmful), "harmless": len(harmless)}
        self._answered = [place for place, answer in enumerate(answers) if len(answer)]
        both = [[each[place] for place in self._answered] for each in (harmless_ids, answers)]
        self._answers = AnswerPasses(model, *both) if self._answered else None

    @torch.no_grad()
    def under(self, intervention: Intervention | None) -> dict[str, np.ndarray]:
        """Every measure, prompt by prompt."""
        scores = self._scorer.base if intervention is None else self._scorer.under(intervention)
        harmless = as_array(scores.harmless)
        return {
            "refusal_harmful": as_array(scores.harmful),
            "refusal_harmless": harmless,
            "refused_harmless": np.where(np.isfinite(harmless), harmless > 0, np.nan),
            "loss_harmless": as_array(self._answers.losses(intervention)) if self._answers else np.empty(0),
            "kl_harmless": as_array(scores.kl),
        }

    def observations(self, values: Mapping[tuple[str, float], Mapping[str, np.ndarray]]) -> Observations:
        """What `under` gave, by intervention and coefficient."""
        cells = {}
        for key, measures in values.items():
            losses = np.full(self._sizes["harmless"], np.nan)
            losses[self._answered] = measures["loss_harmless"]
            for measure, by_prompt in {**measures, "loss_harmless": losses}.items():
                cells[(*key, measure)] = measure.rsplit("_", 1)[1], by_prompt
        return Observations.of_sides(self._sizes, cells, ("intervention", "coefficient", "measure"))


def _own_answers(model, prompt_ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """Greedy answers of a hooked transformer, as token ids."""
    batch = TokenBatch.of(prompt_ids, pad=model.tokenizer.pad_token_id, device=str(model.cfg.device))
    end = end_tokens(model, model.tokenizer)
    return [
        answer
        for part in batch.chunks(CHUNK)
        for answer in generate(model, part, max_new_tokens=ANSWER_TOKENS, end=end)
    ]


def _estimate(measure: str, values: Float[np.ndarray, " prompt"], confidence: float = 0.95) -> intervals.Estimate:
    if measure == "refused_harmless" and np.isfinite(values).all():
        return intervals.rate(int(values.sum()), len(values), confidence=confidence)
    mean = intervals.skewed_mean if measure == "kl_harmless" else intervals.mean
    return mean(values, confidence=confidence)


def _areas(
    name: str,
    doses: Sequence[float],
    curves: dict[str, Curve],
    coarse: Sequence[float],
    control: dict[str, Curve],
    random: np.random.Generator,
) -> Iterator[dict]:
    """Utility coupling of one intervention, with its interval over prompts."""
    moved, cost = curves["refusal_harmful"], curves["loss_harmless"]
    sizes = (moved.shape[1], cost.shape[1])
    reason = "" if sizes[1] else "the model answers every harmless prompt with nothing, so its answers have no loss"
    if not reason and not (np.isfinite(moved).all() and np.isfinite(cost).all()):
        reason = "a refusal score or a loss is not finite"
    value = by_chance = draws = None
    if not reason:
        value = _coupling(doses, moved, cost, *(np.full((1, n), 1 / n) for n in sizes))
        draws = _coupling(doses, moved, cost, *(resampling.resampled(n, random) for n in sizes))
        by_chance = _coupling(
            coarse, control["refusal_harmful"], control["loss_harmless"], *(np.full((1, n), 1 / n) for n in sizes)
        )
    for measure in ("area_between", "cost_per_refusal"):
        row = {"intervention": name, "measure": measure, "value": NAN, "low": NAN, "high": NAN, "random": NAN}
        why = reason
        if value is not None and draws is not None and by_chance is not None:
            bounds = (0.0, np.inf) if measure == "cost_per_refusal" else (-np.inf, np.inf)
            estimate = resampling.estimate(float(value[measure][0]), draws[measure], min(sizes), bounds=bounds)
            row |= {**estimate.columns("value", ""), "random": float(by_chance[measure][0])}
            why = "" if np.isfinite(estimate.value) else "the intervention does not move the refusal score"
        yield row | {"n": sum(sizes), "reason": why}


def _coupling(
    doses: Sequence[float],
    moved: Curve,
    cost: Curve,
    harmful: resampling.Draws,
    harmless: resampling.Draws,
) -> dict[str, Float[np.ndarray, " draw"]]:
    """Both measures under weights of the prompts."""
    zero = list(doses).index(0.0)
    gained = np.trapezoid(np.abs(harmful @ (moved - moved[zero]).T), doses)
    lost = np.trapezoid(np.abs(harmless @ (cost - cost[zero]).T), doses)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(gained > 0, lost / gained, np.nan)
    return {"area_between": gained - lost, "cost_per_refusal": ratio}
