"""Harmfulness and refusal: how their directions point, and what each does to the other (Zhao et al., 2507.11878)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.causal import Intervention, Passes, put_in, random_like, taken_out
from mechrefusal.causal.reference import HARMLESS, ZERO
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Direction, TokenMeans
from mechrefusal.geometry import folds, resampling
from mechrefusal.geometry.activations import Place, collect
from mechrefusal.geometry.contrast import Contrast
from mechrefusal.geometry.contrast_activations import ContrastActivations
from mechrefusal.models import is_direction, require_layers
from mechrefusal.statistics import Estimate, intervals

NO_LAYER = -1
N_HALVES = 200
NAMES = ("harmfulness", "refusal")
Prompts = Sequence[Sequence[int]]
BEHAVIOUR = (
    "ablate_harmfulness_on_refusal",
    "ablate_refusal_on_refusal",
    "add_harmfulness_on_refusal",
    "add_refusal_on_refusal",
    "ablate_harmfulness_on_harmfulness",
    "ablate_refusal_on_harmfulness",
)


def harmfulness_refusal_coupling(
    model,
    contrast: Contrast,
    validation: Contrast,
    metric: RefusalMetric,
    *,
    layer: int,
    position: int = -1,
    n_prompts: int = 32,
    activations: ContrastActivations | None = None,
    means: TokenMeans | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How the harmfulness direction and the refusal direction hang together, at every layer and in what they do.

    Both are differences in means, harmful minus harmless: the harmfulness direction at the last instruction token, the
    refusal direction at `position` after the instruction (2507.11878, section 3; follow-up 2606.16349).

    At every layer: `cosine` of the two, and `harmfulness_split_half` and `refusal_split_half`, the noise of each: its
    cosine with itself from the other half of the prompts, mean over random halves, `low` and `high` spanning the middle
    95% of them. Noise in the directions pulls the cosine from its own value towards the middle of the floor, in every
    bootstrap as well, so that its interval holds the spread but not this pull.

    In behaviour (layer −1), with the directions of `layer`:
    `ablate_…_on_refusal`: change of the mean refusal score on harmful prompts, nats, under ablation: to the harmless
    mean of `means` from their layer on, or to zero everywhere.
    `add_…_on_refusal`: the same on harmless prompts set to the harmful mean; without means, with +1 · direction
    added at `layer`.
    `ablate_…_on_harmfulness`: change of how far harmful and harmless prompts lie apart along the harmfulness direction
    of a later layer (halfway to the last one), at the last instruction token, in pooled standard deviations. These
    units do not saturate as an AUC does, and do not shrink because the ablated direction has a part along the read one.
    The effect of each direction on its own read-out stands beside that on the other's, to compare with.

    Args:
        model: a hooked transformer.
        contrast: prompts that the directions are taken from.
        validation: other prompts, on which the effects are taken.
        layer: layer of the directions that are ablated and added.
        n_prompts: harmful and harmless validation prompts used at most.
        activations: activations of `contrast` at the same `position`, where they were taken already.
        means: as `Directions.means` gives them; None: zero, and addition.

    Returns:
        One row a measure and layer, in the columns of the table `coupling`. `low`, `high`: 95% interval over
        prompts. `floor_low`, `floor_high`: the middle 95% under shuffled labels: harmful against harmless for the
        cosines, with against without intervention (prompt by prompt) for the effects. `random`: what 95% of
        random directions stay below in absolute value, for the cosines; the effect of one random direction of the
        same norm, for the effects.

    Raises:
        MechrefusalError: no harmful or no harmless prompts in `contrast`; a layer or position that is not there.
    """
    require_layers(model, [layer])
    if activations is None:
        activations = ContrastActivations.of(model, contrast, position=position)
    random = np.random.default_rng(seed)
    weights = _Weights.of(activations, random)
    rows = [row for each in range(activations.harmful.shape[2]) for row in _at_layer(activations, each, weights)]
    reference = ZERO if means is None else HARMLESS
    vectors = activations.directions(layer)
    directions = [Direction(vector, position, layer, means=means, reference=reference) for vector in vectors]
    later = (layer + model.cfg.n_layers) // 2
    if unusable := [name for name, vector in zip(NAMES, vectors, strict=True) if not is_direction(vector)]:
        why = f"the {' and '.join(unusable)} direction of layer {layer} is zero or not finite"
        rows += [resampling.missing(measure, 0, why) | {"layer": NO_LAYER} for measure in BEHAVIOUR]
        return pd.DataFrame(rows)
    harmful, harmless = (
        prompts.prompt_ids(model.tokenizer, list(texts)[:n_prompts])
        for texts in (validation.harmful, validation.harmless)
    )
    controls = [random_like(direction, seed=seed) for direction in directions]
    ablated = [taken_out(direction) for direction in (*directions, controls[0])]
    added = [put_in(direction) for direction in (*directions, *controls)]
    read_at, read = (activations.positions[0], later), activations.directions(later)[0]
    without, on_harmless = (
        _changes(model, ids, metric, under) for ids, under in ((harmful, ablated), (harmless, added))
    )
    effects = [
        *(
            _effect(f"ablate_{name}_on_refusal", without, index, 2, "harmful", random)
            for index, name in enumerate(NAMES)
        ),
        *(
            _effect(f"add_{name}_on_refusal", on_harmless, index, 2 + index, "harmless", random)
            for index, name in enumerate(NAMES)
        ),
        *_on_harmfulness(model, harmful, harmless, ablated, read_at, read, random),
    ]
    return pd.DataFrame(rows + [effect | {"layer": NO_LAYER} for effect in effects])


