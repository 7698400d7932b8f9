"""Carriers at a fraction of the passes: a rough score of every candidate, exact ones of those that could still win.

The screen runs a sample of the validation prompts, in bfloat16 where the machine multiplies it. What other prompts
would have scored is drawn from what the sample scored, thousands of times, and each time the carrier is chosen again:
candidates that are hardly ever chosen are not scored exactly. What bfloat16 shifts a mean by is estimated on the model
at hand, from a few candidates that are scored both ways.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import sqrt

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechrefusal.causal.reference import HARMLESS, require_reference
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import require_weights
from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.carrier_scores import CarrierScores, Rounding
from mechrefusal.geometry.carriers import select
from mechrefusal.geometry.contrast import Contrast, Lists
from mechrefusal.geometry.directions import Directions
from mechrefusal.geometry.scoring import Scorer, as_array, places_of, score, scores_of
from mechrefusal.progress import track
from mechrefusal.statistics.choosing import PUBLISHED, Admissible, lowest, ranked

FEWEST = 8
"""Prompts of each side in the sample at least."""
RACES, RARELY = 4000, 0.005
"""Races that are drawn, and the share of them below which a candidate's wins are too rare for an exact score."""

PILOTS = 3
"""Candidates that are scored exactly first, to learn which prompts' KL moves easily, and what rounding does."""

Scores = tuple[Float[ndarray, " harmful"], Float[ndarray, " harmless"], Float[ndarray, " harmless"]]
"""bypass, induce and kl of one candidate, prompt by prompt."""


def screened(
    model,
    directions: Directions,
    validation: Contrast,
    metric: RefusalMetric,
    admissible: Admissible = PUBLISHED,
    *,
    places: Sequence[Place] | None = None,
    share: float = 0.25,
    reference: str = HARMLESS,
    scorer: Scorer | None = None,
) -> CarrierScores:
    """Scores for `carriers.select` by the same rule, exact only where a candidate could win.

    The selection is drawn `RACES` times on resamples of the validation prompts, prompts outside the sample standing in
    for with prompts inside it. The candidate that wins most often is scored exactly (all prompts, float32), and so on
    until none that is not exact wins more than `RARELY`: such a candidate is not the carrier, nor that of more than a
    few of the bootstraps of `stability`. Where no candidate is admissible, the best candidate is exact too. All others
    keep estimates from the sample, with `exact` False.

    Where the sample runs in bfloat16, `PILOTS` candidates are scored on it both ways, which says what bfloat16 shifts
    means by at this model (`CarrierScores.rounding`); races allow for it with Student's t of as many degrees, which is
    how far another candidate's shift may then lie.

    Args:
        places: (position, layer), from `carriers.candidates`; by default all that `select` could admit.
        share: of the validation prompts that the screen runs, at least `FEWEST` of each side.
        reference: what a direction is ablated to, as in `score`.
        scorer: for the exact scores, where one of the same model, prompts and metric was made already.

    Raises:
        MechrefusalError: directions of other weights, no prompts, an unknown reference, or a share not in (0, 1].
    """
    if not 0 < share <= 1:
        raise MechrefusalError(f"share of a screen is {share:g}: give more than 0 and at most 1")
    require_weights(model, directions.weights, "directions")
    to = require_reference(reference)
    candidates = places_of(model, directions, places)
    sampled = [_sample(len(texts), share) for texts in (validation.harmful, validation.harmless)]
    texts = [list(validation.harmful), list(validation.harmless)]
    sample = Lists(*([each[place] for place in rows] for each, rows in zip(texts, sampled, strict=True)))
    rough = Scorer(model, sample, metric, low_precision=True)
    if [len(rows) for rows in sampled] == [len(each) for each in texts] and not rough.low_precision:
        return score(model, directions, validation, metric, places=candidates, reference=to, scorer=scorer)
    along = [directions.at(*place, reference=to) for place in candidates]
    screen = [scores_of(rough, direction) for direction in track(along, "screening carriers")]
    exact = scorer or Scorer(model, validation, metric)
    pilots = {
        place: scores_of(exact, along[place]) for place in track(_pilots(screen, admissible.kl), "scoring pilots")
    }
    early = admissible.layers(model.cfg.n_layers)
    race = _Race(
        _Sample(rough, exact, sampled, [kl for _, _, kl in pilots.values()]),
        screen,
        [layer in early for _, layer in candidates],
        admissible=admissible,
        rounding=_rounding(rough, exact, sampled, screen, pilots) if rough.low_precision else None,
    )
    del rough
    for place, scores in pilots.items():
        race.settle(place, scores)

    def chosen() -> int | None:
        """What would be chosen of the means so far, where it is not exact."""
        table = CarrierScores.gathered(candidates, race.scores, race.is_exact).table.drop(columns="exact")
        best = select(table, model.cfg.n_layers, admissible).best
        return None if best is None or race.is_exact[best.row] else best.row

    expected = int((race.open_wins() >= RARELY).sum())
    for place in track(race.finalists(chosen), "scoring finalists", total=expected):
        race.settle(place, scores_of(exact, along[place]))
    gathered = CarrierScores.gathered(candidates, race.scores, race.is_exact)
    return replace(gathered, directions=directions, reference=to, rounding=race.rounding)


