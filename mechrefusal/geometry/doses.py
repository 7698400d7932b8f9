"""Dose and response: what ablating or adding a direction by degrees does to refusal, and what to harmless answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from mechrefusal.geometry.directions import Texts
from mechrefusal.geometry.scoring import Lists, Scorer
from mechrefusal.models import TokenBatch, require_direction, require_layers
from mechrefusal.progress import track
from mechrefusal.statistics import intervals

COEFFICIENTS = tuple(float(c) for c in np.arange(-2, 2.5, 0.5))
ANSWER_TOKENS = 16
CHUNK = 64
"""Prompts answered at once."""
MEASURES = ("refusal_harmful", "refusal_harmless", "refused_harmless", "loss_harmless", "kl_harmless")
INTERVENTIONS = ("ablate", "induce")

Curve = Float[np.ndarray, "coefficient prompt"]
NAN = float("nan")


@dataclass(frozen=True)
class Doses:
    """`table`: one row an intervention, coefficient and measure. `area`: one row an intervention and pair of curves."""

    table: pd.DataFrame
    area: pd.DataFrame


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
    plans: dict[str, list[Intervention | None]] = {
        "ablate": [taken_out(r, dose=c) if c else None for c in grid],
        "induce": [put_in(r, dose=c) if c else None for c in grid],
        "ablate_random": [taken_out(control, dose=c) if c else None for c in coarse],
        "induce_random": [put_in(control, dose=c) if c else None for c in coarse],
    }
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    work = [(name, intervention) for name, plan in plans.items() for intervention in plan]
    for name, intervention in track(work, "doses"):
        found.setdefault(name, []).append(response.under(intervention))
    doses = {name: grid if name in INTERVENTIONS else coarse for name in plans}
    curves = {
        name: {measure: np.stack([each[measure] for each in rows]) for measure in MEASURES}
        for name, rows in found.items()
    }
    table = pd.DataFrame([row for name in plans for row in _rows(name, doses[name], curves[name])])
    random = np.random.default_rng(control_seed)
    area = [
        row
        for name in INTERVENTIONS
        for row in _areas(name, grid, curves[name], coarse, curves[f"{name}_random"], random)
    ]
    return Doses(table, pd.DataFrame(area))


class _Response:
    """Prompts and answers, ready to be run under one intervention after another."""

    def __init__(
        self, model, harmful: Texts, harmless: Texts, metric: RefusalMetric, answers: Sequence[Sequence[int]] | None
    ) -> None:
        calm = prompts.prompt_ids(model.tokenizer, harmless)
        if answers is None:
            answers = _own_answers(model, calm)
        if len(answers) != len(calm):
            raise MechrefusalError(
                f"{len(calm)} harmless prompts came with {len(answers)} answers; give the token ids of one a prompt"
            )
        self._scorer = Scorer(model, Lists(harmful, harmless), metric)
        kept = [place for place, answer in enumerate(answers) if len(answer)]
        self._answers = AnswerPasses(model, [calm[k] for k in kept], [answers[k] for k in kept]) if kept else None
        self._untouched: dict[str, np.ndarray] | None = None

    def under(self, intervention: Intervention | None) -> dict[str, np.ndarray]:
        """Every measure, prompt by prompt."""
        if self._untouched is None:
            self._untouched = self._measured(None)
        return self._untouched if intervention is None else self._measured(intervention)

    @torch.no_grad()
    def _measured(self, intervention: Intervention | None) -> dict[str, np.ndarray]:
        found = self._scorer.base if intervention is None else self._scorer.under(intervention)
        calm = found.harmless.double().cpu().numpy()
        losses = self._answers.losses(intervention).double().cpu().numpy() if self._answers else np.empty(0)
        return {
            "refusal_harmful": found.harmful.double().cpu().numpy(),
            "refusal_harmless": calm,
            "refused_harmless": np.where(np.isfinite(calm), calm > 0, np.nan),
            "loss_harmless": losses,
            "kl_harmless": found.kl.double().cpu().numpy(),
        }


def _own_answers(model, prompt_ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """Greedy answers of a hooked transformer, as token ids."""
    batch = TokenBatch.of(prompt_ids, pad=model.tokenizer.pad_token_id, device=str(model.cfg.device))
    end = end_tokens(model, model.tokenizer)
    return [
        answer
        for part in batch.chunks(CHUNK)
        for answer in generate(model, part, max_new_tokens=ANSWER_TOKENS, end=end)
    ]


def _rows(name: str, doses: Sequence[float], curves: dict[str, Curve]) -> Iterator[dict]:
    for measure in MEASURES:
        for dose, values in zip(doses, curves[measure], strict=True):
            if measure == "refused_harmless" and np.isfinite(values).all():
                found = intervals.rate(int(values.sum()), len(values))
            else:
                found = intervals.skewed_mean(values) if measure == "kl_harmless" else intervals.mean(values)
            yield {
                "intervention": name,
                "coefficient": dose,
                "measure": measure,
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "n": found.n,
            }


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
            found = resampling.estimate(float(value[measure][0]), draws[measure], min(sizes), bounds=bounds)
            row |= {"value": found.value, "low": found.low, "high": found.high}
            row["random"] = float(by_chance[measure][0])
            why = "" if np.isfinite(found.value) else "the intervention does not move the refusal score"
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