@dataclass(frozen=True)
class _Weights:
    """Contrasts of harmful and harmless prompts, the same at every layer; `*halves`: of two halves of the prompts."""

    sizes: tuple[int, int]
    observed: resampling.Draws
    draws: resampling.Draws
    shuffled: resampling.Draws
    halves: tuple[resampling.Draws, resampling.Draws]
    shuffled_halves: tuple[resampling.Draws, resampling.Draws]

    @classmethod
    def of(cls, activations: ContrastActivations, random: np.random.Generator) -> "_Weights":
        sizes = (len(activations.harmful), len(activations.harmless))
        twins = None if activations.twins is None else resampling.blocks_of(activations.twins)
        blocks = np.arange(sum(sizes)) if twins is None else twins
        observed, shuffled = resampling.observed(*sizes), resampling.shuffled(*sizes, random)
        return cls(
            sizes=sizes,
            observed=observed,
            draws=resampling.bootstrapped(*sizes, random, blocks=twins),
            shuffled=shuffled,
            halves=_halves(observed.repeat(N_HALVES, axis=0) > 0, blocks, random),
            shuffled_halves=_halves(shuffled[:N_HALVES] > 0, blocks, random),
        )


def _halves(
    is_first: Bool[np.ndarray, "draw prompt"], blocks: resampling.Blocks, random: np.random.Generator
) -> tuple[resampling.Draws, resampling.Draws]:
    """Contrasts of a random half of the prompts, and of the rest; NaN where a half has none of a group."""
    second = np.stack([resampling.dealt(row, blocks, 2, random) for row in is_first]).astype(bool)
    first, rest = (resampling.contrast(half & is_first, half & ~is_first) for half in (~second, second))
    return first, rest


def _at_layer(activations: ContrastActivations, layer: int, weights: _Weights) -> list[dict]:
    x = torch.cat([activations.harmful[:, :, layer], activations.harmless[:, :, layer]]).double().numpy()
    few = resampling.too_few(*weights.sizes, ("harmful", "harmless"))
    reasons = [few, few]
    for place, where in enumerate(("at the last instruction token", "after the instruction")):
        if not few and (why := resampling.unusable(x[:, place])):
            reasons[place] = f"{where} {why}"
    rows = []
    for measure, (a, b) in (("cosine", (0, 1)), ("harmfulness_split_half", (0, 0)), ("refusal_split_half", (1, 1))):
        why = reasons[a] or reasons[b]
        row = resampling.missing(measure, len(x), why) if why else _cosines(measure, x[:, a], x[:, b], weights)
        rows.append(row | {"layer": layer})
    return rows