def _pilots(screen: Sequence[Scores], kl_threshold: float) -> list[int]:
    """Candidates whose KL is nearest the threshold, by its logarithm: finalists, if any are."""
    means = np.array([kl.mean() for _, _, kl in screen])
    eligible = np.flatnonzero(np.isfinite(means) & (means > 0))
    distance = np.abs(np.log(means[eligible] / kl_threshold)) if kl_threshold > 0 else means[eligible]
    return [int(place) for place in eligible[np.argsort(distance, kind="stable")[:PILOTS]]]


def _rounding(
    rough: Scorer, exact: Scorer, sampled: Sequence[ndarray], screen: Sequence[Scores], pilots: Mapping[int, Scores]
) -> Rounding:
    """What the lower precision of `rough` shifts means of the sample by, from candidates that were scored both ways.

    The shift of the refusal scores without intervention is taken off, as the estimates of the screen have it taken off.
    """
    base = [
        (as_array(low) - as_array(full)[rows]).mean()
        for low, full, rows in (
            (rough.base.harmful, exact.base.harmful, sampled[0]),
            (rough.base.harmless, exact.base.harmless, sampled[1]),
        )
    ]
    scores, kls = [], []
    for place, (bypass, induce, kl) in pilots.items():
        low_bypass, low_induce, low_kl = screen[place]
        scores.append((low_bypass - bypass[sampled[0]]).mean() - base[0])
        scores.append((low_induce - induce[sampled[1]]).mean() - base[1])
        if min(low_kl.mean(), (exact_kl := kl[sampled[1]].mean())) > 0:
            kls.append(np.log(low_kl.mean() / exact_kl))
    of_score, of_kl = (sqrt(np.mean(np.square(each))) if each else 0.0 for each in (scores, kls))
    return Rounding(of_score, of_kl, len(pilots))


class _Sample:
    """Prompts drawn with replacement, `RACES` times, and what they would have scored by the scores of a sample.

    A drawn prompt that is not in the sample is stood in for by one of it, the same for all candidates, drawn anew in
    each race (the approximate Bayesian bootstrap, Rubin and Schenker 1986, which allows for what the sample itself
    owes to chance). What is known of every prompt corrects it: the refusal score without intervention by its
    difference, the KL of the pilots by its ratio.
    """

    def __init__(self, rough: Scorer, exact: Scorer, places: Sequence[ndarray], pilots: Sequence[ndarray]) -> None:
        random = np.random.default_rng(0)
        bases = [(as_array(exact.base.harmful), as_array(rough.base.harmful))]
        bases += [(as_array(exact.base.harmless), as_array(rough.base.harmless))]
        self._drawn = [_draw(len(base), rows, random) for (base, _), rows in zip(bases, places, strict=True)]
        self._bases = bases
        moved = np.mean([kl / kl.mean() for kl in pilots], axis=0) if pilots else np.ones(len(bases[1][0]))
        self._easily = 0.9 * moved + 0.1  # a prompt that hardly moves must not weigh without bound
        self._kept = places[1]

    def expected(self, scores: Scores) -> Scores:
        """Scores of the sample such that their mean estimates that of all prompts."""
        bypass, induce, kl = scores
        shifts = [base.mean() - part.mean() for base, part in self._bases]
        return bypass + shifts[0], induce + shifts[1], kl * self._easily.mean() / self._easily[self._kept].mean()

    def races(self, bypass: ndarray, induce: ndarray, kl: ndarray) -> list[Float[ndarray, "race candidate"]]:
        """Means of every race, from scores (candidate, prompt of the sample)."""
        means = []
        for values, (base, part), (prompts, donors) in zip((bypass, induce), self._bases, self._drawn, strict=True):
            weights = _weights(donors, len(part))
            means.append(weights @ values.T + (base[prompts].mean(axis=1) - weights @ part)[:, None])
        prompts, donors = self._drawn[1]
        ratio = kl / self._easily[self._kept]
        means.append(_weights(donors, kl.shape[1], self._easily[prompts]) @ ratio.T)
        return means

    def settled(self, scores: Scores) -> list[Float[ndarray, " race"]]:
        """Means of every race, from scores of all prompts."""
        sides = (self._drawn[0], self._drawn[1], self._drawn[1])
        return [values[prompts].mean(axis=1) for values, (prompts, _) in zip(scores, sides, strict=True)]


