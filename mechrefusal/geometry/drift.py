"""How refusal's place moves between checkpoints: cosines, principal angles, effective rank; and what of it is noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.linalg import subspace_angles

from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry import folds
from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.directions import Directions
from mechrefusal.geometry.folds import Measure
from mechrefusal.statistics import Estimate, intervals
from mechrefusal.statistics.depth import Verdict

Weight = Literal["sigma", "sigma_squared"]
Scaling = Literal["raw", "unit"]

TURNED = 0.9
"""Ours: the noise-corrected cosine below which a turn is called a move (0.9 is an angle of 26 degrees)."""

NO_DIRECTION = 1e-6
"""A direction shorter than this share of the mean activations that it is the difference of is rounding error."""

_BOUNDS: dict[str, tuple[float, float]] = {
    "cosine": (-1, 1),
    "principal_angle_mean": (0, 90),
    "principal_angle_max": (0, 90),
}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two directions, each (d_model,); NaN if one is zero."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths > 0 else float("nan")


def principal_angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Principal angles in degrees, ascending, between the spans of the rows of a (m, d_model) and b (n, d_model).

    There are min(rank a, rank b) of them (scipy.linalg.subspace_angles; Knyazev and Argentati, 2002). Rows are
    scaled to length one first, which leaves the spans as they are and conditions them better; zero rows are left out.
    """
    spans = [_unit_rows(np.asarray(rows, float)) for rows in (a, b)]
    if min(map(len, spans)) == 0:
        return np.empty(0)
    return np.degrees(np.sort(subspace_angles(spans[0].T, spans[1].T)))


def effective_rank(rows: np.ndarray, *, scaling: Scaling, weight: Weight) -> float:
    """exp(entropy) of the normalised singular values of `rows` (n, d_model) (Roy and Vetterli, 2007).

    Args:
        scaling: "raw" rows, or each scaled to length one ("unit").
        weight: normalise the singular values σ ("sigma"), or σ² ("sigma_squared").

    Returns:
        A number between 1 and n; NaN for no rows, or only zero rows.
    """
    if scaling not in get_args(Scaling) or weight not in get_args(Weight):
        raise MechrefusalError(
            f"effective rank has no variant scaling='{scaling}', weight='{weight}'; "
            f"scaling is one of {', '.join(get_args(Scaling))}, weight one of {', '.join(get_args(Weight))}"
        )
    rows = np.asarray(rows, float)
    if scaling == "unit":
        rows = _unit_rows(rows)
    if rows.size == 0 or not np.any(rows):
        return float("nan")
    return rank_of_values(np.linalg.svd(rows, compute_uv=False), weight)


def rank_of_values(values: np.ndarray, weight: Weight) -> float:
    """`effective_rank` of a matrix with these singular values; NaN where all are zero."""
    mass = values if weight == "sigma" else values**2
    if not mass.sum() > 0:
        return float("nan")
    share = mass / mass.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


@dataclass(frozen=True)
class Drift:
    """A measure between two checkpoints on all prompts, and its two floors.

    `value` has the 95% interval of a paired bootstrap over the folds of the prompts; its n is the number of filled
    folds of the smaller class. `floor` is the same measure between two random halves of the prompts within one
    checkpoint, the mean of both: halves are noisier than the whole, so it errs on the side of more noise (`turn` is the
    comparison that is matched). `random` is what random directions reach (`folds.random_floor`). `reason` says why
    something is NaN.
    """

    value: Estimate
    floor: float
    random: float
    reason: str


@dataclass(frozen=True)
class Turn:
    """How far two checkpoints lie apart beyond what the choice of prompts alone does; every number has its interval.

    `within`: the measure between two halves of the prompts at checkpoint a, and at b. `cross`: between a half at one
    and the other half at the other, so with the same noise as `within`. `expected`: what `cross` would be had
    nothing moved, √(within_a · within_b). `excess`: expected − cross, for angles cross − expected. `corrected`: cross /
    expected, Spearman's correction for attenuation: the cosine without the noise of the prompts. Angles enter as their
    cosines. All are means over random halves.
    """

    measure: Measure
    within: tuple[Estimate, Estimate]
    cross: Estimate
    expected: float
    excess: Estimate
    corrected: Estimate
    random: float
    reason: str