def _cosines(measure: str, a: np.ndarray, b: np.ndarray, weights: _Weights) -> dict:
    """The row of a cosine between contrasts of `a` and of `b`, the same prompts at two places (or at one)."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    grams = a @ a.T, a @ b.T, b @ b.T

    def cosine(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return ((u @ grams[1]) * v).sum(axis=1) / (resampling.lengths(u, grams[0]) * resampling.lengths(v, grams[2]))

    value = float(cosine(weights.observed, weights.observed)[0])
    if not np.isfinite(value):
        return resampling.missing(measure, len(a), "harmful and harmless prompts have the same mean")
    if measure == "cosine":
        draws = cosine(weights.draws, weights.draws)
        estimate = resampling.estimate(value, draws, min(weights.sizes), bounds=(-1, 1))
        floor = resampling.band(cosine(weights.shuffled, weights.shuffled))
    else:
        halves = cosine(*weights.halves)
        estimate = Estimate(float(halves[np.isfinite(halves)].mean()), *resampling.band(halves), len(a))
        floor = resampling.band(cosine(*weights.shuffled_halves))
    return resampling.row(measure, estimate, floor, folds.random_floor("cosine", a.shape[1]), n=len(a))


def _changes(
    model, ids: Prompts, metric: RefusalMetric, under: Sequence[Intervention]
) -> Float[np.ndarray, "intervention prompt"]:
    """What each intervention changes the refusal score of each prompt by, nats."""
    if len(ids) < resampling.FEWEST:
        return np.empty((len(under), len(ids)))
    passes = Passes(model, ids, metric.runs)
    scores = [metric.of_runs(passes.logits(intervention)).double().cpu().numpy() for intervention in (None, *under)]
    return np.stack(scores[1:]) - scores[0]


def _effect(
    measure: str, changes: np.ndarray, index: int, control: int, name: str, random: np.random.Generator
) -> dict:
    n = changes.shape[1]
    if n < resampling.FEWEST:
        return resampling.missing(measure, n, f"{n} {name} validation prompts; {resampling.FEWEST} are needed")
    if not np.isfinite(changes[[index, control]]).all():
        return resampling.missing(measure, n, "a refusal score is not finite")
    # With and without, dealt at random prompt by prompt.
    signs = random.choice([-1.0, 1.0], size=(resampling.DRAWS, n))
    floor = resampling.band(signs @ changes[index] / n)
    return resampling.row(measure, intervals.mean(changes[index]), floor, float(changes[control].mean()), n=n)


def _on_harmfulness(
    model,
    harmful: Prompts,
    harmless: Prompts,
    ablated: Sequence[Intervention],
    place: Place,
    read: Float[Tensor, " d_model"],
    random: np.random.Generator,
) -> list[dict]:
    """Effects of ablation on how far harmful and harmless prompts lie apart along `read` at `place`."""
    measures = [f"ablate_{name}_on_harmfulness" for name in NAMES]
    sizes = (len(harmful), len(harmless))
    why = resampling.too_few(*sizes, ("harmful validation", "harmless validation"))
    if not why and not (read.isfinite().all() and read.any()):
        why = f"the harmfulness direction of layer {place[1]}, where it is read, is zero or not finite"
    if why:
        return [resampling.missing(measure, sum(sizes), why) for measure in measures]
    unit = (read / read.norm()).double()
    base, *others, control = (
        (collect(model, [*harmful, *harmless], [place], under=intervention)[:, 0].double() @ unit).numpy()
        for intervention in (None, *ablated)
    )
    return [
        _apart(measure, base, other, control, sizes, random) for measure, other in zip(measures, others, strict=True)
    ]


def _apart(
    measure: str,
    base: np.ndarray,
    other: np.ndarray,
    control: np.ndarray,
    sizes: tuple[int, int],
    random: np.random.Generator,
) -> dict:
    n, now = sum(sizes), resampling.observed(*sizes)
    spreads = [float(_spread(each, now)[0]) for each in (base, other, control)]
    if not np.isfinite([*base, *other, *control]).all():
        return resampling.missing(measure, n, "activations are not finite")
    if not min(spreads) > 1e-4 * max(spreads):
        return resampling.missing(measure, n, "prompts do not differ along the harmfulness direction where it is read")
    # Neither shift nor scale is an effect: without them, with and without can be swapped prompt by prompt.
    base, other, control = (
        (each - each.mean()) / spread for each, spread in zip((base, other, control), spreads, strict=True)
    )

    def change(with_: np.ndarray, without: np.ndarray, contrasts: np.ndarray) -> np.ndarray:
        return _separation(with_, contrasts) - _separation(without, contrasts)

    draws = change(other, base, resampling.bootstrapped(*sizes, random))
    estimate = resampling.estimate(float(change(other, base, now)[0]), draws, min(sizes))
    swapped = random.random((resampling.DRAWS, n)) < 0.5
    floor = resampling.band(change(np.where(swapped, base, other), np.where(swapped, other, base), now))
    return resampling.row(measure, estimate, floor, float(change(control, base, now)[0]), n=n)


def _separation(values: Float[np.ndarray, "*draw prompt"], contrasts: resampling.Draws) -> Float[np.ndarray, " draw"]:
    """Difference of the groups' means in pooled standard deviations (d′); NaN where nobody differs."""
    spread = _spread(values, contrasts)
    return (contrasts * values).sum(axis=-1) / np.where(spread > 0, spread, np.nan)


def _spread(values: Float[np.ndarray, "*draw prompt"], contrasts: resampling.Draws) -> Float[np.ndarray, " draw"]:
    """Root of the mean of the two groups' variances."""
    variances = []
    for weights in (np.maximum(contrasts, 0), np.maximum(-contrasts, 0)):
        mean = (weights * values).sum(axis=-1)
        variances.append((weights * (values - mean[:, None]) ** 2).sum(axis=-1))
    return np.sqrt((variances[0] + variances[1]) / 2)
