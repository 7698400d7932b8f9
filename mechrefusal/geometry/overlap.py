"""Over-refusal: do refusals of safe prompts lie along the refusal direction?"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.direction import Carrier, Direction, direction_of, require_weights
from mechrefusal.geometry import cross_fitting, resampling
from mechrefusal.geometry.activations import collect
from mechrefusal.geometry.contrast import Lists, Texts, dealt, labels
from mechrefusal.geometry.cross_fitting import CrossFit
from mechrefusal.geometry.probes import as_flags
from mechrefusal.models import require_direction

NAN = float("nan")
N_RANDOM = 500
SAME = 0.995
"""Cosine between a direction and the difference in means of prompts from which on it was made from these."""
MEASURES = ("projection_difference", "projection_share", "cosine", "auc", "variance_share")

Activations = Float[np.ndarray, "prompt d_model"] | Float[Tensor, "prompt d_model"]


def over_refusal_overlap(
    model,
    direction: Direction | Carrier,
    texts: Texts,
    refused: Sequence[bool],
    *,
    harmful: Texts | None = None,
    harmless: Texts | None = None,
    others: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """How the safe prompts that a model refuses differ from those it answers, seen along its refusal direction.

    Args:
        model: a hooked transformer.
        direction: a refusal direction of this model; the prompts are read where it was.
        texts: safe prompts that sound unsafe (XSTest, 2308.01263, or `prompts.builtin().overrefusal`).
        refused: whether the model refused each of them.
        harmful, harmless: prompts for the measures that need them (see `overlap`). Twins (a column `twin` on both
            sides) are held out and drawn together.
        others: they are not the prompts that the direction was made from (see `overlap`).

    Returns:
        One row a measure: measure, position, layer, and the columns of `overlap`.

    Raises:
        MechrefusalError: flags that are not one a prompt; no prompts; a direction that is zero, not finite, or of other
            weights or another width; a place that is not known, not in the model or not in every prompt; prompts that
            neither made the direction nor are said to be others.
    """
    seen = direction_of(direction)
    require_weights(model, seen.weights, seen.name)
    require_direction(model, seen.vector.detach())
    if seen.position is None or seen.layer is None:
        raise MechrefusalError(f"nothing says where the {seen.name} was read: give a Direction with position and layer")
    flags = as_flags(refused, len(texts), "safe")
    if not len(texts):
        raise MechrefusalError("over-refusal is read on safe prompts, and there are none; give some texts")
    place = seen.position, seen.layer
    here = {
        name: collect(model, prompts.prompt_ids(model.tokenizer, chosen), [place])[:, 0].numpy()
        for name, chosen in (("safe", texts), ("harmful", harmful), ("harmless", harmless))
        if chosen is not None and len(chosen)
    }
    both = None if harmful is None or harmless is None else Lists(harmful, harmless)
    table = overlap(
        here["safe"][flags],
        here["safe"][~flags],
        seen.vector,
        harmful=here.get("harmful"),
        harmless=here.get("harmless"),
        twins=None if both is None or not dealt(both)[1] else labels(both),
        others=others,
        seed=seed,
    )
    table.insert(1, "position", seen.position)
    table.insert(2, "layer", seen.layer)
    return table


def overlap(
    refused: Activations,
    answered: Activations,
    direction: Float[np.ndarray, " d_model"] | Float[Tensor, " d_model"],
    *,
    harmful: Activations | None = None,
    harmless: Activations | None = None,
    twins: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    others: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """`over_refusal_overlap` from activations at one place, without a model.

    projection_difference: mean projection on the unit direction, refused minus answered, in the units of the residual
    stream. projection_share: that as a share of the same difference between harmful and harmless prompts. cosine:
    between the difference in means, refused minus answered, and the direction. auc: how well the projection tells
    refused from answered. variance_share: the share of the harmless prompts' variance that lies along the direction.

    The prompts that a direction was made from differ along it by their own noise too. So projection_share is
    cross-fitted: each fold of harmful and harmless prompts is projected on the direction of the other folds, and so are
    the safe prompts (`cross_fitting`). The other measures need no such care: safe prompts made no direction, and
    harmless prompts vary about their mean, which is all of them that is in it (independently, where they are normal).

    Args:
        twins: a label of every harmful and of every harmless prompt; prompts with the same are twins, which are held
            out and drawn together.
        others: `harmful` and `harmless` are other prompts than those that the direction was made from: they are
            projected on it as it is. Otherwise it must be the difference of their means.

    Returns:
        One row a measure: measure, value, low and high (95% interval, bootstrap over prompts; of a cross-fitted
        projection_share as `cross_fitting.ratio` takes it), floor_low and floor_high
        (the middle 95% under shuffled labels: refused against answered; for variance_share harmful against harmless,
        whose difference in means is then the direction), random, n, reason. `random` is what 95% of random directions
        stay below: in absolute value, and for auc on either side of 1/2. For variance_share it is their mean; for
        projection_share they still count in units of the direction's own harmful minus harmless difference.

    Raises:
        MechrefusalError: a direction that is zero, not finite or of another width; one that is not the difference in
            means of the harmful and harmless prompts, where these are not said to be others.
    """
    unit = torch.as_tensor(direction).detach().double().cpu().numpy()
    first, second, harm, calm = (
        np.empty((0, len(unit))) if activations is None else np.asarray(activations, dtype=float)
        for activations in (refused, answered, harmful, harmless)
    )
    if not np.isfinite(unit).all() or not unit.any():
        raise MechrefusalError("direction is zero or not finite; it points nowhere and cannot be used")
    if wrong := [
        activations.shape
        for activations in (first, second, harm, calm)
        if activations.shape != (len(activations), len(unit))
    ]:
        raise MechrefusalError(
            f"activations have shape {wrong[0]}, the direction has width {len(unit)}; give (prompt, {len(unit)})"
        )
    unit = unit / np.linalg.norm(unit)
    fit = None
    if not others and min(len(harm), len(calm)) >= resampling.FEWEST:
        _require_made_from(harm, calm, unit)
        fit = CrossFit.of(harm, calm, twins)
    random = np.random.default_rng(seed)
    by_chance = resampling.random_units(N_RANDOM, len(unit), random)
    rows = [
        *_differences(first, second, harm, calm, fit, unit, by_chance, random),
        _variance_share(calm, harm, unit, by_chance, random),
    ]
    return pd.DataFrame(rows)


def _differences(
    first: np.ndarray,
    second: np.ndarray,
    harm: np.ndarray,
    calm: np.ndarray,
    fit: CrossFit | None,
    unit: np.ndarray,
    others: np.ndarray,
    random: np.random.Generator,
) -> list[dict]:
    """The measures between refused (`first`) and answered safe prompts."""
    x, sizes = np.concatenate([first, second]), (len(first), len(second))
    reason = resampling.too_few(*sizes, ("refused safe", "answered safe")) or resampling.unusable(x)
    if reason:
        return [resampling.missing(measure, len(x), reason) for measure in MEASURES[:-1]]
    draws = resampling.bootstrapped(*sizes, random)
    shuffled = resampling.shuffled(*sizes, random)
    centred = x - x.mean(axis=0)
    gram, along, elsewhere = centred @ centred.T, centred @ unit, centred @ others.T
    now = resampling.observed(*sizes)
    length = float(resampling.lengths(now, gram)[0])

    def row(measure: str, of: Callable[[np.ndarray], np.ndarray], by_chance: float, bounds: tuple) -> dict:
        value = float(of(now)[0])
        estimate = resampling.estimate(value, of(draws), min(sizes), bounds=bounds)
        return resampling.row(measure, estimate, resampling.band(of(shuffled)), by_chance, n=len(x))

    difference = row("projection_difference", lambda w: w @ along, _largest(now @ elsewhere), (-np.inf, np.inf))
    share = _share(difference["random"], x, sizes, (draws, shuffled), (harm, calm), fit, unit, random)
    by_chance = 0.5 + _largest(resampling.auc_by_ranks(elsewhere[: sizes[0]], elsewhere[sizes[0] :]) - 0.5)
    angle = (
        row("cosine", lambda w: (w @ along) / resampling.lengths(w, gram), _largest(now @ elsewhere) / length, (-1, 1))
        if length > 0
        else resampling.missing("cosine", len(x), "refused and answered prompts have the same mean")
    )
    return [difference, share, angle, row("auc", lambda w: resampling.auc(along, w), by_chance, (0, 1))]


def _share(
    by_chance: float,
    safe: np.ndarray,
    sizes: tuple[int, int],
    contrasts: tuple[np.ndarray, np.ndarray],
    sides: tuple[np.ndarray, np.ndarray],
    fit: CrossFit | None,
    unit: np.ndarray,
    random: np.random.Generator,
) -> dict:
    """The difference between refused and answered `safe` prompts in units of that between harmful and harmless ones.

    Args:
        contrasts: contrasts of the safe prompts, bootstrapped and shuffled.
        fit: the prompts that made the direction, to be held out of it; None where they are others.
    """
    (harm, calm), now = sides, resampling.observed(*sizes)
    reason = resampling.too_few(len(harm), len(calm), ("harmful", "harmless"))
    reason = reason or resampling.unusable(np.concatenate([harm, calm]))
    if reason:
        return resampling.missing("projection_share", len(safe), reason)
    n, centred = (len(harm), len(calm)), safe - safe.mean(axis=0)
    if fit is None:
        both = np.concatenate([harm, calm]) @ unit
        whole, along = float((resampling.observed(*n) @ both)[0]), centred @ unit
    else:
        first, projected = fit.projected(resampling.observed(*n), centred)
        whole, along = float(first[0]), projected[0]
    if whole == 0:
        return resampling.missing("projection_share", len(safe), "harmful and harmless prompts project alike")
    difference = float((now @ along)[0])
    if fit is None:
        shares = (contrasts[0] @ along) / (resampling.bootstrapped(*n, random) @ both)
        estimate = resampling.estimate(difference / whole, shares, min(*sizes, *n))
    else:
        estimate = cross_fitting.ratio(fit, difference, whole, centred, sizes[0], along)
    floor = sorted(end / whole for end in resampling.band(contrasts[1] @ along))
    return resampling.row("projection_share", estimate, (floor[0], floor[1]), by_chance / abs(whole), n=len(safe))


def _variance_share(
    calm: np.ndarray, harm: np.ndarray, unit: np.ndarray, others: np.ndarray, random: np.random.Generator
) -> dict:
    """Share of the variance of the harmless prompts `calm` along the direction."""
    n = len(calm)
    reason = f"{n} harmless prompts; at least {resampling.FEWEST} are needed" if n < resampling.FEWEST else ""
    reason = reason or resampling.unusable(calm)
    if reason:
        return resampling.missing("variance_share", n, reason)
    centred = calm - calm.mean(axis=0)
    gram = centred @ centred.T

    def shares(projected: np.ndarray, weights: np.ndarray) -> np.ndarray:
        total = weights @ np.diag(gram) - np.einsum("dp,pq,dq->d", weights, gram, weights, optimize=True)
        along = (weights * projected**2).sum(axis=-1) - (weights * projected).sum(axis=-1) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(total > 0, along / total, np.nan)

    even = np.full((1, n), 1 / n)
    value = float(shares(centred @ unit, even)[0])
    draws = shares(centred @ unit, resampling.resampled(n, random))
    by_chance = float(shares((centred @ others.T).T, even.repeat(len(others), axis=0)).mean())
    floor = (NAN, NAN)
    if len(harm) >= resampling.FEWEST and np.isfinite(harm).all():
        both = np.concatenate([harm, calm])
        directions = resampling.shuffled(len(harm), n, random) @ (both - both.mean(axis=0))
        lengths = np.linalg.norm(directions, axis=1, keepdims=True)
        floor = resampling.band(shares(directions / lengths @ centred.T, even.repeat(len(directions), axis=0)))
    return resampling.row("variance_share", resampling.estimate(value, draws, n, bounds=(0, 1)), floor, by_chance, n=n)


def _require_made_from(harm: np.ndarray, calm: np.ndarray, unit: np.ndarray) -> None:
    """Raise `MechrefusalError` where the direction is not that of these prompts: it would not be held out of them."""
    difference = harm.mean(axis=0) - calm.mean(axis=0)
    cosine = difference @ unit / np.linalg.norm(difference) if difference.any() else 0.0
    if np.isfinite(difference).all() and cosine < SAME:
        raise MechrefusalError(
            f"the direction has cosine {cosine:.3f} with the difference in means of the harmful and harmless prompts: "
            "give the prompts that it was made from, which are then held out of it, or others and others=True"
        )


def _largest(values: np.ndarray) -> float:
    """What 95% of random directions stay below, in absolute value."""
    return float(np.quantile(np.abs(values), 0.95))