class _Race:
    """The scores so far, and how often each candidate wins in races drawn from them.

    `scores`: those of every candidate, of all prompts where `is_exact`, else of the sample.
    """

    def __init__(
        self,
        sample: _Sample,
        screen: Sequence[Scores],
        runs: Sequence[bool],
        *,
        admissible: Admissible,
        rounding: Rounding | None = None,
    ) -> None:
        self._sample, self._runs, self._admissible = sample, np.array(runs, dtype=bool), admissible
        self.rounding = rounding
        self.scores = [sample.expected(scores) for scores in screen]
        self.is_exact = [bool(np.isnan(bypass).any()) for bypass, _, _ in screen]  # NaN is as exact as it gets
        stacked = [np.array([scores[measure] for scores in screen]) for measure in range(3)]
        self._means = sample.races(*stacked) if screen else [np.empty((RACES, 0))] * 3
        if rounding is not None and rounding.n:
            bypass, induce, kl = self._means
            random = np.random.default_rng(1)
            # Two refusal scores a pilot, one KL.
            off = rounding.score * random.standard_t(2 * rounding.n, (2, *kl.shape))
            with np.errstate(over="ignore"):
                times = np.exp(rounding.kl * random.standard_t(rounding.n, kl.shape))
            self._means = [bypass + off[0], induce + off[1], kl * times]

    def settle(self, place: int, scores: Scores) -> None:
        """Replace the estimates of a candidate by its scores on all prompts."""
        self.scores[place], self.is_exact[place] = scores, True
        for means, values in zip(self._means, self._sample.settled(scores), strict=True):
            means[:, place] = values

    def open_wins(self) -> Float[ndarray, " candidate"]:
        """Share of races that each candidate wins; 0 for those that are exact."""
        bypass, induce, kl = self._means
        first = lowest(ranked(np.where(self._runs, bypass, np.inf), induce, kl, self._admissible))
        wins = np.zeros(len(self.scores))
        np.add.at(wins, first[first >= 0], 1 / RACES)
        wins[self.is_exact] = 0
        return wins

    def finalists(self, chosen: Callable[[], int | None]) -> Iterator[int]:
        """Candidates to settle; each must be settled before the next is asked for."""
        while True:
            wins = self.open_wins()
            place = int(wins.argmax()) if wins.size and wins.max() >= RARELY else chosen()
            if place is None:
                return
            yield place


def _draw(n: int, sample: ndarray, random: np.random.Generator) -> tuple[ndarray, ndarray]:
    """For every race n of n prompts with replacement, and the place in the sample of what stands in for each."""
    k = len(sample)
    prompts = random.integers(n, size=(RACES, n))
    pool = random.integers(k, size=(RACES, k))
    stands_for = np.take_along_axis(pool, random.integers(k, size=(RACES, n)), axis=1)
    stands_for[:, sample] = np.arange(k)
    return prompts, np.take_along_axis(stands_for, prompts, axis=1)


def _weights(donors: Int[ndarray, "race prompt"], k: int, each: ndarray | float = 1.0) -> Float[ndarray, "race k"]:
    """How much each prompt of the sample counts in the mean of a race."""
    weights = np.zeros((len(donors), k))
    np.add.at(weights, (np.arange(len(donors))[:, None], donors), each / donors.shape[1])
    return weights


def _sample(n: int, share: float) -> Int[ndarray, " sample"]:
    """Places spread evenly over the prompts, as sets come in blocks of categories."""
    n_sampled = min(n, max(FEWEST, int(np.ceil(share * n))))
    return np.unique(np.linspace(0, n - 1, n_sampled).round().astype(int)) if n else np.empty(0, dtype=int)