def compare(
    a: Directions, b: Directions, *, places: tuple[Sequence[Place], Sequence[Place]], measure: Measure, seed: int = 0
) -> Drift:
    """`measure` between the directions of a at places[0] and those of b at places[1].

    cosine: mean over pairs of places, so there must be equally many. Principal angles: between the two spans. Places
    without a direction (zero beside the activations it is a difference of, as at layer 0 of a template) are left out.

    The interval needs the same prompts at a and b; that their number by fold agrees is checked, the rest is up to you.
    """
    pointing, reason = _with_direction(a, b, places, measure)
    if not all(pointing):
        return Drift(intervals.mean([]), float("nan"), float("nan"), reason)
    values = [
        np.stack([each.values[each.row(position), layer].double().numpy() for position, layer in where])
        for each, where in zip((a, b), pointing, strict=True)
    ]
    if measure == "cosine":
        value = float(np.mean([cosine(x, y) for x, y in zip(*values, strict=True)]))
    else:
        value = float(folds.SUMMARY[measure](principal_angles(*values)))
    random = folds.random_floor(measure, values[0].shape[1], *map(len, pointing))
    n = min(_filled(a), _filled(b))
    if n < folds.FEWEST_FOLDS:
        return Drift(Estimate(value, float("nan"), float("nan"), n), float("nan"), random, _too_few(n))
    sides = _sides(a, b, pointing, measure)
    floors = [
        folds.between_halves(measure, x, x, seed=seed, paired=of.paired).mean()
        for of, x in zip((a, b), sides, strict=True)
    ]
    floor = float(np.mean(floors))
    if reason := _unpaired(a, b):
        return Drift(Estimate(value, float("nan"), float("nan"), n), floor, random, reason)
    weights = folds.bootstrap(sides[0][1], folds.n_draws(max(map(len, pointing))), seed=seed, paired=a.paired)
    mix = folds.coefficients(sides[0][1], weights)
    draws = folds.measured(measure, sides[0][0], sides[1][0], mix, mix)
    return Drift(folds.interval(value, draws, n, bounds=_BOUNDS[measure]), floor, random, "")


