"""Over-refusal: do refusals of safe prompts lie along the refusal direction?"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry import resampling
from mechrefusal.geometry.activations import collect
from mechrefusal.geometry.directions import Texts
from mechrefusal.geometry.probes import as_flags
from mechrefusal.models import require_direction

NAN = float("nan")
N_RANDOM = 500
MEASURES = ("projection_difference", "projection_share", "cosine", "auc", "variance_share")

Activations = Float[np.ndarray, "prompt d_model"] | Float[Tensor, "prompt d_model"]


def over_refusal_overlap(
    model,
    texts: Texts,
    refused: Sequence[bool],
    direction: Float[Tensor, " d_model"],
    *,
    position: int,
    layer: int,
    harmful: Texts | None = None,
    harmless: Texts | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How the safe prompts that a model refuses differ from those it answers, seen along its refusal direction.

    Args:
        model: a hooked transformer.
        texts: safe prompts that sound unsafe (XSTest, 2308.01263, or `prompts.builtin().overrefusal`).
        refused: whether the model refused each of them.
        direction: a refusal direction of this model.
        position, layer: where it was read, and where the prompts are.
        harmful, harmless: prompts for the measures that need them (see `overlap`).

    Returns:
        One row a measure: measure, position, layer, and the columns of `overlap`.

    Raises:
        MechrefusalError: flags that are not one a prompt; no prompts; a direction that is zero, not finite or of
            another width; a place that is not in the model or not in every prompt.
    """
    require_direction(model, direction.detach())
    flags = as_flags(refused, len(texts), "safe")
    if not len(texts):
        raise MechrefusalError("over-refusal is read on safe prompts, and there are none; give some texts")
    here = {
        name: _read(model, chosen, position, layer)
        for name, chosen in (("safe", texts), ("harmful", harmful), ("harmless", harmless))
        if chosen is not None and len(chosen)
    }
    table = overlap(
        here["safe"][flags],
        here["safe"][~flags],
        direction,
        harmful=here.get("harmful"),
        harmless=here.get("harmless"),
        seed=seed,
    )
    table.insert(1, "position", position)
    table.insert(2, "layer", layer)
    return table


def overlap(
    refused: Activations,
    answered: Activations,
    direction: Float[np.ndarray, " d_model"] | Float[Tensor, " d_model"],
    *,
    harmful: Activations | None = None,
    harmless: Activations | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """The same from activations at one place, without a model.

    projection_difference: mean projection on the unit direction, refused minus answered, in the units of the residual
    stream. projection_share: that as a share of the same difference between harmful and harmless prompts. cosine:
    between the difference in means, refused minus answered, and the direction. auc: how well the projection tells
    refused from answered. variance_share: the share of the harmless prompts' variance that lies along the direction.

    Returns:
        One row a measure: measure, value, low and high (95% interval, bootstrap over prompts), floor_low and floor_high
        (the middle 95% under shuffled labels: refused against answered; for variance_share harmful against harmless,
        whose difference in means is then the direction), random, n, reason. `random` is what 95% of random directions
        stay below: in absolute value, and for auc on either side of 1/2. For variance_share it is their mean; for
        projection_share they still count in units of the direction's own harmful minus harmless difference.
    """
    unit = torch.as_tensor(direction).detach().double().cpu().numpy()
    first, second, harm, calm = (
        np.empty((0, len(unit))) if found is None else np.asarray(found, dtype=float)
        for found in (refused, answered, harmful, harmless)
    )
    if not np.isfinite(unit).all() or not unit.any():
        raise MechrefusalError("direction is zero or not finite; it points nowhere and cannot be used")
    if wrong := [found.shape for found in (first, second, harm, calm) if found.shape != (len(found), len(unit))]:
        raise MechrefusalError(
            f"activations have shape {wrong[0]}, the direction has width {len(unit)}; give (prompt, {len(unit)})"
        )
    unit = unit / np.linalg.norm(unit)
    random = np.random.default_rng(seed)
    others = resampling.random_units(N_RANDOM, len(unit), random)
    rows = [
        *_differences(first, second, harm, calm, unit, others, random),
        _variance_share(calm, harm, unit, others, random),
    ]
    return pd.DataFrame(rows)


def _differences(
    first: np.ndarray,
    second: np.ndarray,
    harm: np.ndarray,
    calm: np.ndarray,
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
        found = resampling.estimate(value, of(draws), min(sizes), bounds=bounds)
        return resampling.row(measure, found, resampling.band(of(shuffled)), by_chance, n=len(x))

    difference = row("projection_difference", lambda w: w @ along, _largest(now @ elsewhere), (-np.inf, np.inf))
    share = _share(difference, draws, along, harm, calm, unit, random, min(sizes), len(x))
    by_chance = 0.5 + _largest(resampling.plain_auc(elsewhere[: sizes[0]], elsewhere[sizes[0] :]) - 0.5)
    angle = (
        row("cosine", lambda w: (w @ along) / resampling.lengths(w, gram), _largest(now @ elsewhere) / length, (-1, 1))
        if length > 0
        else resampling.missing("cosine", len(x), "refused and answered prompts have the same mean")
    )
    return [difference, share, angle, row("auc", lambda w: resampling.auc(along, w), by_chance, (0, 1))]


def _share(
    difference: dict,
    draws: np.ndarray,
    along: np.ndarray,
    harm: np.ndarray,
    calm: np.ndarray,
    unit: np.ndarray,
    random: np.random.Generator,
    fewest: int,
    n: int,
) -> dict:
    """`difference` in units of the harmful minus harmless one."""
    reason = resampling.too_few(len(harm), len(calm), ("harmful", "harmless"))
    reason = reason or resampling.unusable(np.concatenate([harm, calm]))
    if reason:
        return resampling.missing("projection_share", n, reason)
    both = np.concatenate([harm, calm]) @ unit
    whole = float(harm.mean(axis=0) @ unit - calm.mean(axis=0) @ unit)
    if whole == 0:
        return resampling.missing("projection_share", n, "harmful and harmless prompts project alike")
    wholes = resampling.bootstrapped(len(harm), len(calm), random) @ both
    found = resampling.estimate(
        difference["value"] / whole, (draws @ along) / wholes, min(fewest, len(harm), len(calm))
    )
    floor = sorted(difference[end] / whole for end in ("floor_low", "floor_high"))
    return resampling.row("projection_share", found, (floor[0], floor[1]), difference["random"] / abs(whole), n=n)


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
        found = (weights * projected**2).sum(axis=-1) - (weights * projected).sum(axis=-1) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(total > 0, found / total, np.nan)

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


def _largest(values: np.ndarray) -> float:
    """What 95% of random directions stay below, in absolute value."""
    return float(np.quantile(np.abs(values), 0.95))


def _read(model, texts: Texts, position: int, layer: int) -> np.ndarray:
    ids = prompts.prompt_ids(model.tokenizer, texts)
    return collect(model, ids, [(position, layer)])[:, 0].numpy()