def turn(
    a: Directions, b: Directions, *, places: tuple[Sequence[Place], Sequence[Place]], measure: Measure, seed: int = 0
) -> Turn:
    """`measure` between halves of the prompts, across checkpoints against within; arguments as for `compare`.

    A cosine on all prompts cannot be held against a cosine between halves: prompts are fewer in a half, and they are
    the same at both checkpoints in the whole. `cross` and `within` are both between disjoint halves. Intervals:
    bootstrap over folds, with the same weights at both checkpoints and in both measures.
    """
    pointing, reason = _with_direction(a, b, places, measure)
    n = min(_filled(a), _filled(b))
    if all(pointing):
        reason = _too_few(n) if n < folds.FEWEST_FOLDS else _unpaired(a, b)
    if reason:
        nan = intervals.mean([])
        return Turn(measure, (nan, nan), nan, float("nan"), nan, nan, float("nan"), reason)
    first, second = _sides(a, b, pointing, measure)
    n_draws = folds.n_draws(max(map(len, pointing)))
    weights = folds.bootstrap(first[1], n_draws, seed=seed, paired=a.paired)
    # Draw 0 is the prompts as they are.
    weights = np.concatenate([(first[1] > 0)[:, None].astype(float), weights], axis=1)
    within_a, within_b, *cross = (
        folds.between_halves(measure, x, y, seed=seed, weights=weights, paired=a.paired)
        for x, y in ((first, first), (second, second), (first, second), (second, first))
    )
    across = np.mean(cross, axis=0)
    with np.errstate(invalid="ignore"):
        product = _as_cosine(measure, within_a) * _as_cosine(measure, within_b)
        both = (_as_cosine(measure, within_a) > 0) & (product > 0)
        expected_cosine = np.sqrt(np.where(both, product, np.nan))
    corrected = _as_cosine(measure, across) / expected_cosine
    if measure == "cosine":
        expected, excess = expected_cosine, expected_cosine - across
    else:
        expected = np.degrees(np.arccos(np.clip(expected_cosine, 0, 1)))
        excess = across - expected

    def estimate(draws: np.ndarray, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
        return folds.interval(float(draws[0]), draws[1:], n, bounds=bounds)

    bounds = _BOUNDS[measure]
    return Turn(
        measure=measure,
        within=(estimate(within_a, bounds), estimate(within_b, bounds)),
        cross=estimate(across, bounds),
        expected=float(expected[0]),
        excess=estimate(excess),
        corrected=estimate(corrected),
        random=folds.random_floor(measure, a.values.shape[-1], *map(len, pointing)),
        reason="",
    )


def verdict(turned: Turn) -> tuple[Verdict, str]:
    """Whether directions moved, and the reason for the verdict.

    First of all the direction must be there: at either checkpoint the interval of `within` lies clear of what random
    directions reach. Then moved: the interval of `excess` lies above 0 (the prompts' noise does not explain it) and
    `corrected` is below `TURNED` (it is no tiny turn). Not moved: the whole interval of `corrected` is at or above
    `TURNED`; it is scaled by `expected`, so noise alone never looks like rest. Otherwise cannot tell.
    """
    if turned.reason:
        return "cannot tell", turned.reason
    for name, within in zip(("first", "second"), turned.within, strict=True):
        clear = within.low > turned.random if turned.measure == "cosine" else within.high < turned.random
        if not clear:
            return "cannot tell", (
                f"halves of the prompts at the {name} checkpoint agree no better than random directions may: "
                f"{_shown(within)}, random {turned.random:.2f}"
            )
    numbers = (
        f"across {turned.cross.value:.2f} where {turned.expected:.2f} is expected of noise alone; excess "
        f"{_shown(turned.excess)}, noise-corrected cosine {_shown(turned.corrected)}"
    )
    if turned.excess.low > 0 and turned.corrected.value < TURNED:
        return "moved", numbers
    if turned.corrected.low >= TURNED:
        return "not moved", numbers
    return "cannot tell", numbers


def _with_direction(
    a: Directions, b: Directions, places: tuple[Sequence[Place], Sequence[Place]], measure: Measure
) -> tuple[tuple[list[Place], list[Place]], str]:
    """The places that have a direction, and a reason where none is left."""
    if measure == "cosine" and len(places[0]) != len(places[1]):
        raise MechrefusalError(
            f"a cosine is taken place by place, but there are {len(places[0])} and {len(places[1])} places; "
            "give as many for either checkpoint"
        )
    pointing = [[_has_direction(each, place) for place in where] for each, where in zip((a, b), places, strict=True)]
    if measure == "cosine":
        pointing = [[x and y for x, y in zip(*pointing, strict=True)]] * 2
    chosen = [[p for p, ok in zip(where, oks, strict=True) if ok] for where, oks in zip(places, pointing, strict=True)]
    reason = "" if all(chosen) else "no direction at one of the two (none was chosen, or the prompts are alike there)"
    return (chosen[0], chosen[1]), reason


def _has_direction(directions: Directions, place: Place) -> bool:
    position, layer = directions.row(place[0]), place[1]
    length = directions.values[position, layer].norm()
    means = directions.sums[:, :, position, layer].double().sum(1) / directions.counts.sum(1, keepdim=True)
    return bool(length.isfinite() and length > NO_DIRECTION * means.norm(dim=-1).sum())


def _filled(directions: Directions) -> int:
    return int((directions.counts > 0).sum(1).min())


def _too_few(n: int) -> str:
    return f"too few prompts for an interval: {n} filled folds of a class, {folds.FEWEST_FOLDS} are needed"


def _unpaired(a: Directions, b: Directions) -> str:
    same = a.paired == b.paired and a.counts.shape == b.counts.shape and bool((a.counts == b.counts).all())
    return "" if same else "no interval: the directions of the two come from different prompts"


def _sides(
    a: Directions, b: Directions, places: tuple[list[Place], list[Place]], measure: Measure
) -> tuple[folds.Side, folds.Side]:
    sums = folds.compressed(folds.fold_sums(a, places[0]), folds.fold_sums(b, places[1]), together=measure != "cosine")
    return (sums[0], a.counts.numpy()), (sums[1], b.counts.numpy())


def _as_cosine(measure: Measure, values: np.ndarray) -> np.ndarray:
    return values if measure == "cosine" else np.cos(np.radians(values))


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    nonzero = lengths[:, 0] > 0
    return rows[nonzero] / lengths[nonzero]
